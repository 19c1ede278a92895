"""The invariant checker: everything that must hold of a run, checked from its bytes alone. It changes nothing.

`hiernas verify` and every test of the controller call it. It shares the codec with the rest and nothing else that folds or
decides, but for the pure derivation of candidates, which it repeats for each of them. It never uses snapshots.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pipeline import snapshots
from pipeline.codec import FOLDERS, BadRecord, decode, encode, is_canonical, sha256
from pipeline.executor import job_name
from pipeline.run import attempt_key, candidate_key, control_key, controller_key, end_key, evaluation_key, history_key
from pipeline.store import BadObject, Store
from search.evolution import Past, Scored
from search.genotype import Genotype
from search.limits import Limits
from search.records import (
    ALGORITHM,
    CONTROLLER,
    Attempt,
    Candidate,
    Claim,
    End,
    EndReason,
    Failure,
    Metrics,
    Moved,
    Outcome,
    OutcomeKind,
    Release,
    ReleaseReason,
    Request,
    Reused,
    Run,
    Stamp,
)
from search.state import derive_candidate


class Level(StrEnum):
    """How bad a finding is. Only errors mean that the run is damaged."""

    ERROR = "error"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about one object."""

    level: Level
    key: str
    what: str


@dataclass(slots=True)
class _Records:
    """Everything that could be decoded, by key."""

    run: Run
    controllers: list[Claim | Release] = field(default_factory=list)
    control: list[Request] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    history: list[Outcome] = field(default_factory=list)
    moved: Moved | None = None
    attempts: dict[tuple[int, int], Attempt] = field(default_factory=dict)
    ends: dict[tuple[int, int], End] = field(default_factory=dict)
    evaluations: dict[tuple[int, int], Metrics | Failure | Reused] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def outcomes(self) -> dict[int, Outcome]:
        """By candidate; the first where there are two (another check finds that)."""
        return {outcome.candidate: outcome for outcome in reversed(self.history)}


def verify(store: Store, name: str) -> list[Finding]:
    """Everything wrong or worth knowing, errors first. An empty list, or notes only: the run is whole."""
    findings: list[Finding] = []
    try:
        run = decode(store.read(f"{name}/run.json"), "run.json", None)
    except KeyError:
        return [Finding(Level.ERROR, "run.json", "is missing")]
    except (BadRecord, BadObject) as error:
        return [Finding(Level.ERROR, "run.json", str(error))]
    if run.name != name:
        findings.append(Finding(Level.ERROR, "run.json", f"is of run {run.name!r}"))
    records = _Records(run)
    findings += _read(store, name, records)
    for check in (_candidates, _attempts, _ends, _history, _evaluations, _controllers, _complete):
        findings += check(records)
    return sorted(findings, key=lambda finding: (finding.level is Level.NOTE, finding.key))


def _error(key: str, what: str) -> Finding:
    return Finding(Level.ERROR, key, what)


_SLOTS = {"controllers": controller_key, "control": control_key, "candidates": candidate_key, "history": history_key}
_PAIR = re.compile(r"(attempts|ends|evaluations)/(\d{6,})-(\d+)\.json")


def _read(store: Store, name: str, records: _Records) -> Iterator[Finding]:
    for full in store.list(f"{name}/"):
        key = full.removeprefix(f"{name}/")
        folder = key.split("/", 1)[0]
        if folder in (snapshots.FOLDER, "logs"):  # whatever lies there decides nothing
            continue
        if folder not in FOLDERS:
            yield Finding(Level.NOTE, key, "is no record of this version")
            continue
        try:
            data = store.read(full)
            record = decode(data, key, records.run.run_id)
        except (BadRecord, BadObject) as error:
            # A bad evaluation is the platform's fault and stays as evidence; any other bad record is damage.
            yield Finding(Level.NOTE if folder == "evaluations" else Level.ERROR, key, str(error))
            continue
        own = folder == "evaluations" or encode(record, key, records.run.run_id) == data
        if not own and not is_canonical(record, data, key, records.run.run_id):
            yield _error(key, "is not in canonical form: it was written or changed by hand")
        records.digests[key] = sha256(data)
        yield from _place(records, folder, key, record)


def _place(records: _Records, folder: str, key: str, record: Any) -> Iterator[Finding]:
    if folder in _SLOTS:
        slots = getattr(records, folder)
        if folder == "history" and records.moved is not None:
            yield _error(key, f"follows {history_key(records.moved.number)}, with which the run was moved away")
            return
        if key != _SLOTS[folder](len(slots)):
            yield _error(_SLOTS[folder](len(slots)), f"is missing or not valid; the next found is {key}")
        if isinstance(record, Moved):
            records.moved = record
        else:
            slots.append(record)
    elif (pair := _PAIR.fullmatch(key)) is not None:
        place = (int(pair[2]), int(pair[3]))
        if (record.candidate, record.attempt) != place:
            yield _error(key, f"is of candidate {record.candidate}, attempt {record.attempt}")
        getattr(records, folder)[place] = record


def _limits(records: _Records, requests: int) -> Limits | None:
    """Limits in force after so many requests."""
    limits = next((record.limits for record in records.controllers if isinstance(record, Claim)), None)
    for request in records.control[:requests]:
        limits = limits.changed(request.changes) if limits else None
    return limits


def _stamped(records: _Records, key: str, stamp: Stamp) -> Iterator[Finding]:
    if stamp.controller not in {record.controller for record in records.controllers if isinstance(record, Claim)}:
        yield _error(key, f"was written by controller {stamp.controller}, which never claimed the run")
    if stamp.after > len(records.history):
        yield _error(key, f"knew a history of {stamp.after} outcomes, there are {len(records.history)}")
    if stamp.control > len(records.control):
        yield _error(key, f"had applied {stamp.control} control requests, there are {len(records.control)}")


def _candidates(records: _Records) -> Iterator[Finding]:
    """Every candidate is what the pure functions make of the history before it."""
    past = Past()
    if records.run.algorithm != ALGORITHM:
        yield Finding(Level.NOTE, "run.json", f"algorithm {records.run.algorithm}: candidates are not re-derived by this version ({ALGORITHM})")
        return
    for index, candidate in enumerate(records.candidates):
        key = candidate_key(index)
        if candidate.index != index:
            yield _error(key, f"has index {candidate.index}")
        if not past.accepted <= candidate.after <= len(records.history):
            yield _error(key, f"was bred from {candidate.after} outcomes; the one before saw {past.accepted}, there are {len(records.history)}")
            return
        for outcome in records.history[past.accepted : candidate.after]:
            if outcome.fitness is not None:
                past.population.append(Scored(outcome.candidate, outcome.fitness))
            if outcome.candidate >= index:
                yield _error(key, f"was bred after outcome {outcome.number}, which is of the later candidate {outcome.candidate}")
                return
        past.accepted = candidate.after
        if derive_candidate(records.run, past, index) != candidate:
            yield _error(key, "is not what its run, seed and history give: it was changed, or another version bred it")
        past.genotypes.append(Genotype.from_text(candidate.work.genotype))


def _attempts(records: _Records) -> Iterator[Finding]:
    for (index, number), attempt in sorted(records.attempts.items()):
        key = attempt_key(index, number)
        yield from _stamped(records, key, attempt.stamp)
        if index >= len(records.candidates):
            yield _error(key, "is of a candidate that was never proposed")
        if attempt.job != job_name(records.run.name, index, number):
            yield _error(key, f"names the job {attempt.job!r}, its job is {job_name(records.run.name, index, number)!r}")
        if number and (index, number - 1) not in records.ends:
            yield _error(key, f"was begun though attempt {number - 1} has no end")
        before = records.ends.get((index, number - 1))
        if before is not None and before.reason is EndReason.REJECTED and number - 1 not in attempt.rejected:
            yield _error(key, f"does not name attempt {number - 1} as rejected, whose evaluation was not valid")
        limits = _limits(records, attempt.stamp.control)
        if limits is None:
            yield _error(key, "was decided before any controller claimed the run")
        elif attempt.open >= limits.workers and attempt.executor != CONTROLLER:
            yield _error(key, f"was begun with {attempt.open} attempts open, the limit was {limits.workers} workers")


def _ends(records: _Records) -> Iterator[Finding]:
    for place, end in sorted(records.ends.items()):
        yield from _stamped(records, end_key(*place), end.stamp)
        if place not in records.attempts:
            yield _error(end_key(*place), "ends an attempt that was never made")


def _history(records: _Records) -> Iterator[Finding]:
    previous: str | None = None
    seen: set[int] = set()
    for number, outcome in enumerate(records.history):
        key = history_key(number)
        yield from _stamped(records, key, outcome.stamp)
        if outcome.number != number or outcome.stamp.after != number:
            yield _error(key, f"says it is outcome {outcome.number}, written after {outcome.stamp.after}")
        if outcome.previous != previous:
            yield _error(key, f"does not name the digest of the outcome before: this one or {history_key(number - 1) if number else 'it'} was changed")
        if outcome.candidate in seen:
            yield _error(key, f"is a second outcome of candidate {outcome.candidate}")
        if (outcome.candidate, outcome.attempt) not in records.attempts:
            yield _error(key, f"accepts attempt {outcome.attempt} of candidate {outcome.candidate}, which was never made")
        yield from _accepted(records, key, outcome)
        seen.add(outcome.candidate)
        previous = records.digests.get(key)
    if records.moved is not None:
        yield from _moved(records, records.moved, previous)


def _moved(records: _Records, moved: Moved, previous: str | None) -> Iterator[Finding]:
    number = len(records.history)
    key = history_key(number)
    yield from _stamped(records, key, moved.stamp)
    if moved.number != number or moved.stamp.after != number:
        yield _error(key, f"says it is entry {moved.number}, written after {moved.stamp.after}")
    if moved.previous != previous:
        yield _error(key, f"does not name the digest of the outcome before: this one or {history_key(number - 1) if number else 'it'} was changed")


def _accepted(records: _Records, key: str, outcome: Outcome) -> Iterator[Finding]:
    place = (outcome.candidate, outcome.attempt)
    if outcome.evaluation is None:
        if place not in records.ends:
            yield _error(key, "gives a candidate up whose last attempt has no end")
        return
    evaluation = records.evaluations.get(place)
    if evaluation is None or records.digests.get(evaluation_key(*place)) != outcome.evaluation:
        yield _error(key, f"accepted an evaluation whose bytes are not those of {evaluation_key(*place)}")
        return
    if isinstance(evaluation, Failure):
        kind, fitness = OutcomeKind(evaluation.failure.value), None
    else:
        kind = OutcomeKind.REUSED if isinstance(evaluation, Reused) else OutcomeKind.EVALUATED
        fitness = evaluation.fitness
    if (kind, fitness) != (outcome.outcome, outcome.fitness):
        yield _error(key, f"says {outcome.outcome.value} with fitness {outcome.fitness}, its evaluation says {kind.value} with {fitness}")


def _evaluations(records: _Records) -> Iterator[Finding]:
    outcomes = records.outcomes
    for place, evaluation in sorted(records.evaluations.items()):
        key = evaluation_key(*place)
        outcome = outcomes.get(place[0])
        if place not in records.attempts:
            yield _error(key, "is of an attempt that was never made")
        if outcome is not None and outcome.attempt != place[1]:
            yield Finding(Level.NOTE, key, f"late: attempt {outcome.attempt} was accepted before")
        if isinstance(evaluation, Metrics) and evaluation.data_digest != records.run.data.digest:
            yield _error(key, "was made on other data than the run's")
        if isinstance(evaluation, Reused) and not _is_source(outcomes.get(evaluation.source), evaluation):
            yield _error(key, f"repeats candidate {evaluation.source}, which has no such fitness")


def _is_source(source: Outcome | None, evaluation: Reused) -> bool:
    return source is not None and source.outcome is OutcomeKind.EVALUATED and source.fitness == evaluation.fitness


def _controllers(records: _Records) -> Iterator[Finding]:
    ids: set[str] = set()
    for number, record in enumerate(records.controllers):
        key = controller_key(number)
        before = records.controllers[number - 1] if number else None
        if isinstance(record, Claim):
            if record.controller in ids:
                yield _error(key, "is a second claim under the same id")
            ids.add(record.controller)
            if record.follows != (before.controller if isinstance(before, Claim) else None):
                yield _error(key, "does not follow the claim before it")
        elif not isinstance(before, Claim) or before.controller != record.stamp.controller:
            yield _error(key, "releases a charge that its controller did not have")


def _complete(records: _Records) -> Iterator[Finding]:
    """At a normal finish nothing is open."""
    last = records.controllers[-1] if records.controllers else None
    if not (isinstance(last, Release) and last.reason is ReleaseReason.FINISHED):
        return
    outcomes = records.outcomes
    for index in range(len(records.candidates)):
        if index not in outcomes:
            stray = index == len(records.candidates) - 1 and last.stamp.after == len(records.history)
            yield Finding(
                Level.NOTE if stray else Level.ERROR, candidate_key(index),
                "stray: written after the run had finished; it gets its outcome if the run is extended" if stray else "has no outcome though the run is finished",
            )  # fmt: skip
    for place, attempt in sorted(records.attempts.items()):
        outcome = outcomes.get(place[0])
        if place not in records.ends and not (outcome and outcome.attempt == place[1]):
            # Written by the one that finished the run, it was forgotten. By an earlier one, it landed after the last reading of the folder.
            stray = outcome is None or attempt.stamp.controller != last.stamp.controller
            yield Finding(
                Level.NOTE if stray else Level.ERROR, attempt_key(*place),
                "stray: neither accepted nor ended, written late by a controller that was followed" if stray else "is neither accepted nor ended though the run is finished",
            )  # fmt: skip
