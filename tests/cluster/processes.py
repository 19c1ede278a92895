"""Processes of a cluster that outlive the one that started them, and are found again by a mark in their environment.

Why a mark and no file of process ids: it is there from the first instant, children inherit it (containerd's shims have it), and an id that was given
to somebody else never carries it. Containers do not inherit it: their processes are found by their control group.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

MARK = "HIERNAS_CLUSTER"
CGROUPS = Path("/sys/fs/cgroup")


class ClusterError(Exception):
    """The cluster could not be brought up or down; the message says what to do, or has the log's end."""


class Processes:
    """The processes of the cluster whose state lies in `state`; each one's log is `state`/logs/NAME.log."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def log(self, name: str) -> Path:
        return self.state / "logs" / f"{name}.log"

    def log_tail(self, name: str, lines: int = 30) -> str:
        text = self.log(name).read_text(errors="replace") if self.log(name).exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def pid(self, name: str) -> int | None:
        """The process that runs the program `name`, whoever started it."""
        return next((pid for pid in self.all() if _program(pid) == name), None)

    def all(self) -> list[int]:
        wanted = f"{MARK}={self.state}".encode()
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if wanted in _read(pid, "environ").split(b"\0")]

    def start(self, name: str, command: list[str]) -> None:
        if (pid := self.pid(name)) is not None:
            raise ClusterError(f"{name} is running already, as process {pid}: kill it first")
        self.log(name).parent.mkdir(parents=True, exist_ok=True)
        with self.log(name).open("ab") as log:
            log.write(f"$ {' '.join(command)}\n".encode())
            log.flush()
            # A session of its own, so that Ctrl-C on the terminal does not reach it.
            self._children[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment(), start_new_session=True)

    def run(self, command: list[str], *, stdin: str = "", **variables: str) -> str:
        """Runs a client of the cluster, and returns what it printed. Marked as well: an import of a large image ends with the cluster."""
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, env=self._environment() | variables)
        if done.returncode:
            raise ClusterError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def _environment(self) -> dict[str, str]:
        # Without proxies: they would carry requests for 10.96.0.1 off this machine.
        return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")} | {MARK: str(self.state)}

    def wait_ready(self, name: str, ready: Callable[[], bool], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not ready():
            child = self._children.get(name)
            if child is not None and child.poll() is not None:
                raise ClusterError(f"{name} ended with {child.returncode}; its log {self.log(name)} ends:\n{self.log_tail(name)}")
            if time.monotonic() > end:
                raise ClusterError(f"{name} was not ready after {seconds:.0f} s; its log {self.log(name)} ends:\n{self.log_tail(name)}")
            time.sleep(0.1)

    def kill(self, name: str) -> None:
        if (pid := self.pid(name)) is None:
            raise ClusterError(f"{name} is not running")
        _signal(pid)
        wait_until(f"the end of {name}", lambda: self._ended({pid}))

    def kill_all(self) -> None:
        """Repeated until none is left: a dying containerd may just have started a shim."""
        seen: set[int] = set()

        def gone() -> bool:
            left = self.all()
            seen.update(left)
            for pid in left:
                _signal(pid)
            return not left and self._ended(seen)

        wait_until("the end of the cluster's processes", gone)

    def _ended(self, pids: set[int]) -> bool:
        """Not before the kernel has closed what they had open, their ports among it; a process loses its environment earlier."""
        self._children = {name: child for name, child in self._children.items() if child.poll() is None}
        own = {child.pid for child in self._children.values()}
        return not pids & own and all(_read(pid, "stat").rpartition(b")")[2].split()[:1] in ([], [b"Z"], [b"X"]) for pid in pids)


def kill_cgroup(name: str) -> None:
    """Ends every process in the control groups of that name, and removes the groups; version 1 has one for each controller."""

    def gone() -> bool:
        groups = sorted((path for root in _cgroup_roots(name) for path in [root, *root.rglob("*/")]), key=lambda path: -len(path.parts))
        for group in groups:
            for pid in (group / "cgroup.procs").read_text().split():
                _signal(int(pid))
        for group in groups:
            try:
                group.rmdir()
            except OSError:
                return False  # its processes are still ending
        return True

    wait_until(f"the end of the control group {name}", gone)


def make_cgroup(name: str) -> None:
    hierarchies = [CGROUPS] if (CGROUPS / "cgroup.controllers").exists() else [path.parent for path in CGROUPS.glob("*/cgroup.procs")]
    for hierarchy in hierarchies:
        (hierarchy / name).mkdir(exist_ok=True)


def _cgroup_roots(name: str) -> list[Path]:
    return [path for path in (CGROUPS / name, *CGROUPS.glob(f"*/{name}")) if (path / "cgroup.procs").exists()]


def wait_until(what: str, done: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise ClusterError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.1)


def _signal(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _program(pid: int) -> str:
    return os.path.basename(_read(pid, "cmdline").split(b"\0")[0]).decode(errors="replace")


def _read(pid: int, name: str) -> bytes:
    """Empty for a process that has ended, and for a zombie."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
