"""Where attempts run: the seam, and what an executor tells of a job. One job is one attempt."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from search.records import EndReason, Resources


class JobStatus(StrEnum):
    """Where a job stands."""

    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"


class Waiting(StrEnum):
    """Why a job is pending, in one word."""

    STARTING = "starting"
    UNSCHEDULABLE = "unschedulable"
    QUOTA = "quota"
    ADMISSION = "admission"
    IMAGE = "image"
    POD = "pod"
    SUSPENDED = "suspended"


@dataclass(frozen=True, slots=True)
class Job:
    """One job as its executor sees it."""

    name: str
    status: JobStatus
    reason: EndReason | None = None
    """Why it ended, where the platform says so; else the exit code decides."""
    message: str = ""
    """What the platform says: of its end, or of its waiting."""
    exit_code: int | None = None
    node: str | None = None
    held_seconds: float = 0.0
    log: tuple[str, ...] = ()
    waits: Waiting | None = None
    """Why it is pending, where the platform tells."""
    outdated: bool = False
    """Whether it was made with other settings than a job would be made with now."""


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What a job runs: one attempt of one candidate of a run in a store."""

    name: str
    run: str
    candidate: int
    attempt: int
    resources: Resources
    digest: str
    """SHA-256 of the record that decided on it."""
    avoid: tuple[str, ...] = ()
    """Nodes it must not run on."""
    rather_not: tuple[str, ...] = ()
    """Nodes it runs on only if no other has room."""


class Refused(Exception):
    """A job is not created now, for a reason that may pass: a quota, an admission rule. The attempt waits."""


class Executor(Protocol):
    """Anything that runs attempts. `start` and `delete` may be repeated; `jobs` is complete and consistent.

    Each may raise ExecutorUnavailable: then nothing is known of what was asked, and the controller tries again later.
    """

    name: str
    survives: bool
    """Whether attempts go on when the controller dies."""
    parallel: int
    """How many jobs may be started, or deleted, at the same time, each in a thread."""

    def start(self, spec: JobSpec) -> None:
        """Run an attempt; nothing happens if a job of that name is there. Refused when it must wait."""
        ...

    def jobs(self) -> Sequence[Job]:
        """Every job of the run that was not deleted."""
        ...

    def delete(self, name: str) -> None:
        """End a job and forget it; nothing happens if it is not there."""
        ...

    def wait(self, seconds: float) -> None:
        """Return after so long, or sooner when a job has ended."""
        ...

    def close(self) -> None:
        """End all that cannot survive the controller."""
        ...


def job_name(run: str, candidate: int, attempt: int) -> str:
    """Name of an attempt's job: at most 40 + 13 characters, a DNS label."""
    return f"{run}-c{candidate:06d}-a{attempt}"
