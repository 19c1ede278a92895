#!/bin/sh
# Run during the build: make the virtual environment /opt/hiernas from its requirements.txt, with the uv that lies beside this.
set -eu
# Secrets are how the machine's own certificates and package index get in: they leave nothing in the image nor in its history.
# shellcheck disable=SC1091 # of the build that runs it
if [ -e /run/secrets/environment ]; then . /run/secrets/environment; fi
uv="$(dirname "$0")/bin/uv"
export UV_PYTHON_DOWNLOADS=never # the base's python, or none
"$uv" venv --quiet --allow-existing --python "$(command -v python3)" /opt/hiernas
# No cache: then uv links files into place instead of copying them, and torch's 5 GB are written once.
"$uv" pip install --no-cache --python /opt/hiernas --compile-bytecode --require-hashes --requirement /opt/hiernas/requirements.txt
# Found even where somebody sets PYTHONPATH for modules of her own.
/opt/hiernas/bin/python -c 'import sysconfig; print("/opt/hiernas/app", file=open(sysconfig.get_path("purelib") + "/hiernas.pth", "w"))'
# Left by uv: a folder that only root may write, where caches are looked for, and a file that everybody may write.
rm -rf "$HOME/.cache" /opt/hiernas/.lock
