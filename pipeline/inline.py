"""Attempts in this process, one after the other: for debugging, and for machines that forbid processes."""

import time
from collections.abc import Sequence

from pipeline.executor import Job, JobSpec, JobStatus
from pipeline.store import Store
from pipeline.worker import TRAINER, load_trainer, work


class InlineExecutor:
    """See Executor. `start` returns when the attempt is over."""

    name = "inline"
    survives = False
    parallel = 1

    def __init__(self, store: Store, data_root: str, trainer: str = TRAINER) -> None:
        self._store, self._data_root, self._trainer = store, data_root, trainer
        self._jobs: dict[str, Job] = {}

    def start(self, spec: JobSpec) -> None:
        """See Executor."""
        if spec.name not in self._jobs:
            began = time.monotonic()
            code = work(self._store, spec.run, spec.candidate, spec.attempt, lambda: load_trainer(self._trainer), self._data_root)
            held = time.monotonic() - began
            self._jobs[spec.name] = Job(spec.name, JobStatus.ENDED, exit_code=code, held_seconds=held)

    def jobs(self) -> Sequence[Job]:
        """See Executor."""
        return list(self._jobs.values())

    def delete(self, name: str) -> None:
        """See Executor."""
        self._jobs.pop(name, None)

    def wait(self, seconds: float) -> None:
        """See Executor: nothing runs while the controller does not."""

    def close(self) -> None:
        """See Executor."""
        self._jobs.clear()
