"""`hiernas run`: from a config to a controller at work on this machine."""

import contextlib
import fcntl
import getpass
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import psutil

from pipeline.clock import SystemClock
from pipeline.config import Config, differences
from pipeline.controller import Controller, Place
from pipeline.directory import DirectoryStore, explain
from pipeline.errors import ConfigError
from pipeline.executor import Executor
from pipeline.inline import InlineExecutor
from pipeline.processes import ProcessExecutor
from pipeline.progress import Progress
from pipeline.requests import request
from pipeline.run import RunFolder
from pipeline.status import word
from pipeline.store import open_store
from pipeline.worker import TRAINER
from search.records import Claim, Release, ReleaseReason, Run

log = logging.getLogger("hiernas.launch")
PACE_SECONDS = 0.5
"""Longest wait between two rounds; a worker that ends wakes the controller at once."""


def place() -> Place:
    """This process as a controller: the same user on the same host takes over from itself silently."""
    host = socket.gethostname()
    born = psutil.Process().create_time()
    return Place(secrets.token_hex(16), f"{getpass.getuser()}@{host}", f"{host}/{os.getpid()}/{born:.3f}")


def begin(config: Config, fresh: Run, folder: RunFolder) -> None:
    """Create the run, or check that the one there is the same and take over changed limits as a request."""
    there = folder.begin(fresh)
    changed = differences(there, fresh)
    if changed:
        raise ConfigError(
            f"run {config.run!r} exists and searches for something else:\n  " + "\n  ".join(changed)
            + "\nGive the new search another name (field 'run'), or restore the config"
        )  # fmt: skip
    state = folder.load()
    last = next((record for record in reversed(state.controllers) if isinstance(record, Claim)), None)
    if last is not None and (wanted := last.limits.differences(config.limits)):
        # Only what was edited since the last start: a `hiernas set` in between stays in force.
        request(folder, wanted, None)


@contextlib.contextmanager
def alone(store: object, name: str, take_over: bool) -> Iterator[None]:
    """Keep a second process of this machine waiting. A courtesy only: safety rests on the claims in `controllers/`."""
    if not isinstance(store, DirectoryStore) or take_over:
        yield
        return
    folder = store.root / ".locks"
    try:
        folder.mkdir(exist_ok=True)
        lock = (folder / name).open("a")
    except OSError as error:
        raise explain(folder / name, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(
                f"hiernas: another process of this machine works on run {name!r}; waiting for it (Ctrl-C to give up, --take-over to replace it)",
                file=sys.stderr,
            )
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            log.warning("this file system knows no locks, so a second process would not wait run=%s error=%s", name, error.strerror)
        yield


def executor_for(config: Config, store_url: str, trainer: str = TRAINER) -> Executor:
    """Where the config's attempts run."""
    data_root = str(Path(config.data_root).absolute())
    if config.executor.kind == "inline":
        return InlineExecutor(open_store(store_url), data_root, trainer)
    return ProcessExecutor(store_url, data_root, trainer)


def launch(config: Config, store_url: str, take_over: bool, lock: bool = True, trainer: str = TRAINER) -> ReleaseReason | None:
    """Run or continue the search in the foreground; returns why it ended."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    fresh = config.what(secrets.token_hex(16))  # before the store is made: a config that is refused leaves no trace
    store = open_store(store_url)
    folder = RunFolder(store, config.run)
    with alone(store, config.run, take_over or not lock):
        begin(config, fresh, folder)
        executor = executor_for(config, store_url, trainer)
        controller = Controller(folder, executor, SystemClock(), place(), config.limits, config.executor.resources(), take_over)
        try:
            with _interruptible(controller), Progress() as progress:
                reason = controller.work(progress, PACE_SECONDS)
                progress.finish(controller.state)
        finally:
            executor.close()
    print(closing(controller, reason), file=sys.stderr)
    return reason


def closing(controller: Controller, reason: ReleaseReason | None) -> str:
    """What a person should know when the command returns."""
    name = controller.folder.name
    return {
        "finished": f"run {name!r} is finished; `hiernas report {name} --out DIR` draws it, a larger limits.max_evaluations extends it",
        "stopped": f"run {name!r} is stopped and stays so; `hiernas resume {name}`, then the same `hiernas run`, continues it",
        "halted": f"run {name!r} was halted: candidates failed by a bug of the program; `hiernas report {name} --out DIR` shows them. "
        f"After `hiernas resume {name}` it goes on",
        "interrupted": f"run {name!r} was interrupted, nothing is lost; the same command continues it",
    }.get(word(controller.state) if reason is None else reason.value, f"run {name!r}: nothing to do")


@contextlib.contextmanager
def _interruptible(controller: Controller) -> Iterator[None]:
    """Ctrl-C once drains, twice stops now; SIGTERM stops now. All of them can be resumed."""

    def interrupt(number: int, _: FrameType | None) -> None:
        controller.interrupts += 1 if number == signal.SIGINT else 2
        told = ("waiting for what runs to finish; Ctrl-C again to end it now", "ending what runs now")[controller.interrupts > 1]
        os.write(2, f"\nhiernas: {told}\n".encode())

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def in_charge(folder: RunFolder) -> bool:
    """Whether somebody has claimed the run and not released it (it may have died since)."""
    state = folder.load()
    return bool(state.controllers) and not isinstance(state.controllers[-1], Release)
