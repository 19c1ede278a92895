"""One attempt: read, train, write once, exit. The same function in this process, in a local process and in a pod.

It imports no torch: the trainer is named ('module:function') and imported when there is work, so that the controller,
which runs attempts inline too, stays light. Exit codes: 0 written (or nothing to do), 1 a bug (written too), 5 this machine is at fault.
"""

import errno
import importlib
import logging
import os
import secrets
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pipeline.answer import network
from pipeline.codec import BadRecord
from pipeline.errors import DamagedRun, HiernasError, MachineFault, StoreUnavailable
from pipeline.run import RunFolder, SlotTaken, attempt_key, candidate_key, end_key, evaluation_key
from pipeline.store import Store
from search.graph import Graph, Unbuildable
from search.records import Attempt, Candidate, DataReference, Evaluation, Failure, FailureKind, Run

TRAINER = "pipeline.trainer:train"
"""What workers run unless told otherwise; tests name others."""
PATIENCE_SECONDS = 600.0
"""How long a finished training waits at least for a store that does not answer."""
MACHINE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE})
"""What the system reports where a disk is full or not well: no trainer's fault."""
log = logging.getLogger("hiernas.worker")


@dataclass(frozen=True, slots=True)
class Task:
    """What a trainer needs: the network, and everything that determines its training."""

    run: Run
    candidate: Candidate
    attempt: int
    graph: Graph
    threads: int
    gpus: int
    """That the attempt was given; above 0, one of them must be of use."""
    data_root: str
    """Folder that holds the prepared data sets."""
    started: float
    """`time.monotonic()` when the attempt began."""


Trainer = Callable[[Task], Evaluation]
"""Trains and returns an evaluation; a failure that is the candidate's own is an evaluation too. MachineFault otherwise."""


Fetch = Callable[[DataReference, Path], None]
"""Makes a data set ready under a folder. MachineFault or StoreUnavailable if it cannot."""


def load_trainer(name: str) -> Trainer:
    """Import 'module:function'."""
    module, _, function = name.partition(":")
    return cast(Trainer, getattr(importlib.import_module(module), function))


def work(store: Store, run: str, candidate: int, attempt: int, trainer: Callable[[], Trainer], data_root: str, fetch: Fetch | None = None) -> int:
    """Run one attempt to its evaluation and return the exit code. `fetch` makes the data set ready, where it is not."""
    started = time.monotonic()
    folder = RunFolder(store, run)
    try:
        what = folder.run  # first: a store that lacks the whole run is not a damaged run
        record, _ = folder.read(candidate_key(candidate))
        decision, _ = folder.read(attempt_key(candidate, attempt))
        if _superfluous(folder, candidate, attempt):
            log.info("nothing to do run=%s candidate=%d attempt=%d", run, candidate, attempt)
            return 0
        if fetch is not None:  # on a machine, and with keys, of its own
            _announce(folder, candidate, attempt)
            fetch(what.data, Path(data_root))
        evaluation = _evaluate(what, record, decision, trainer, data_root, started)
        return _write(folder, evaluation, time.monotonic() - started)
    except DamagedRun as error:
        log.error("the run is damaged run=%s candidate=%d attempt=%d error=%s", run, candidate, attempt, error)
        return error.exit_code
    except HiernasError as error:  # a store that this machine cannot reach or write to, or that lacks the run here: a disk not mounted
        log.error("this machine is at fault run=%s candidate=%d attempt=%d error=%s", run, candidate, attempt, error)
        return MachineFault.exit_code


def _announce(folder: RunFolder, candidate: int, attempt: int) -> None:
    """Write that it has begun, and where: a worker that may not write must fail now, not after hours of training."""
    where, now = os.uname().nodename, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    folder.note(f"logs/{candidate:06d}-{attempt}-{secrets.token_hex(4)}.txt", f"{now} attempt {attempt} of candidate {candidate} begins on {where}\n")


def _superfluous(folder: RunFolder, candidate: int, attempt: int) -> bool:
    """Whether this attempt has ended, or its candidate has a valid evaluation that no attempt rejected."""
    if end_key(candidate, attempt) in folder.keys_of("ends", candidate):
        return True
    attempts: list[Attempt] = [folder.read(key)[0] for key in folder.keys_of("attempts", candidate)]
    rejected = {number for one in attempts for number in one.rejected}
    for one in attempts:
        try:
            if one.attempt not in rejected and folder.evaluation(candidate, one.attempt) is not None:
                return True
        except BadRecord:
            continue
    return False


def _evaluate(run: Run, candidate: Candidate, attempt: Attempt, trainer: Callable[[], Trainer], data_root: str, started: float) -> Evaluation:
    try:
        task = Task(run, candidate, attempt.attempt, network(run, candidate), attempt.resources.threads, attempt.resources.gpus, data_root, started)
        return trainer()(task)
    except (MachineFault, StoreUnavailable):
        raise
    except Unbuildable as error:
        kind, message = FailureKind.UNBUILDABLE, str(error)
    except Exception as error:  # our own fault, whatever it is: it is recorded with its traceback and stops the run if it repeats
        if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
            raise MachineFault(f"{error.filename or 'a file'}: {error.strerror}") from error
        kind, message = FailureKind.BUG, traceback.format_exc(limit=20)[-8000:]
    return Failure(candidate.index, attempt.attempt, kind, message, time.monotonic() - started, None)


def patience_seconds(spent_seconds: float) -> float:
    """How long a training that took so long waits for a store that does not answer, before its machine counts as at fault."""
    return max(PATIENCE_SECONDS, spent_seconds)


def _write(folder: RunFolder, evaluation: Evaluation, spent_seconds: float) -> int:
    """Write what the training came to. A store that does not answer is waited for, up to what doing it again would cost."""
    until, pause = time.monotonic() + patience_seconds(spent_seconds), 1.0
    while True:
        try:
            folder.create(evaluation_key(evaluation.candidate, evaluation.attempt), evaluation)
            break
        except SlotTaken:
            log.info("another process of this attempt was quicker run=%s candidate=%d", folder.name, evaluation.candidate)
            break
        except StoreUnavailable as error:
            if time.monotonic() > until:
                raise
            log.warning("store unavailable, trying again run=%s candidate=%d error=%s", folder.name, evaluation.candidate, error)
            time.sleep(pause)
            pause = min(30.0, pause * 2)
    return 1 if isinstance(evaluation, Failure) and evaluation.failure is FailureKind.BUG else 0
