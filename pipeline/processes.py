"""Attempts as local processes, each forked from a server that has imported torch but computed nothing.

So a worker starts in a fraction of a second, and still is a process of its own: with its own threads, resident memory and
time, killable, leaving nothing behind. A worker whose controller dies, even by SIGKILL, ends itself: it holds one end of a
pipe whose other end only the controller has. Its output goes to a file without a name, so that nothing is left of that either.
"""

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.context import ForkServerProcess
from typing import IO, Any

import psutil

from pipeline.errors import ExecutorUnavailable
from pipeline.executor import Job, JobSpec, JobStatus
from pipeline.store import open_store
from pipeline.worker import TRAINER, load_trainer, work
from search.records import EndReason

LOG_LINES = 20
LOG_BYTES = 8192


@dataclass(slots=True)
class _Process:
    process: ForkServerProcess
    worker: psutil.Process | None
    """The same process, told from a later one of the same number; None where it had ended before anyone looked."""
    spec: JobSpec
    log: IO[bytes]
    started: float
    ended: float | None = None
    reason: EndReason | None = None
    message: str = ""


class ProcessExecutor:
    """See Executor. Give `close` a chance to run; without it the workers end with this process all the same."""

    name = "processes"
    survives = False
    parallel = 1

    def __init__(self, store_url: str, data_root: str, trainer: str = TRAINER) -> None:
        self._store_url, self._data_root, self._trainer = store_url, data_root, trainer
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["pipeline.processes", trainer.partition(":")[0]])
        self._processes: dict[str, _Process] = {}

    def start(self, spec: JobSpec) -> None:
        """See Executor."""
        if spec.name in self._processes:
            return
        try:
            log = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as the job is known)
        except OSError as error:
            raise ExecutorUnavailable(f"no worker process can be started: its output needs a temporary file ({error})") from error
        arguments = (spec, self._store_url, self._data_root, self._trainer, _Output(log.fileno()))
        process = self._context.Process(target=_main, args=arguments, name=spec.name)
        try:
            process.start()
        except (OSError, EOFError) as error:
            log.close()
            raise ExecutorUnavailable(f"no worker process can be started: {error or 'the fork server has died'}") from error
        worker = None
        with contextlib.suppress(psutil.Error):
            worker = psutil.Process(process.pid)
        self._processes[spec.name] = _Process(process, worker, spec, log, time.monotonic())

    def jobs(self) -> Sequence[Job]:
        """See Executor. Also where a worker over its memory or time is ended."""
        for one in self._processes.values():
            if one.ended is None:
                if one.process.exitcode is None:
                    self._enforce(one)
                    continue
                one.ended = time.monotonic()
                if one.worker is not None and one.worker.is_running():
                    one.reason, one.message = EndReason.DISRUPTED, "the fork server, which alone sees how a worker ends, has died"
                _kill(one)
        return [_job(one) for one in self._processes.values()]

    def _enforce(self, one: _Process) -> None:
        limits = one.spec.resources
        held = time.monotonic() - one.started
        if limits.time_limit_seconds is not None and held > limits.time_limit_seconds:
            one.reason, one.message = EndReason.DEADLINE, f"ran {held:.0f} s, the limit is {limits.time_limit_seconds:g} s"
            _kill(one)
        elif limits.memory_bytes is not None and one.worker is not None:
            with contextlib.suppress(psutil.Error):
                resident = one.worker.memory_info().rss
                if resident > limits.memory_bytes:
                    one.reason, one.message = EndReason.MEMORY, f"used {resident} bytes of memory, the limit is {limits.memory_bytes}"
                    _kill(one)

    def delete(self, name: str) -> None:
        """See Executor."""
        one = self._processes.pop(name, None)
        if one is not None:
            _kill(one)
            one.process.join()
            one.process.close()
            one.log.close()

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


def _job(one: _Process) -> Job:
    if one.ended is None:
        return Job(one.spec.name, JobStatus.RUNNING, held_seconds=time.monotonic() - one.started, node=os.uname().nodename)
    code = one.process.exitcode
    # SIGTERM is how a machine that shuts down, or whoever stops the whole service, ends processes: no fault of the attempt.
    reason = EndReason.DISRUPTED if one.reason is None and code == -signal.SIGTERM else one.reason
    return Job(
        one.spec.name, JobStatus.ENDED, reason, one.message or (f"ended by signal {-code}" if code is not None and code < 0 else ""),
        code, os.uname().nodename, one.ended - one.started, _tail(one.log),
    )  # fmt: skip


def _tail(log: IO[bytes]) -> tuple[str, ...]:
    try:
        # Read without moving the position, at which the worker and its children write.
        data = os.pread(log.fileno(), LOG_BYTES, max(0, os.fstat(log.fileno()).st_size - LOG_BYTES))
    except OSError:
        return ()
    return tuple(data.decode(errors="replace").splitlines()[-LOG_LINES:])


def _kill(one: _Process) -> None:
    """End a worker and whatever it started: it leads a process group of its own, which may outlive it."""
    number, worker = one.process.pid, one.worker
    with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
        # As long as the group has members, no new process gets its number: one that has it shows that ours are gone.
        if number is not None and (not psutil.pid_exists(number) or (worker is not None and worker.is_running())):
            os.killpg(number, signal.SIGKILL)
    with contextlib.suppress(psutil.Error):
        if worker is not None:
            worker.kill()  # it may not lead a group yet


class _Output:
    """A file descriptor on its way into a worker."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (reduction.DupFd(self.number),)


def _arrived(sent: Any) -> _Output:
    return _Output(sent.detach())


def _main(spec: JobSpec, store_url: str, data_root: str, trainer: str, output: _Output) -> None:
    """What a worker process runs."""
    with contextlib.suppress(OSError):
        os.setsid()  # Ctrl-C on the terminal is the controller's to answer
    _end_with_controller()
    terminal = os.dup(2)
    os.dup2(output.number, 1)
    os.dup2(output.number, 2)
    os.close(output.number)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(message)s", force=True)
    warnings = logging.StreamHandler(os.fdopen(terminal, "w"))  # a full disk, a machine at fault: a person should see it at once
    warnings.setLevel(logging.WARNING)
    warnings.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logging.getLogger().addHandler(warnings)
    code = work(open_store(store_url, make=False), spec.run, spec.candidate, spec.attempt, lambda: load_trainer(trainer), data_root)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    # At once: where the log's disk is full, an orderly exit would fail and hide the code; a thread left behind would delay it for ever.
    os._exit(code)


def _end_with_controller() -> None:
    """Kill this process group as soon as the controller is gone, whatever it died of."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
