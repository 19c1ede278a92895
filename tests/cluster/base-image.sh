#!/usr/bin/env bash
# Makes the image localhost/hiernas-base:bookworm: Debian with Python 3.11, for building images where no registry of images can be reached
# (buildah build --build-arg BASE_IMAGE=localhost/hiernas-base:bookworm …). Its root file system is kept in the cache, as debootstrap takes a minute.
set -euo pipefail

suite=bookworm image=localhost/hiernas-base:bookworm
# Beyond Debian's essentials; venv as the public Python images can make one too.
include=ca-certificates,python3,python3-venv

# The mirror is the one that this machine's apt uses.
mirror=$(apt-get indextargets --format '$(REPO_URI)' "Created-By: Packages" "Codename: $suite" "Component: main" "Label: Debian" | head -n 1)
[[ $mirror ]] || { echo "apt knows no mirror of Debian $suite here: run apt-get update on a machine with Debian $suite" >&2; exit 1; }
proxy=$(apt-config shell proxy Acquire::http::Proxy)
eval "${proxy:-proxy=}"
[[ -z $proxy ]] || export http_proxy=$proxy

cache=${XDG_CACHE_HOME:-$HOME/.cache}/hiernas-cluster
# A new month is a new image: the distribution's corrections come with it.
hash=$({ cat "$0"; echo "$mirror"; date +%Y-%m; } | sha256sum | cut -c1-16)
archive=$cache/base-$hash.tar.gz
mkdir -p "$cache"
exec 9> "$cache/base.lock"
flock 9

if [[ ! -e $archive ]]; then
  work=$(mktemp -d "$cache/base-building-XXXXXX")
  trap 'rm -rf "$work"' EXIT
  debootstrap --variant=minbase --include="$include" "$suite" "$work/root" "$mirror" > "$work/log" 2>&1 ||
    { tail -n 30 "$work/log" >&2; exit 1; }
  rm -rf "$work"/root/var/cache/apt/archives/*.deb "$work"/root/var/lib/apt/lists/* "$work"/root/var/log/*
  tar --create --numeric-owner --one-file-system --exclude='./dev/*' --directory "$work/root" . | gzip -1 > "$work/base.tar.gz"
  mv "$work/base.tar.gz" "$archive"
fi

if [[ $(buildah images --filter "label=hiernas.base=$hash" --quiet 2> /dev/null) == "" ]]; then
  container=$(buildah from scratch)
  trap 'buildah rm "$container" > /dev/null; rm -rf "${work:-/nonexistent}"' EXIT
  buildah add --quiet "$container" "$archive" / > /dev/null
  buildah config --label "hiernas.base=$hash" --cmd python3 --env LANG=C.UTF-8 "$container"
  buildah commit --quiet "$container" "$image" > /dev/null
fi
echo "$image"
