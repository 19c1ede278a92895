"""`hiernas copy`: a run goes on in another store, or a new one begins there from its beginning.

To move a run, its history is ended first: the entry `moved` takes the slot that the next outcome would need, so whoever is at
work on the source can decide nothing more, and no outcome can be there that the target lacks. Then every object is copied as it
is, and `run.json` last: what was copied in part is no run. Each step can be repeated, so the same command continues an
interrupted one. Nothing is deleted, and nothing is ever overwritten.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TextIO

from pipeline.clock import Clock
from pipeline.codec import FOLDERS, BadRecord, sha256
from pipeline.controller import Place
from pipeline.errors import ConfigError, Overtaken
from pipeline.run import (
    RunFolder,
    SlotTaken,
    attempt_key,
    candidate_key,
    control_key,
    controller_key,
    end_key,
    evaluation_key,
    history_key,
)
from pipeline.store import BadObject, MemoryStore, Store, at_once, read_many
from pipeline.verify import Level, verify
from search.records import Attempt, Claim, End, Moved, Outcome, Release, ReleaseReason, Stamp
from search.state import State

COPY = "copy"
"""Executor that the claim of a copy names: it runs nothing."""
BATCH = 256
"""Objects read, then written, at a time: a few megabytes."""
TELL_SECONDS = 5.0
Tell = Callable[[int, int], None]
"""Called with how many objects are copied, of how many."""


class Counter:
    """Says how far a long copy has come, a line every few seconds."""

    def __init__(self, clock: Clock, stream: TextIO) -> None:
        self._clock, self._stream = clock, stream
        self._told = clock.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """See Tell."""
        if self._clock.monotonic() - self._told >= TELL_SECONDS:
            self._told = self._clock.monotonic()
            print(f"hiernas: {done} of {total} objects copied", file=self._stream, flush=True)


# -- moving a run


def move(source: RunFolder, target: Store, to: str, place: Place, clock: Clock, take_over: bool, tell: Tell) -> str:
    """Move the run to the store whose address is `to`; says in words what was done.

    ConfigError, and nothing is written, where the target holds something else or the run has gone to another store.
    """
    state = source.load()
    _check_not_elsewhere(source, state, to)
    there = _there(source, target, to, state.moved is not None)
    if there is None:
        return f"run {source.name!r} is in {to} already; nothing was left to do"
    settle = partial(end_history, source, to, place, clock, take_over)
    state = settle()
    skipped = _copy(source, target, there, settle, tell)
    told = f"run {source.name!r} has moved to {to}: `hiernas verify {source.name} --store {to}` checks it, `hiernas run CONFIG --store {to}` goes on"
    if state.open_attempts:
        told += f"\n{state.open_attempts} attempts were under way: what they still write is not taken there, they are repeated"
    return told + "".join(f"\nleft behind, it cannot be read: {key}" for key in skipped)


def _check_not_elsewhere(source: RunFolder, state: State, to: str) -> None:
    if state.moved is not None and state.moved.to != to:
        raise ConfigError(f"{source.elsewhere(state.moved)}. Given --to {to}; to continue an interrupted copy, give --to {state.moved.to}")


def _there(source: RunFolder, target: Store, to: str, ours: bool) -> set[str] | None:
    """Keys of the run that the target has from an earlier try, None: the whole run. `ours`: a whole one there is what was to be made."""
    start = f"{source.name}/"
    found = target.list(start)
    if f"{start}run.json" in found:
        there = RunFolder(target, source.name)
        if there.run.run_id != source.run.run_id:
            raise ConfigError(f"{to} has another run named {source.name!r} (id {there.run.run_id}, this one is {source.run.run_id}): give --to another place")
        if ours:
            return None
        gone = there.moved()
        why = f"it was moved from there to {gone.to}" if gone else "an earlier copy by hand, or the same store under another name"
        raise ConfigError(f"{to} has run {source.name!r} already ({why}); nothing was changed. Give --to another place")
    known = set(source.store.list(start))
    for key in found:
        if key not in known and _is_record(source, key):
            raise ConfigError(f"{to} has an object {key}, which is none of this run's: give --to another place")
    both = [key for key in found if key in known]
    for key, here, copied in zip(both, read_many(source.store, both), read_many(target, both), strict=True):
        if here != copied:
            raise ConfigError(f"{to} has other bytes at {key} than this run: give --to another place")
    return set(found)


def end_history(folder: RunFolder, to: str, place: Place, clock: Clock, take_over: bool = False) -> State:
    """Take charge of the run, end its history with `moved`, give up the charge: whatever of this is not done yet."""
    state = folder.load()
    while (following := _next(folder, state, to, place, clock, take_over)) is not None:
        key, record = following
        try:
            folder.create(key, record)
        except SlotTaken:  # somebody else's write, perhaps a last outcome: look again
            state = folder.load()
            continue
        if isinstance(record, Moved):
            state.move(record)
        else:
            state.claim_or_release(record)
    return state


def _next(folder: RunFolder, state: State, to: str, place: Place, clock: Clock, take_over: bool) -> tuple[str, Claim | Moved | Release] | None:
    """The next record that the source needs, and its key."""
    _check_not_elsewhere(folder, state, to)
    last = state.controllers[-1] if state.controllers else None
    if state.moved is not None and isinstance(last, Release):
        return None
    slot = controller_key(len(state.controllers))
    if not isinstance(last, Claim) or last.incarnation != place.incarnation:
        return slot, _claim(folder, state, place, clock, take_over)
    stamp = Stamp(last.controller, clock.now(), len(state.history), len(state.requests))
    if state.moved is None:
        return history_key(len(state.history)), Moved(len(state.history), to, state.last_digest, stamp)
    return slot, Release(_reason(state), stamp)


def _claim(folder: RunFolder, state: State, place: Place, clock: Clock, take_over: bool) -> Claim:
    """As a controller's, but nobody is replaced unasked, however near. After `moved` nobody is in the way any more."""
    claims = [record for record in state.controllers if isinstance(record, Claim)]
    if not claims:
        raise ConfigError(f"run {folder.name!r} was never worked on, so there is nothing to move: begin it there, `hiernas run CONFIG --store URL`")
    last = state.charge
    if last is not None and state.moved is None:
        if any(claim.incarnation == place.incarnation for claim in claims):
            raise Overtaken(f"run {folder.name!r} was taken over by {last.owner} ({last.incarnation}): nothing was moved")
        if not take_over and not (last.executor == COPY and last.owner == place.owner):
            raise Overtaken(
                f"run {folder.name!r} is in the charge of {last.owner} ({last.incarnation}). End it first (`hiernas stop {folder.name}`, Ctrl-C); "
                "or give --take-over: if that controller is still at work, it stops"
            )
    return Claim(
        place.claim_id(len(state.controllers)), place.owner, place.incarnation, last.controller if last else None,
        COPY, claims[-1].limits, clock.now(),
    )  # fmt: skip


def _reason(state: State) -> ReleaseReason:
    """Why the run had been given up before, so that it stands there as it stood here."""
    for record in reversed(state.controllers):
        if isinstance(record, Release):
            return record.reason
        if record.executor != COPY:
            break
    return ReleaseReason.INTERRUPTED


def _copy(source: RunFolder, target: Store, there: set[str], settle: Callable[[], object], tell: Tell) -> list[str]:
    """Copy what the target lacks, `run.json` last; returns the keys of evaluations and files that could not be read.

    Ends when a list shows nothing that is not copied: then the copy is the run as it was at one moment, and so it is consistent,
    although workers, and a controller that does not know yet, may still be writing. `settle`: what to do if that one claims once more.
    """
    start = f"{source.name}/"
    moved = source.moved()
    last = f"{start}run.json"
    done = there | {last} | ({f"{start}{history_key(moved.number)}"} if moved else set())
    skipped: list[str] = []
    while new := [key for key in source.store.list(start) if key not in done]:
        for at in range(0, len(new), BATCH):
            tell(at, len(new))
            if target.list(last):  # another copy was quicker, and somebody may be at work there
                _write(target, (last, source.store.read(last)))
                return skipped
            batch = new[at : at + BATCH]
            found = list(zip(batch, at_once(partial(_read, source), batch, source.store.parallel), strict=True))
            skipped += [key for key, data in found if data is None]
            copies = [(key, data) for key, data in found if data is not None]
            for _ in at_once(partial(_write, target), copies, target.parallel):
                pass
        done |= set(new)
        if isinstance(source.read(source.keys("controllers")[-1])[0], Claim):
            settle()
    _write(target, (last, source.store.read(last)))
    return skipped


def _read(source: RunFolder, key: str) -> bytes | None:
    """What is stored there; None where that is no reason to stop: an evaluation that is no object is the platform's fault, checkpoints go away."""
    try:
        return source.store.read(key)
    except (BadObject, KeyError) as error:
        own = key.removeprefix(f"{source.name}/")
        if _is_record(source, key) and not own.startswith("evaluations/"):
            raise source.damaged(own, error) from error
        return None


def _is_record(source: RunFolder, key: str) -> bool:
    """Records are there for ever; logs, checkpoints and the like may go."""
    return key.removeprefix(f"{source.name}/").partition("/")[0] in FOLDERS


def _write(target: Store, copy: tuple[str, bytes]) -> None:
    key, data = copy
    if target.create(key, data) != data:
        raise ConfigError(f"somebody else writes where the copy goes: other bytes are at {key} there. Remove that, then give the same command again")


# -- beginning a new run from the good beginning of another


def begin_from(source: RunFolder, length: int, target: Store, to: str, tell: Tell) -> str:
    """Begin a new run of the same name in the store whose address is `to`, as if it had been interrupted after its first `length` outcomes.

    Nothing is written to the source, which may be damaged further on. The new run has an id of its own, drawn from what it is
    made of, so its records are written anew and their digests follow.
    """
    new = beginning(source, length, to)
    wrong = next((finding for finding in verify(new.store, new.name) if finding.level is Level.ERROR), None)
    if wrong is not None:
        raise source.damaged(wrong.key, f"{wrong.what}. So its first {length} outcomes are no good beginning; give a smaller --until")
    there = _there(new, target, to, True)
    if there is None:
        return f"run {source.name!r} from the first {length} outcomes is in {to} already; nothing was left to do"
    _copy(new, target, there, lambda: None, tell)
    return f"a new run {source.name!r} is in {to}, with {length} outcomes: `hiernas run CONFIG --store {to}` goes on from there"


def beginning(source: RunFolder, length: int, to: str) -> RunFolder:
    """In memory: the first outcomes with everything they depend on, and the release that an interrupted controller would have written."""
    history = _outcomes(source, length)
    new = RunFolder(MemoryStore(), source.name)
    new.begin(replace(source.run, run_id=sha256(f"{source.run.run_id}/{length}/{history[-1][1]}/{to}".encode())[:32]))
    attempts, ends = _tries(source, [outcome for outcome, _ in history])
    stamps = [one.stamp for one in attempts] + [end.stamp for end in ends] + [outcome.stamp for outcome, _ in history]
    control = max(stamp.control for stamp in stamps)
    controllers, last = _controllers(source, {stamp.controller for stamp in stamps})
    released = Release(ReleaseReason.INTERRUPTED, Stamp(last.controller, max(stamp.at for stamp in stamps), length, control))
    for number, record in enumerate([*controllers, released]):
        new.create(controller_key(number), record)
    candidates = 1 + max(outcome.candidate for outcome, _ in history)
    for folder_key, count in ((control_key, control), (candidate_key, candidates)):
        for key, record, _ in source.records([folder_key(number) for number in range(count)]):
            new.create(key, record)
    for attempt in attempts:
        new.create(attempt_key(attempt.candidate, attempt.attempt), attempt)
    for end in ends:
        new.create(end_key(end.candidate, end.attempt), end)
    previous = None
    for outcome, _ in history:
        evaluation = None if outcome.evaluation is None else _accepted(source, new, outcome)
        entry = replace(outcome, evaluation=evaluation, previous=previous)
        previous = new.create(history_key(outcome.number), entry)
    return new


def _outcomes(source: RunFolder, length: int) -> list[tuple[Outcome, str]]:
    """The first outcomes with the SHA-256 of their bytes, chained."""
    keys = source.keys("history")[: max(length, 0)]
    history: list[tuple[Outcome, str]] = []
    for key, record, digest in source.records(keys):
        if isinstance(record, Moved):
            break
        if key != history_key(len(history)) or record.previous != (history[-1][1] if history else None):
            raise source.damaged(key, "it does not follow the outcome before it. Or give a smaller --until")
        history.append((record, digest))
    if length < 1 or len(history) < length:
        there = f"run {source.name!r} has {len(history)}" if length > 0 else "at least 1 is needed"
        raise ConfigError(f"given --until {length} outcomes; {there}")
    return history


def _tries(source: RunFolder, history: list[Outcome]) -> tuple[list[Attempt], list[End]]:
    """The attempts of these outcomes up to the accepted one, and how those before it ended."""
    accepted = {outcome.candidate: outcome for outcome in history}
    keys = [attempt_key(outcome.candidate, attempt) for outcome in history for attempt in range(outcome.attempt + 1)]
    attempts: list[Attempt] = [record for _, record, _ in source.records(keys)]
    there = set(source.keys("ends"))
    ended = [key for one in attempts if (key := end_key(one.candidate, one.attempt)) in there]
    ends: list[End] = [record for _, record, _ in source.records(ended)]
    # The end of an accepted attempt may have come after its outcome.
    return attempts, [end for end in ends if end.stamp.after <= accepted[end.candidate].number]


def _controllers(source: RunFolder, wanted: set[str]) -> tuple[list[Claim | Release], Claim]:
    """The claims and releases up to the last of these claims, and that one."""
    found: list[Claim | Release] = []
    for _, record, _ in source.records(source.keys("controllers")):
        found.append(record)
        if isinstance(record, Claim):
            wanted = wanted - {record.controller}
            if not wanted:
                return found, record
    raise source.damaged(controller_key(len(found)), f"the claim {min(wanted)} is missing, under which an outcome was recorded")


def _accepted(source: RunFolder, new: RunFolder, outcome: Outcome) -> str:
    """Write the accepted evaluation anew and return its SHA-256."""
    key = evaluation_key(outcome.candidate, outcome.attempt)
    try:
        found = source.evaluation(outcome.candidate, outcome.attempt)
    except BadRecord as error:
        raise source.damaged(key, error) from error
    if found is None or found[1] != outcome.evaluation:
        raise source.damaged(key, f"its bytes are not those that {history_key(outcome.number)} accepted. Or give a smaller --until")
    return new.create(key, found[0])
