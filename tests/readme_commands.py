"""The commands of the README and the docs. Run as a program after `make demo`, it runs those that the README marks for it.

A fenced block that begins with ```sh after-demo is marked. Its commands run one after the other, as they stand there, on a copy
of the run `demo` in a store of its own: so the run that somebody looks at stays as `make demo` left it. Those of ```sh on-kind are
run by tests/cluster/test_readme.py.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARK, CLUSTER_MARK = "after-demo", "on-kind"
_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(?:\.venv/bin/)?(hiernas[^`]*)`")


def blocks(page: Path) -> list[tuple[str, list[str]]]:
    """(what stands behind the fence, commands without comments) of each shell block; in a console block commands begin with $."""
    found = []
    for info, text in _FENCE.findall(page.read_text(encoding="utf-8")):
        language = info.partition(" ")[0]
        lines = text.splitlines()
        if language == "sh":
            commands = [line for line in lines if line.strip() and not line.startswith("#")]
        elif language == "console":
            commands = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        else:
            continue
        found.append((info, [line.partition(" #")[0].strip() for line in commands]))
    return found


def mentioned(page: Path) -> list[list[str]]:
    """Arguments of every `hiernas …` in the running text and in shell blocks."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    given = [" ".join(found.split()) for found in _INLINE.findall(text) if "…" not in found]
    given += [line for _, commands in blocks(page) for line in commands if re.match(r"(\S*/)?hiernas\b", line)]
    return [shlex.split(line)[1:] for line in given]


def main() -> int:
    """Run the marked commands; 1 if one fails."""
    commands = [line for info, lines in blocks(ROOT / "README.md") for line in lines if MARK in info]
    if not commands:
        sys.exit(f"README.md has no block marked {MARK}")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "runs" / "demo", Path(folder) / "demo")
        environment = os.environ | {"HIERNAS_STORE": folder}
        for line in commands:
            print(f"$ {line}", flush=True)
            code = subprocess.run(line, shell=True, cwd=ROOT, env=environment, check=False).returncode
            if code:
                print(f"README.md: this command ended with exit code {code}: {line}", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
