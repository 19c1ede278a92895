"""What every measurement here writes down: its figures with their spread, and where, when and by which command they were made.

Nothing is measured in this file. A script collects its figures in a dict, and `write` prints it and keeps it as JSON.
"""

import datetime
import json
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"


def spread(values: Sequence[float], digits: int = 3) -> dict[str, Any]:
    """Median, range and number of repeats."""
    return {"median": round(statistics.median(values), digits), "range": [round(min(values), digits), round(max(values), digits)], "repeats": len(values)}


def write(name: str, figures: dict[str, Any], packages: Sequence[str] = (), device: str = "cpu") -> None:
    """Print the figures and keep them as results/NAME.json."""
    found = {
        "command": shlex.join([".venv/bin/python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "commit": _git("rev-parse", "--short", "HEAD") + (" with changes" if _git("status", "--porcelain", "search", "pipeline") else ""),
        "machine": {"cpu": _cpu(), "cores": psutil.cpu_count(), "device": device, "load_at_end": [round(load, 1) for load in psutil.getloadavg()]},
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
        **figures,
    }
    text = _text(found)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _text(value: Any, indent: str = "") -> str:
    """JSON with what is short on one line: a figure with its spread reads as a row."""
    line = json.dumps(value, ensure_ascii=False)
    if len(line) <= 130 or not isinstance(value, dict | list):
        return line
    inner = indent + " "
    if isinstance(value, list):
        return "[\n" + ",\n".join(inner + _text(one, inner) for one in value) + f"\n{indent}]"
    rows = (f"{inner}{json.dumps(key, ensure_ascii=False)}: {_text(one, inner)}" for key, one in value.items())
    return "{\n" + ",\n".join(rows) + f"\n{indent}}}"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def _cpu() -> str:
    """The model as /proc/cpuinfo names it, with family and model number: a virtual machine's name says little."""
    try:
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()]
    except OSError:
        return platform.processor() or platform.machine()
    facts = {name.strip(): value.strip() for name, _, value in lines}
    return f"{facts.get('model name', platform.machine())} (family {facts.get('cpu family')}, model {facts.get('model')})"
