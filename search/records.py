"""The records a run consists of, as plain data. Each is written once and never changed (docs/records.md).

A record says what was decided or seen, never what follows from it: everything else is a function of them.
Wrong ones cannot be built: `__post_init__` raises ValueError naming value and rule. Bytes are pipeline's business.
Enum values are what stands in the store: never rename one.
"""

import math
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from search.evolution import Strategy
from search.genotype import Genotype
from search.graph import Model
from search.limits import Desire, Limits, Setting
from search.mutation import Change
from search.recipe import Recipe
from search.space import Space

ALGORITHM = 1
"""Raised whenever the output of any pure function changes: a run is continued only under the number it began with."""

RUN_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def _not_negative(place: str, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and (value < 0 or not math.isfinite(value)):
            raise ValueError(f"{place}: {name} is {value}; allowed: 0 or more")


@dataclass(frozen=True, slots=True)
class DataReference:
    """Which prepared data: its name, and the digest that workers check it against."""

    name: str
    digest: str

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.digest):
            raise ValueError(f"data digest is {self.digest!r}; expected 64 hexadecimal digits")


@dataclass(frozen=True, slots=True)
class Constraints:
    """Networks above one of these are answered by the controller as `over_limit`; None: no limit."""

    parameters: int | None = None
    multiply_adds: int | None = None
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        _not_negative("constraints", parameters=self.parameters, multiply_adds=self.multiply_adds, memory_bytes=self.memory_bytes)


@dataclass(frozen=True, slots=True)
class Run:
    """`run.json`: what is searched. Where and how (executor, workers, image) may differ at each start and is not here."""

    name: str
    run_id: str
    algorithm: int
    seed: int
    space: Space
    strategy: Strategy
    recipe: Recipe
    model: Model
    data: DataReference
    constraints: Constraints

    def __post_init__(self) -> None:
        if not RUN_NAME.fullmatch(self.name):
            raise ValueError(f"run name is {self.name!r}; allowed: at most 40 of a-z, 0-9 and '-', no '-' at the ends")
        if not re.fullmatch(r"[0-9a-f]{32}", self.run_id):
            raise ValueError(f"run_id is {self.run_id!r}; expected 32 hexadecimal digits")
        if self.algorithm < 1:
            raise ValueError(f"algorithm is {self.algorithm}; allowed: 1 or more")


@dataclass(frozen=True, slots=True)
class Stamp:
    """Who wrote a record and what that controller knew: so limits and waits can be checked from the folder alone."""

    controller: str
    """Random id of the claim."""
    at: float
    """Seconds since 1970, by the controller's clock."""
    after: int
    """History length seen."""
    control: int
    """Number of control requests applied."""

    def __post_init__(self) -> None:
        _not_negative("stamp", at=self.at, after=self.after, control=self.control)


@dataclass(frozen=True, slots=True)
class Claim:
    """A controller takes charge."""

    controller: str
    owner: str
    """Place whose restarts take over silently: the same user on the same host, the same run on the same cluster."""
    incarnation: str
    """One life of that place: a process, a pod."""
    follows: str | None
    """Id of the claim it took over from; None after a release or at the start."""
    executor: str
    limits: Limits
    """As configured at this start. Those of the first claim hold, changed by the control records since."""
    at: float
    kind: Literal["claim"] = "claim"


class ReleaseReason(StrEnum):
    """Why a controller gave up its charge in good order."""

    FINISHED = "finished"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"
    HALTED = "halted"


@dataclass(frozen=True, slots=True)
class Release:
    """A controller gives up its charge: nothing of the run is being worked on."""

    reason: ReleaseReason
    stamp: Stamp
    kind: Literal["release"] = "release"


@dataclass(frozen=True, slots=True)
class Hierarchical:
    """Work: train the network of a genotype (text form)."""

    genotype: str
    kind: Literal["hierarchical"] = "hierarchical"

    def __post_init__(self) -> None:
        Genotype.from_text(self.genotype)


@dataclass(frozen=True, slots=True)
class Candidate:
    """`candidates/000017.json`. No time and no id in it: it can be re-derived byte for byte."""

    index: int
    work: Hierarchical
    parent: int | None
    change: Change | None
    after: int
    """History length it was bred from."""
    seed: int
    """Seed of its training."""

    def __post_init__(self) -> None:
        _not_negative(f"candidate {self.index}", index=self.index, parent=self.parent, after=self.after, seed=self.seed)
        if self.parent is not None and self.parent >= self.index:
            raise ValueError(f"candidate {self.index} has parent {self.parent}; a parent comes before its child")


class Why(StrEnum):
    """Why an attempt is made."""

    FIRST = "first"
    RETRY = "retry"


@dataclass(frozen=True, slots=True)
class Resources:
    """What one attempt may use. None: no limit."""

    threads: int = 1
    memory_bytes: int | None = None
    """Resident memory."""
    time_limit_seconds: float | None = None
    """Of the attempt as a whole, its start included; the candidate's own limit is the recipe's."""
    gpus: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= 1024:
            raise ValueError(f"threads is {self.threads}; allowed: 1 to 1024")
        _not_negative("resources", memory_bytes=self.memory_bytes, time_limit_seconds=self.time_limit_seconds, gpus=self.gpus)


CONTROLLER = "controller"
"""Executor of attempts that the controller answers itself."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """`attempts/000017-0.json`: the decision to run it, written before anything runs."""

    candidate: int
    attempt: int
    why: Why
    executor: str
    job: str
    resources: Resources
    rejected: tuple[int, ...]
    """Earlier attempts whose evaluations were not valid."""
    open: int
    """Attempts open when this was decided, this one not counted."""
    stamp: Stamp
    avoid: tuple[str, ...] = ()
    """Nodes it must not run on: attempts failed there."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """One of the independent trainings behind a fitness."""

    accuracy: float
    """Share of the validation images named right after the last step (U10)."""
    loss: float
    """Mean validation loss (cross-entropy, nats)."""
    train_seconds: float
    """Building the network included."""
    evaluate_seconds: float
    curve: tuple[tuple[int, float], ...]
    """(steps done, mean training loss since the point before)."""

    def __post_init__(self) -> None:
        if not 0 <= self.accuracy <= 1:
            raise ValueError(f"accuracy is {self.accuracy}; allowed: 0 to 1")
        _not_negative("repeat", loss=self.loss, train_seconds=self.train_seconds, evaluate_seconds=self.evaluate_seconds)


@dataclass(frozen=True, slots=True)
class Machine:
    """On what an evaluation was made."""

    device: str
    threads: int
    precision: str
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Metrics:
    """An evaluation: the candidate was trained."""

    candidate: int
    attempt: int
    fitness: float
    """Mean validation accuracy of the repeats."""
    repeats: tuple[Repeat, ...]
    parameters: int
    multiply_adds: int
    network_digest: str
    peak_memory_bytes: int
    data_digest: str
    total_seconds: float
    """Of the attempt's process, from its first line to this record."""
    machine: Machine
    kind: Literal["metrics"] = "metrics"

    def __post_init__(self) -> None:
        if not 0 <= self.fitness <= 1:
            raise ValueError(f"fitness is {self.fitness}; allowed: 0 to 1")
        if not self.repeats or abs(self.fitness - sum(r.accuracy for r in self.repeats) / len(self.repeats)) > 1e-9:
            raise ValueError(f"fitness {self.fitness} is not the mean accuracy of its {len(self.repeats)} repeats")


class FailureKind(StrEnum):
    """Failures that are the candidate's own (and `bug`: ours)."""

    OUT_OF_MEMORY = "out_of_memory"
    DIVERGED = "diverged"
    TIME_LIMIT = "time_limit"
    UNBUILDABLE = "unbuildable"
    OVER_LIMIT = "over_limit"
    BUG = "bug"


@dataclass(frozen=True, slots=True)
class Failure:
    """An evaluation: the candidate failed, and it is its own doing."""

    candidate: int
    attempt: int
    failure: FailureKind
    message: str
    total_seconds: float
    machine: Machine | None
    kind: Literal["failure"] = "failure"


@dataclass(frozen=True, slots=True)
class Reused:
    """An evaluation: the same network was evaluated before; no cost."""

    candidate: int
    attempt: int
    fitness: float
    source: int
    """Candidate whose evaluation it repeats."""
    kind: Literal["reused"] = "reused"

    def __post_init__(self) -> None:
        if not 0 <= self.fitness <= 1:
            raise ValueError(f"fitness is {self.fitness}; allowed: 0 to 1")


Evaluation = Metrics | Failure | Reused


class EndReason(StrEnum):
    """How an attempt ended that was not accepted."""

    DISRUPTED = "disrupted"
    NOT_STARTED = "not_started"
    NODE_LOST = "node_lost"
    CONTROLLER_LOST = "controller_lost"
    HANDED_OVER = "handed_over"
    STOPPED = "stopped"
    SUPERSEDED = "superseded"
    MEMORY = "memory"
    MACHINE = "machine"
    KILLED = "killed"
    DEADLINE = "deadline"
    GONE = "gone"
    EMPTY = "empty"
    REJECTED = "rejected"


DISRUPTIONS = frozenset({EndReason.DISRUPTED, EndReason.NOT_STARTED, EndReason.NODE_LOST, EndReason.CONTROLLER_LOST, EndReason.HANDED_OVER})
"""The platform took the attempt: free, up to `max_disruptions`."""
PLATFORM = frozenset({EndReason.MACHINE, EndReason.NOT_STARTED, EndReason.KILLED, EndReason.DEADLINE, EndReason.GONE, EndReason.EMPTY, EndReason.REJECTED})
"""The platform failed the attempt, and not in the way of a spot machine: a pause, `max_failures` in a row, and unless it is free `max_attempts` of a candidate."""
FREE = frozenset({EndReason.STOPPED, EndReason.SUPERSEDED})
"""A person or another attempt's success ended it: not counted at all."""


@dataclass(frozen=True, slots=True)
class End:
    """`ends/000017-0.json`: how an attempt ended that was not (yet) accepted."""

    candidate: int
    attempt: int
    reason: EndReason
    message: str
    exit_code: int | None
    node: str | None
    held_seconds: float
    """Wall time between its start and its end."""
    gpu_seconds: float
    log: tuple[str, ...]
    """Last lines of its output."""
    stamp: Stamp

    def __post_init__(self) -> None:
        _not_negative("end", held_seconds=self.held_seconds, gpu_seconds=self.gpu_seconds)


class OutcomeKind(StrEnum):
    """What came of a candidate."""

    EVALUATED = "evaluated"
    REUSED = "reused"
    OUT_OF_MEMORY = "out_of_memory"
    DIVERGED = "diverged"
    TIME_LIMIT = "time_limit"
    UNBUILDABLE = "unbuildable"
    OVER_LIMIT = "over_limit"
    BUG = "bug"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Outcome:
    """`history/000012.json`: one accepted outcome, in the one order in which they were accepted."""

    number: int
    candidate: int
    attempt: int
    outcome: OutcomeKind
    fitness: float | None
    held_seconds: float
    gpu_seconds: float
    evaluation: str | None
    """SHA-256 of the accepted evaluation's bytes."""
    previous: str | None
    """SHA-256 of the bytes of the outcome before: the last one's digest names the whole search."""
    stamp: Stamp
    node: str | None = None
    """Where the accepted attempt ran, as far as its job was there to tell."""

    def __post_init__(self) -> None:
        if (self.fitness is not None) != (self.outcome in (OutcomeKind.EVALUATED, OutcomeKind.REUSED)):
            raise ValueError(f"outcome {self.outcome.value} with fitness {self.fitness}: exactly evaluated and reused ones have a fitness")
        if (self.evaluation is None) and self.outcome not in (OutcomeKind.LOST, OutcomeKind.OUT_OF_MEMORY):
            raise ValueError(f"outcome {self.outcome.value} names no evaluation; only lost and out_of_memory ones may")
        if (self.previous is None) != (self.number == 0):
            raise ValueError(f"outcome {self.number} has previous digest {self.previous}; exactly number 0 has none")
        _not_negative("outcome", held_seconds=self.held_seconds, gpu_seconds=self.gpu_seconds)


@dataclass(frozen=True, slots=True)
class Moved:
    """The last entry of a history: the run goes on in another store. It takes the slot of the next outcome, so none can follow here."""

    number: int
    to: str
    """The other store: a folder's path, or s3://bucket/prefix."""
    previous: str | None
    """SHA-256 of the bytes of the last outcome."""
    stamp: Stamp
    kind: Literal["moved"] = "moved"

    def __post_init__(self) -> None:
        if not self.to or re.match(r"[a-z0-9+.-]*://[^/]*@", self.to):
            raise ValueError(f"moved to a store of {len(self.to)} characters; expected a path or s3://bucket/prefix, without a user or password")
        if (self.previous is None) != (self.number == 0):
            raise ValueError(f"entry {self.number} has previous digest {self.previous}; exactly number 0 has none")
        _not_negative("moved", number=self.number)


@dataclass(frozen=True, slots=True)
class Request:
    """`control/0003.json`: what a person wants, as absolute values of the changed keys."""

    changes: dict[str, Setting]
    desire: Desire | None
    nonce: str
    at: float
    by: str

    def __post_init__(self) -> None:
        if not self.changes and self.desire is None:
            raise ValueError("a control request changes nothing; it needs at least one key or a desire")
        Limits(max_evaluations=1).changed(self.changes)  # unknown keys and impossible values


Record = Run | Claim | Release | Candidate | Attempt | Metrics | Failure | Reused | End | Outcome | Moved | Request
