"""Attempts as local processes, each forked from a server that has imported torch but computed nothing.

So a worker starts in a fraction of a second, and still is a process of its own: with its own threads, resident memory and
time, killable, leaving nothing behind. A worker whose controller dies, even by SIGKILL, ends itself: it holds one end of a
pipe whose other end only the controller has.
"""

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import psutil

from pipeline.executor import Job, JobSpec, JobStatus
from pipeline.store import open_store
from pipeline.worker import TRAINER, load_trainer, work
from search.records import EndReason

LOG_LINES = 20
LOG_BYTES = 8192


@dataclass(slots=True)
class _Process:
    process: ForkServerProcess
    spec: JobSpec
    log: Path
    started: float
    ended: float | None = None
    reason: EndReason | None = None
    message: str = ""


class ProcessExecutor:
    """See Executor. Give `close` a chance to run; without it the workers end with this process all the same."""

    name = "processes"
    survives = False

    def __init__(self, store_url: str, data_root: str, trainer: str = TRAINER) -> None:
        self._store_url, self._data_root, self._trainer = store_url, data_root, trainer
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["pipeline.processes", trainer.partition(":")[0]])
        self._logs = Path(tempfile.mkdtemp(prefix="hiernas-"))
        self._processes: dict[str, _Process] = {}

    def start(self, spec: JobSpec) -> None:
        """See Executor."""
        if spec.name in self._processes:
            return
        log = self._logs / f"{spec.name}.log"
        arguments = (spec, self._store_url, self._data_root, self._trainer, str(log))
        process = self._context.Process(target=_main, args=arguments, name=spec.name)
        process.start()
        self._processes[spec.name] = _Process(process, spec, log, time.monotonic())

    def jobs(self) -> Sequence[Job]:
        """See Executor. Also where a worker over its memory or time is ended."""
        for one in self._processes.values():
            if one.ended is None:
                if one.process.exitcode is not None:
                    one.ended = time.monotonic()
                else:
                    self._enforce(one)
        return [_job(one) for one in self._processes.values()]

    def _enforce(self, one: _Process) -> None:
        limits = one.spec.resources
        held = time.monotonic() - one.started
        if limits.time_limit_seconds is not None and held > limits.time_limit_seconds:
            one.reason, one.message = EndReason.DEADLINE, f"ran {held:.0f} s, the limit is {limits.time_limit_seconds:g} s"
            _kill(one.process)
        elif limits.memory_bytes is not None and one.process.pid is not None:
            with contextlib.suppress(psutil.Error):
                resident = psutil.Process(one.process.pid).memory_info().rss
                if resident > limits.memory_bytes:
                    one.reason, one.message = EndReason.MEMORY, f"used {resident} bytes of memory, the limit is {limits.memory_bytes}"
                    _kill(one.process)

    def delete(self, name: str) -> None:
        """See Executor."""
        one = self._processes.pop(name, None)
        if one is not None:
            _kill(one.process)
            one.process.join()
            one.process.close()
            one.log.unlink(missing_ok=True)

    def wait(self, seconds: float) -> None:
        """See Executor."""
        running = [one.process.sentinel for one in self._processes.values() if one.ended is None]
        if running:
            multiprocessing.connection.wait(running, seconds)
        else:
            time.sleep(seconds)

    def close(self) -> None:
        """See Executor."""
        for name in list(self._processes):
            self.delete(name)
        shutil.rmtree(self._logs, ignore_errors=True)


def _job(one: _Process) -> Job:
    if one.ended is None:
        return Job(one.spec.name, JobStatus.RUNNING, held_seconds=time.monotonic() - one.started, node=os.uname().nodename)
    code = one.process.exitcode
    return Job(
        one.spec.name, JobStatus.ENDED, one.reason, one.message or (f"ended by signal {-code}" if code is not None and code < 0 else ""),
        code, os.uname().nodename, one.ended - one.started, _tail(one.log),
    )  # fmt: skip


def _tail(path: Path) -> tuple[str, ...]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_BYTES))
            return tuple(file.read().decode(errors="replace").splitlines()[-LOG_LINES:])
    except OSError:
        return ()


def _kill(process: ForkServerProcess) -> None:
    """End a worker and whatever it started: it leads a process group of its own."""
    if process.pid is not None and process.exitcode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()


def _main(spec: JobSpec, store_url: str, data_root: str, trainer: str, log: str) -> None:
    """What a worker process runs."""
    with contextlib.suppress(OSError):
        os.setsid()  # Ctrl-C on the terminal is the controller's to answer
    _end_with_controller()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(message)s", force=True)
    code = work(open_store(store_url), spec.run, spec.candidate, spec.attempt, lambda: load_trainer(trainer), data_root)
    logging.shutdown()
    sys.exit(code)


def _end_with_controller() -> None:
    """Kill this process group as soon as the controller is gone, whatever it died of."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
