"""Writes docs/records.md from the records' dataclasses and from a small run that the real controller makes: `make docs`."""

import json
import re
import typing
from dataclasses import fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from described import docstring, kinds_in, table, text_under, unit, words

from pipeline.codec import VERSION
from pipeline.config import parse_recipe
from pipeline.controller import Controller, Place
from pipeline.executor import Job, JobSpec, JobStatus
from pipeline.inline import InlineExecutor
from pipeline.move import end_history
from pipeline.run import RunFolder, control_key
from pipeline.snapshots import SEGMENT
from pipeline.store import MAX_OBJECT_BYTES, MemoryStore, Store
from pipeline.verify import verify
from pipeline.worker import Task, work
from search.evolution import Evolution
from search.graph import Model
from search.limits import Limits
from search.records import (
    ALGORITHM,
    Attempt,
    Candidate,
    Claim,
    Constraints,
    DataReference,
    End,
    Evaluation,
    Failure,
    FailureKind,
    Machine,
    Metrics,
    Moved,
    Outcome,
    Release,
    Repeat,
    Request,
    Resources,
    Reused,
    Run,
)
from search.space import Level, Primitive, Space

PAGE = Path(__file__).parent / "records.md"

KEYS: list[tuple[str, str, str, tuple[type, ...]]] = [
    ("run.json", "run", "`hiernas run`, `submit`, `copy`; once", (Run,)),
    ("controllers/000003.json", "controller", "controller; `hiernas copy`", (Claim, Release)),
    ("candidates/000017.json", "candidate", "controller", (Candidate,)),
    ("attempts/000017-0.json", "attempt", "controller", (Attempt,)),
    ("evaluations/000017-0.json", "evaluation", "worker of that attempt; the controller, where it answers itself", (Metrics, Failure, Reused)),
    ("ends/000017-0.json", "end", "controller", (End,)),
    ("history/000012.json", "outcome", "controller; `hiernas copy`, where it ends", (Outcome, Moved)),
    ("control/000003.json", "request", "`hiernas set`, `pause`, `resume`, `stop`; `hiernas run`, `submit` where the config's limits were edited", (Request,)),
]

MEANINGS = {
    "Attempt.candidate": "Index of its candidate.",
    "Attempt.attempt": "Number of the attempt, from 0; k+1 is written only after the end of k.",
    "Attempt.why": "First try, or another.",
    "Attempt.executor": "Where it runs: `processes`, `inline`, `kubernetes`, or `controller` where the controller itself answers.",
    "Attempt.job": "Name of its job.",
    "Attempt.resources": "What it may use.",
    "Attempt.stamp": "Who decided, knowing what.",
    "Candidate.index": "0, 1, 2, … without a gap.",
    "Candidate.work": "What is to be done.",
    "Candidate.parent": "Candidate whose genotype was changed; null: drawn at random.",
    "Candidate.change": "The mutation; null: drawn at random.",
    "Change.level": "Level of the changed motif, from 2.",
    "Change.motif": "Number of the motif in its level, from 1.",
    "Change.successor": "Node where the edge ends, from 0.",
    "Change.predecessor": "Node where the edge begins.",
    "Change.old": "Operation before; 0: no edge.",
    "Change.new": "Operation after; 0: no edge. May equal the old one (reading U3).",
    "Claim.owner": "Place whose restarts take over silently: the same user on the same host, the same run on the same cluster.",
    "Claim.executor": "Where its attempts run; `copy`: a `hiernas copy`, which runs none.",
    "Claim.at": "When it was written.",
    "Claim.kind": "Tells a claim from a release.",
    "Claim.controller": "Id of this claim: drawn from a random number of the process and the slot.",
    "Constraints.parameters": "Most parameters.",
    "Constraints.multiply_adds": "Most multiply-adds an image.",
    "Constraints.memory_bytes": "Most memory, predicted, of a training step.",
    "DataReference.name": "Name of the prepared data set.",
    "DataReference.digest": "SHA-256 of the data set's description, which names the digests of its files.",
    "End.candidate": "Index of its candidate.",
    "End.attempt": "Number of the attempt.",
    "End.reason": "Whose doing it was.",
    "End.message": "What the executor says of it, for people.",
    "End.exit_code": "Of its process; negative: the signal that ended it; null: not known.",
    "End.node": "Machine it ran on; null: not known.",
    "End.gpu_seconds": "`held_seconds` × GPUs.",
    "End.stamp": "Who recorded it, knowing what.",
    "Evolution.initial": "Genotypes drawn at random before evolution starts (the paper: 200).",
    "Evolution.initial_mutations": "Mutations of the trivial genotype that make a random one (the paper: 1,000).",
    "Evolution.tournament_percent": "Share of the population that a tournament draws (the paper: 5 %).",
    "Evolution.kind": "Tells the strategies apart.",
    "Failure.candidate": "Index of its candidate.",
    "Failure.attempt": "Number of the attempt.",
    "Failure.failure": "What went wrong.",
    "Failure.message": "For people: the place, the number, or a traceback.",
    "Failure.total_seconds": "Of the attempt's process, from its first line to this record; 0 where the controller answered.",
    "Failure.machine": "On what it ran; null: nothing ran.",
    "Failure.kind": "Tells the evaluations apart.",
    "Hierarchical.genotype": "In its text form.",
    "Hierarchical.kind": "Leaves room for other kinds of work.",
    "Level.motifs": "How many motifs the level has.",
    "Level.nodes": "How many nodes each has, source and sink included.",
    "Machine.device": "Name of the GPU, or `cpu` and the architecture.",
    "Machine.threads": "Processor threads used.",
    "Machine.precision": "Number format of the training.",
    "Machine.versions": "Name of a program to its version.",
    "Metrics.candidate": "Index of its candidate.",
    "Metrics.attempt": "Number of the attempt.",
    "Metrics.repeats": "The trainings behind it.",
    "Metrics.parameters": "Of the assembled network.",
    "Metrics.multiply_adds": "Of the assembled network, an image.",
    "Metrics.network_digest": "SHA-256 of the assembled network: equal for the same network, dead parts not counted.",
    "Metrics.peak_memory_bytes": "On a GPU the largest allocation, data included; on a CPU the process's largest resident memory.",
    "Metrics.data_digest": "Digest of the data it was trained on.",
    "Metrics.machine": "On what it was made.",
    "Metrics.kind": "Tells the evaluations apart.",
    "Model.stem": "How images enter.",
    "Model.width": "Channels of the first group (c0).",
    "Model.cells": "Cells a group (N).",
    "Model.channels": "Of an image.",
    "Model.size": "Side of an image, in pixels.",
    "Model.classes": "Of the data.",
    "Moved.number": "Its place in the history: the number of outcomes before it.",
    "Moved.stamp": "Who moved it, knowing what; `after` is its own number.",
    "Moved.kind": "Tells it from an outcome, which has no such field.",
    "Outcome.number": "Its place in the history, from 0.",
    "Outcome.candidate": "Index of its candidate.",
    "Outcome.attempt": "The attempt that was accepted, or the last one of a candidate that was given up.",
    "Outcome.outcome": "What came of the candidate.",
    "Outcome.fitness": "Null exactly for failures.",
    "Outcome.held_seconds": "Wall time that the attempt held its place.",
    "Outcome.gpu_seconds": "`held_seconds` × GPUs; replaces the end's figure.",
    "Outcome.stamp": "Who accepted it, knowing what; `after` is its own number.",
    "RandomSearch.initial_mutations": "Mutations of the trivial genotype that make a random one.",
    "RandomSearch.reuse": "Answer an identical network with the earlier result.",
    "RandomSearch.kind": "Tells the strategies apart.",
    "Recipe.name": "For people.",
    "Recipe.stem": "How images enter.",
    "Recipe.steps": "Batches that a network is trained on.",
    "Recipe.learning_rate": "At the first step.",
    "Recipe.decay": "Factor at each milestone.",
    "Recipe.momentum": "Of the gradient descent.",
    "Recipe.precision": "Number format of the training; belongs to the recipe, never to the device found.",
    "Release.reason": "Why.",
    "Release.stamp": "Who, knowing what.",
    "Release.kind": "Tells a release from a claim.",
    "Repeat.evaluate_seconds": "Of the validation after the last step.",
    "Request.changes": "Names of [limits](#limits) with their new values; null: no limit.",
    "Request.desire": "What the run shall do from now on; null: as before.",
    "Request.nonce": "Random: two requests of equal content are two requests.",
    "Request.at": "When it was written, by the clock of the person's machine.",
    "Request.by": "User and host.",
    "Resources.threads": "Processor threads.",
    "Resources.gpus": "GPUs.",
    "Reused.candidate": "Index of its candidate.",
    "Reused.attempt": "Number of the attempt.",
    "Reused.fitness": "That of the source.",
    "Reused.kind": "Tells the evaluations apart.",
    "Run.name": "Name of the run, and of its folder.",
    "Run.run_id": "Random; stands in every record of the run, so that a foreign one is caught.",
    "Run.algorithm": "Number of the pure functions that breed candidates; another one refuses to continue the run.",
    "Run.seed": "All random numbers follow from it.",
    "Run.space": "What can be searched.",
    "Run.strategy": "Who is bred from whom.",
    "Run.recipe": "How a candidate is trained.",
    "Run.model": "The frame that cells are put into.",
    "Run.data": "On which images.",
    "Run.constraints": "Networks that are not trained.",
    "Space.name": "For people.",
    "Space.primitives": "Level-1 operations, numbered from 1 in this order; 0 is none.",
    "Space.levels": "Level 2 first; the last has one motif, the cell.",
}
"""Of fields under which the code says nothing, or says it for programmers only."""

VALUES = {
    "ReleaseReason.finished": "every proposed candidate has its outcome, and `max_evaluations` are proposed",
    "ReleaseReason.stopped": "a person asked for it; the run stays stopped until `hiernas resume`",
    "ReleaseReason.interrupted": "Ctrl-C or SIGTERM; the same command continues",
    "ReleaseReason.halted": "`max_bugs` outcomes `bug`, or `max_failures` failed attempts in a row; goes on after `hiernas resume`",
    "Why.first": "the first attempt",
    "Why.retry": "the one before ended without a result",
    "Stem.cifar": "one 3×3 convolution, three groups of cells",
    "Stem.imagenet": "two 3×3 convolutions of stride 2, four groups of cells",
    "Precision.float32": "32-bit numbers throughout",
    "Desire.run": "go on",
    "Desire.pause": "start nothing new; what runs goes on",
    "Desire.stop": "start nothing new, and release when nothing runs",
    "Desire.stop_now": "end what runs, then release",
    "FailureKind.out_of_memory": "the device's memory did not suffice",
    "FailureKind.diverged": "the loss became infinite or NaN",
    "FailureKind.time_limit": "over the recipe's `time_limit_seconds`",
    "FailureKind.unbuildable": "no path from the cell's source to its sink",
    "FailureKind.over_limit": "the network breaks a constraint of the config",
    "FailureKind.bug": "an exception in this program: `message` is the traceback; `max_bugs` of them halt the run",
    "OutcomeKind.evaluated": "trained; has a fitness",
    "OutcomeKind.reused": "the same network was evaluated before; has that fitness",
    "OutcomeKind.out_of_memory": "as the failure, or two attempts ended `memory`",
    "OutcomeKind.diverged": "as the failure",
    "OutcomeKind.time_limit": "as the failure",
    "OutcomeKind.unbuildable": "as the failure",
    "OutcomeKind.over_limit": "as the failure",
    "OutcomeKind.bug": "as the failure",
    "OutcomeKind.lost": "given up after `max_attempts` or `max_disruptions` attempts without a result",
    "EndReason.disrupted": "the platform took it (a disruption: free): an eviction, a preemption, a drain; locally, the process from which workers are forked has died",
    "EndReason.not_started": "its node refused the pod, or its image never came (a disruption, but one that counts as a failure of the platform)",
    "EndReason.node_lost": "its node fell silent (a disruption)",
    "EndReason.controller_lost": "its controller died, and it with it (a disruption)",
    "EndReason.handed_over": "the run goes on under another executor (a disruption)",
    "EndReason.stopped": "a person stopped it (not counted)",
    "EndReason.superseded": "another attempt's evaluation was accepted (not counted)",
    "EndReason.memory": "over `memory_gib`; the second one makes the outcome `out_of_memory`",
    "EndReason.machine": "exit code 5: its machine is at fault",
    "EndReason.killed": "ended from outside, or by a crash",
    "EndReason.deadline": "over the executor's `time_limit_seconds`",
    "EndReason.gone": "its job was there and vanished",
    "EndReason.empty": "exit code 0 without an evaluation",
    "EndReason.rejected": "its evaluation is not valid; the next attempt names it",
    "Primitive.conv1x1": "1×1 convolution to the cell's width",
    "Primitive.depthwise3x3": "3×3 convolution of each channel by itself",
    "Primitive.separable3x3": "depthwise 3×3, then 1×1 to the cell's width",
    "Primitive.maxpool3x3": "largest of 3×3",
    "Primitive.avgpool3x3": "mean of 3×3, padding not counted",
    "Primitive.identity": "the input itself",
}
"""What each value of an enum means. They stand in the store, so they are never renamed."""

UNITS = {
    "Stamp.at": "seconds since 1970",
    "Claim.at": "seconds since 1970",
    "Request.at": "seconds since 1970",
    "Repeat.accuracy": "share, 0 to 1",
    "Repeat.loss": "nats",
    "Repeat.curve": "steps, nats",
    "Metrics.fitness": "share, 0 to 1",
    "Reused.fitness": "share, 0 to 1",
    "Outcome.fitness": "share, 0 to 1",
    "Recipe.width": "channels",
    "Recipe.batch": "images",
    "Recipe.crop": "pixels",
    "Recipe.padding": "pixels",
    "Recipe.milestones": "steps",
    "Model.size": "pixels",
    "Model.width": "channels",
}


def all_kinds() -> tuple[list[type], list[type[StrEnum]]]:
    """Dataclasses that records hold besides the records themselves, and enums, in the order in which they are met."""
    records = [kind for *_, kinds in KEYS for kind in kinds]
    met: list[type] = list(records)
    for kind in met:  # grows while it is walked
        if is_dataclass(kind):
            hints = typing.get_type_hints(kind, include_extras=True)
            met += [inner for field in fields(kind) for inner in dict.fromkeys(kinds_in(hints[field.name])) if inner not in met]
            if kind is Request:
                met += [Limits] if Limits not in met else []
    parts = [kind for kind in dict.fromkeys(met) if kind not in records]
    return [kind for kind in parts if is_dataclass(kind)], [kind for kind in parts if issubclass(kind, StrEnum)]


def _fields(kind: type) -> list[str]:
    rows = []
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        name = f"{kind.__name__}.{field.name}"
        meaning = MEANINGS.get(name) or text_under(kind, field.name)
        if not meaning:
            raise SystemExit(f"{name} has no meaning: write one under the field, or into MEANINGS of {Path(__file__).name}")
        rows.append([f"`{field.name}`", words(hints[field.name]), UNITS.get(name) or unit(field.name), meaning.replace("None", "null")])
    return table(["field", "type", "unit", "meaning"], rows)


def _values(kind: type[StrEnum]) -> list[str]:
    return table(["value", "meaning"], [[f"`{value.value}`", VALUES[f"{kind.__name__}.{value.value}"]] for value in kind])


# -- the example: a run of the real controller and the real worker; only the training, the clock and the executor are played


class _Clock:
    """It stands still, but for attempts and sleep: how often the controller looks at it is no matter of the page."""

    def __init__(self) -> None:
        self._seconds = 1_767_225_600.0  # 2026-01-01

    def now(self) -> float:
        """See Clock."""
        return self._seconds

    monotonic = now

    def sleep(self, seconds: float) -> None:
        """See Clock."""
        self._seconds += seconds


class _Executor(InlineExecutor):
    """Attempts that are over at once. The first of candidate 1 is killed before it has written."""

    name = "processes"

    def __init__(self, store: Store, clock: _Clock) -> None:
        super().__init__(store, "data")
        self._clock = clock

    def wait(self, seconds: float) -> None:
        """See Executor."""
        self._clock.sleep(max(1.0, seconds))

    def start(self, spec: JobSpec) -> None:
        """See Executor."""
        if (spec.candidate, spec.attempt) == (1, 0):
            self._clock.sleep(1.5)
            self._jobs[spec.name] = Job(spec.name, JobStatus.ENDED, None, "ended by signal 9", -9, "laptop", 1.5, ("training step 40 of 80",))
            return
        self._clock.sleep(3.25)
        work(self._store, spec.run, spec.candidate, spec.attempt, lambda: _train, "data")
        self._jobs[spec.name] = Job(spec.name, JobStatus.ENDED, exit_code=0, node="laptop", held_seconds=3.25)


def _train(task: Task) -> Evaluation:
    machine = Machine("cpu x86_64", task.threads, "float32", {"python": "3.11", "torch": "2.9"})
    if task.candidate.index == 2:
        return Failure(2, task.attempt, FailureKind.DIVERGED, "loss is nan after step 12", 1.75, machine)
    accuracy = 0.90 + task.candidate.index / 100
    repeat = Repeat(accuracy, 0.25, 2.5, 0.125, ((40, 1.5), (80, 0.5)))
    return Metrics(
        task.candidate.index, task.attempt, accuracy, (repeat,), 12_000, 340_000, task.graph.digest, 300_000_000, task.run.data.digest, 3.0, machine,
    )  # fmt: skip


OUTCOMES = ["evaluated", "evaluated", "diverged", "evaluated", "unbuildable", "reused"]
"""What the text above the example says; the seed was chosen so."""


def example() -> MemoryStore:
    """A finished run of six candidates, one of whose attempts was killed."""
    recipe = parse_recipe("digits-small", "recipe")
    model = Model(recipe.stem, recipe.width, recipe.cells, channels=1, size=8, classes=10)
    space = Space("small", (Primitive.CONV_1X1, Primitive.MAX_POOL_3X3, Primitive.IDENTITY), (Level(1, 3),))
    strategy = Evolution(initial=3, initial_mutations=10, reuse=True)
    store = MemoryStore()
    folder = RunFolder(store, "example")
    folder.begin(Run("example", "0123456789abcdef" * 2, ALGORITHM, 130, space, strategy, recipe, model, DataReference("digits", "d" * 64), Constraints()))
    folder.create(control_key(0), Request({"max_evaluations": 6}, None, "5eed5eed5eed5eed", 1_767_225_590.0, "ada@laptop"))
    place = Place("0" * 32, "ada@laptop", "laptop/4711/1767225599.250")
    clock = _Clock()
    controller = Controller(folder, _Executor(store, clock), clock, place, Limits(max_evaluations=4, workers=1), Resources(memory_bytes=4 * 1024**3))
    controller.work(lambda *_: None, 0.0)
    findings = verify(store, "example")
    end_history(folder, "s3://searches/runs", Place("1" * 32, "ada@laptop", "laptop/4712/1767225659.500"), clock)
    outcomes = [outcome.outcome.value for outcome in folder.load().history]
    findings += verify(store, "example")
    if findings or outcomes != OUTCOMES:
        raise SystemExit(f"the example is not what the page says: {outcomes} {findings}")
    return store


def _shown(store: MemoryStore) -> dict[type, str]:
    """One key of each kind of record, in the order of the table."""
    folder = RunFolder(store, "example")
    found: dict[type, str] = {Run: "run.json"}
    telling = ["candidates/000003.json", "attempts/000001-1.json", "history/000001.json"]  # a child, a second attempt, an outcome with a predecessor
    for key in telling + [key.removeprefix("example/") for key in store.list("example/") if "/run.json" not in key]:
        found.setdefault(type(folder.read(key)[0]), key)
    return {kind: found[kind] for *_, kinds in KEYS for kind in kinds}


def _bytes(store: MemoryStore, key: str) -> str:
    return store.read(f"example/{key}").decode().rstrip("\n")


_HEAD = f"""# Records

*Made by `docs/make_records.py` (`make docs`) from `search/records.py`; a test compares the two. Edit there.*

A run is a folder of small immutable records: `<store>/<run>/…`. Everything else (counters, costs, the report, the next
candidate) is a pure function of them. Each record has one key, is written once and is never changed or deleted; where two
processes want the same key, the first write wins.

An object is one line of JSON in UTF-8: keys sorted, no spaces, a newline at the end. The same record always gives the same
bytes, so that SHA-256 digests can name it. Around every record stands the same envelope:

| field | type | meaning |
| --- | --- | --- |
| `schema_name` | text | kind of the object, as in the table below |
| `version` | `{VERSION}` | of the schema |
| `run_id` | text | that of `run.json`: an object of another run is caught |
| `key` | text | its own key below the run's folder: a misplaced object is caught |
| `record` | the record | its fields are listed below |

Reading is strict: at most {MAX_OBJECT_BYTES // 1024**2} MiB; no field twice, none unknown, none missing (but those added later, which have a default: `avoid`, `node`, `max_failures`); no NaN, no Infinity; types and ranges as below.
An evaluation that is not valid is the platform's fault: it stays as evidence, and the next attempt names it as rejected. Any
other record that is not valid stops the run with exit code 4 ([what to do](operations.md)).

`snapshots/000128.json` is no record but a copy of some: one line with `schema_name` `snapshot`, `version`, `run_id`, `key` and the
`sha256` of the rest, then the candidates, attempts, ends and history entries of {SEGMENT} outcomes, a line each, as they are in their own
places. It spares a restart most of its reads, decides nothing and may be deleted ([how it is used](decisions/0010-snapshots.md)).

`logs/000017-0-….txt` is no record either: a worker in a pod writes a line there when it begins, which shows that it may write at all.

Numbers in keys have six digits, more from a million on. In a store that is a directory, the second and later thousands of a
folder lie in folders of their own: `history/001234.json` is the file `history/001/001234.json`.

## All records
"""

_EXAMPLE = """## A run, byte by byte

A search of six candidates in a space of one cell with three nodes and three primitives. The controller, the worker's frame, the
codec and the keys are the program's own; training, clock and processes are played, so that the bytes are the same each time.
Before its start a person set `max_evaluations` to 6 (`control/000000.json`). The first attempt of candidate 1 was killed, its
second succeeded. Candidate 2 diverged. Candidates 3, 4 and 5 were bred by mutation: 3 was trained, 4 cannot be built, and 5 is
the same network as an earlier one, so the controller answered both itself. Then it was moved to a bucket: `hiernas copy` wrote a
claim, the entry that ends its history, and a release. `hiernas verify` finds nothing wrong with the run.

The keys, in the order of a listing:

```text"""


def page() -> str:
    """The whole of docs/records.md."""
    parts, enums = all_kinds()
    lines = [_HEAD]
    lines += table(
        ["key", "`schema_name`", "written by", "kinds"],
        [[f"`{key}`", f"`{name}`", writer, ", ".join(f"[{kind.__name__}](#{kind.__name__.lower()})" for kind in kinds)] for key, name, writer, kinds in KEYS],
    )
    for key, _, _, kinds in KEYS:
        for kind in kinds:
            lines += ["", f"### {kind.__name__}", "", f"`{key}`. {_sentence(kind)}", "", *_fields(kind)]
    lines += ["", "## What records are made of"]
    for kind in parts:
        lines += ["", f"### {kind.__name__}", "", _sentence(kind), "", *_fields(kind)]
    for kind in enums:
        lines += ["", f"### {kind.__name__}", "", _sentence(kind), "", *_values(kind)]
    store = example()
    lines += ["", _EXAMPLE, *(key.removeprefix("example/") for key in store.list("example/")), "```"]
    for kind, key in _shown(store).items():
        lines += ["", f"`{key}` ({kind.__name__}):", "", "```json", _bytes(store, key), "```"]
    return "\n".join(lines) + "\n"


def _sentence(kind: type) -> str:
    """Its docstring without the key, which stands before it."""
    text = docstring(kind)
    text = re.sub(r"^`[^`]*`[:.] ", "", text).replace("None", "null")
    return text[0].upper() + text[1:]


def unused() -> list[str]:
    """Entries of the tables above that no field or value has: leftovers of a renamed one."""
    parts, enums = all_kinds()
    records: list[Any] = [kind for *_, kinds in KEYS for kind in kinds]
    names = {f"{kind.__name__}.{field.name}" for kind in [*records, *parts] for field in fields(kind)}
    values = {f"{kind.__name__}.{value.value}" for kind in enums for value in kind}
    return sorted((MEANINGS.keys() | UNITS.keys()) - names) + sorted(VALUES.keys() - values)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(json.dumps({"written": PAGE.name, "unused": unused()}))
