"""A real `hiernas run` in real processes, for tests: trainers that need no torch, people who send signals and requests."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from trainers import GO

from pipeline.cli import main
from pipeline.directory import DirectoryStore
from pipeline.prepare import prepare_digits
from pipeline.run import RunFolder
from pipeline.verify import Level, verify
from search.records import End, Release, ReleaseReason
from search.state import State

NAME = "live"
PATIENCE_SECONDS = 60.0
"""Longest wait for anything: far more than a slow machine needs."""
CONFIG = """
run: {name}
data: digits
space: liu2018-hierarchical
strategy: {{kind: evolution, initial: 6, initial_mutations: 50}}
recipe: digits-small
limits: {{max_evaluations: {count}, workers: {workers}, max_attempts: 50, max_disruptions: 1000}}
data_root: {root}/data
"""
PROGRAM = """
import functools, os, sys
from pipeline import launch
from pipeline.cli import main
launch.launch = functools.partial(launch.launch, trainer=os.environ["HIERNAS_TEST_TRAINER"])
sys.exit(main(sys.argv[1:]))
"""


class Process:
    """One `hiernas run`, and what it says."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )  # fmt: skip
        self.pid = self.process.pid
        self._said: list[bytes] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            while data := os.read(output.fileno(), 65536):
                self._said.append(data)

    @property
    def said(self) -> str:
        """Its output so far; all of it once it and its workers have ended."""
        return b"".join(self._said).decode()

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to it and its fork server; its workers have process groups of their own."""
        os.killpg(self.pid, 9)
        self.process.wait()

    def wait(self) -> int:
        """Its exit code."""
        code = self.process.wait(PATIENCE_SECONDS)
        self._reader.join(PATIENCE_SECONDS)
        assert "Traceback" not in self.said, self.said[-3000:]
        return code

    def wait_to_say(self, words: str) -> None:
        until(lambda: words in self.said, lambda: f"not said: {words!r}, but: {self.said[-3000:]}")


def until(condition: Callable[[], object], else_what: Callable[[], str]) -> None:
    """Poll; AssertionError with what was seen instead after a long time."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, else_what()
        time.sleep(0.02)


class Live:
    """A place with a config and prepared data, and the run that is begun there."""

    def __init__(self, place: Path, count: int, workers: int = 3, trainer: str = "trainers:slow", store: Path | None = None) -> None:
        self.place, self.count, self.trainer = place, count, trainer
        self.data = place / "data"
        self.path = store or place / "runs"
        prepare_digits(self.data / "digits")
        (place / "config.yaml").write_text(CONFIG.format(name=NAME, root=place, count=count, workers=workers))

    def start(self, lock: bool = False) -> Process:
        """`hiernas run`."""
        paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
        own = {"PYTHONPATH": os.pathsep.join(paths), "HIERNAS_TEST": str(self.place), "HIERNAS_TEST_TRAINER": self.trainer}
        arguments = ["run", str(self.place / "config.yaml"), "--store", str(self.path), *([] if lock else ["--no-lock"])]
        return Process(arguments, os.environ | own)

    def person(self, command: str, *words: str) -> None:
        """Another command on the run, by a person."""
        assert main([command, NAME, *words, "--store", str(self.path)]) == 0

    @property
    def folder(self) -> RunFolder:
        return RunFolder(DirectoryStore(self.path, make=False), NAME)

    @property
    def state(self) -> State:
        return self.folder.load()

    @property
    def ends(self) -> list[End]:
        return [end for story in self.state.stories for end in story.ends.values()]

    @property
    def released(self) -> ReleaseReason | None:
        """Why the last controller gave up its charge; None: it did not."""
        last = self.state.controllers[-1]
        return last.reason if isinstance(last, Release) else None

    def evaluated(self) -> int:
        """Length of the history, at little cost."""
        return len(self.folder.keys("history")) if self.path.is_dir() else 0

    def wait_for(self, evaluated: int) -> None:
        until(lambda: self.evaluated() >= evaluated, lambda: f"only {self.evaluated()} evaluated of {evaluated}")

    def wait_for_held(self, count: int) -> None:
        """Until so many `held` trainers have begun."""
        until(lambda: len(self.held()) >= count, lambda: f"only {self.held()} have begun, not {count}")

    def held(self) -> list[str]:
        """Attempts that `held` trainers have begun."""
        return sorted(path.name for path in self.data.glob("began-*"))

    def let_go(self) -> None:
        """Let `held` trainers finish, now and from now on."""
        (self.data / GO).touch()

    def relatives(self) -> list[psutil.Process]:
        """Every process that was started for this test, workers and fork servers included: they inherit its environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get("HIERNAS_TEST") == str(self.place):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def workers(self, *controllers: Process) -> list[psutil.Process]:
        """Workers that run now: each leads a session of its own, as the controllers do."""
        pids = [controller.pid for controller in controllers]
        found = []
        for one in self.relatives():
            try:
                if one.pid not in pids and os.getsid(one.pid) == one.pid:
                    found.append(one)
            except ProcessLookupError:
                continue
        return found

    def close(self) -> None:
        """Leave nothing behind, whatever came of the test."""
        for one in self.relatives():
            with contextlib.suppress(psutil.Error):
                one.kill()

    def wait_until_gone(self) -> None:
        """Nothing that was started for this test is left."""
        until(lambda: not self.relatives(), lambda: f"left behind: {self.relatives()}")

    def check_whole(self) -> None:
        """All invariants, at any time."""
        findings = verify(DirectoryStore(self.path, make=False), NAME)
        assert [finding for finding in findings if finding.level is Level.ERROR] == []

    def check(self) -> int:
        """The same of a run at rest; returns how many candidates there are, each with exactly one outcome."""
        self.check_whole()
        state = self.state
        assert sorted(outcome.candidate for outcome in state.history) == list(range(len(state.stories)))
        assert state.totals.failed == 0
        return len(state.stories)

    def check_finished(self) -> None:
        self.wait_until_gone()
        assert self.check() == self.count
        assert self.released is ReleaseReason.FINISHED
