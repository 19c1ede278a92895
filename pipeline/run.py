"""A run's folder in a store: typed records under their keys, and the state that they add up to."""

import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

from pipeline import snapshots
from pipeline.codec import BadRecord, decode, encode, sha256
from pipeline.errors import ConfigError, DamagedRun, Unavailable
from pipeline.snapshots import snapshot_key
from pipeline.store import BadObject, Store, at_once, read_many
from search.records import Attempt, End, Evaluation, Moved, Outcome, Record, Run
from search.state import Inconsistent, State, Story

log = logging.getLogger("hiernas.run")


class SlotTaken(Exception):
    """Somebody else's bytes are in the slot that was to be written."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def controller_key(number: int) -> str:
    """Slot of the number-th claim or release."""
    return f"controllers/{number:06d}.json"


def control_key(number: int) -> str:
    """Slot of the number-th request."""
    return f"control/{number:06d}.json"


def candidate_key(index: int) -> str:
    """Slot of a candidate."""
    return f"candidates/{index:06d}.json"


def attempt_key(candidate: int, attempt: int) -> str:
    """Slot of an attempt."""
    return f"attempts/{candidate:06d}-{attempt}.json"


def evaluation_key(candidate: int, attempt: int) -> str:
    """Slot of what an attempt found."""
    return f"evaluations/{candidate:06d}-{attempt}.json"


_EVALUATION = re.compile(r"evaluations/([0-9]{6,})-[0-9]+\.json")


def end_key(candidate: int, attempt: int) -> str:
    """Slot of an attempt's end."""
    return f"ends/{candidate:06d}-{attempt}.json"


def history_key(number: int) -> str:
    """Slot of an outcome."""
    return f"history/{number:06d}.json"


class RunFolder:
    """Typed access to one run. Keys in here are relative to the run's folder."""

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.name = name
        self._run: Run | None = None
        self._known: dict[str, tuple[Any, str]] = {}
        """What `load` has read so far, with the SHA-256 of its bytes: a record never changes, so each is read once."""
        self._slots: dict[str, list[str]] = {}
        """Keys that `load` has found in folders that fill slot by slot: only what follows is listed again."""
        self._kept: int | None = None
        """Length of the history that snapshots hold, as far as this one has looked; None: not at all."""

    @property
    def run(self) -> Run:
        """`run.json`, read once."""
        if self._run is None:
            try:
                data = self.store.read(f"{self.name}/run.json")
            except BadObject as error:
                raise self.damaged("run.json", error) from error
            except KeyError:
                self._check_untouched()
                raise ConfigError(f"the store has no run {self.name!r}; `hiernas ls` lists those it has, `hiernas run CONFIG` begins one") from None
            try:
                record = decode(data, "run.json", None)
            except BadRecord as error:
                raise self.damaged("run.json", error) from error
            if record.name != self.name:
                raise self.damaged("run.json", f"it is of run {record.name!r}: the folder was renamed")
            self._run = record
        assert self._run is not None
        return self._run

    def begin(self, run: Run) -> Run:
        """Create `run.json`, or read the one that is there. DamagedRun if there are records of a run that has none."""
        self._check_untouched()
        self.store.create(f"{self.name}/run.json", encode(run, "run.json", run.run_id))
        return self.run

    def exists(self) -> bool:
        """Whether there is anything of the run."""
        return bool(self.store.list(f"{self.name}/"))

    def _check_untouched(self) -> None:
        """Records without a `run.json` are a run that lost it: another one must not be begun over them."""
        key = f"{self.name}/run.json"
        if not self.store.list(key) and (found := self.store.list(f"{self.name}/")) and key not in found:
            raise self.damaged("run.json", f"it is missing, though there are other records ({len(found)} of them; `hiernas copy` brings it last)")

    def keys(self, folder: str, after: str | None = None) -> list[str]:
        """Sorted keys of a folder's objects, past `after` where given."""
        start = f"{self.name}/"
        found = self.store.list(f"{start}{folder}/", start + after if after else None)
        return [key.removeprefix(start) for key in found]

    def keys_of(self, folder: str, candidate: int) -> list[str]:
        """Sorted keys of a folder's objects of one candidate ('000017-0.json', …)."""
        start = f"{self.name}/"
        return [key.removeprefix(start) for key in self.store.list(f"{start}{folder}/{candidate:06d}-")]

    def evaluated(self, first: int, end: int) -> set[int]:
        """Candidates, from `first` to before `end`, of whose attempts at least one has written an evaluation."""
        after = f"evaluations/{first:06d}" if end <= 1_000_000 else None  # of longer numbers, keys are in another order
        found = (_EVALUATION.fullmatch(key) for key in self.keys("evaluations", after))
        return {index for one in found if one is not None and first <= (index := int(one[1])) < end}

    def raw(self, key: str) -> bytes:
        """What is stored there; KeyError when absent."""
        return self.store.read(f"{self.name}/{key}")

    def create(self, key: str, record: Record) -> str:
        """Write a record into its slot and return the SHA-256 of its bytes; SlotTaken if other bytes are there."""
        data = encode(record, key, self.run.run_id)
        if self.store.create(f"{self.name}/{key}", data) != data:
            raise SlotTaken(key)
        return sha256(data)

    def note(self, key: str, text: str) -> None:
        """Write what is no record and decides nothing; its key must be new."""
        self.store.create(f"{self.name}/{key}", text.encode())

    def digest(self, key: str, record: Record) -> str:
        """SHA-256 of a record's bytes in its slot: as they were read, since an older version may have written them."""
        return self._known[key][1] if key in self._known else sha256(encode(record, key, self.run.run_id))

    def read(self, key: str) -> tuple[Any, str]:
        """The record in a slot and its SHA-256. DamagedRun when it is absent or not valid."""
        try:
            return self._decoded(key, self.raw(key))
        except KeyError:
            raise self._missing(key) from None
        except BadObject as error:
            raise self.damaged(key, error) from error

    def _decoded(self, key: str, data: bytes) -> tuple[Any, str]:
        try:
            return decode(data, key, self.run.run_id), sha256(data)
        except BadRecord as error:
            raise self.damaged(key, error) from error

    def _missing(self, key: str) -> DamagedRun:
        return self.damaged(key, "it is missing, though a later record was written only after it")

    def records(self, keys: list[str]) -> Iterator[tuple[str, Any, str]]:
        """The records in these slots, in their order. DamagedRun as in `read`."""
        found = read_many(self.store, [f"{self.name}/{key}" for key in keys])
        for key in keys:
            try:
                data = next(found)
            except KeyError:
                raise self._missing(key) from None
            except BadObject as error:
                raise self.damaged(key, error) from error
            yield key, *self._decoded(key, data)

    def evaluation(self, candidate: int, attempt: int) -> tuple[Evaluation, str] | None:
        """What an attempt found and its SHA-256, None if there is nothing yet. BadRecord when it is not valid: never a reason to stop."""
        key = evaluation_key(candidate, attempt)
        try:
            data = self.raw(key)
        except KeyError:
            return None
        except BadObject as error:
            raise BadRecord(f"{key}: {error}") from error
        record: Evaluation = decode(data, key, self.run.run_id)
        if (record.candidate, record.attempt) != (candidate, attempt):
            raise BadRecord(f"{key}: is of candidate {record.candidate}, attempt {record.attempt}")
        return record, sha256(data)

    def moved(self, after: str | None = None) -> Moved | None:
        """The entry that ends the history if the run was moved away; looked for past `after`, a key of the history, where given."""
        keys = self.keys("history", after)
        last = self.read(keys[-1])[0] if keys else None
        return last if isinstance(last, Moved) else None

    def elsewhere(self, moved: Moved) -> str:
        """What a person should know who wants something decided here."""
        return f"run {self.name!r} was moved to {moved.to} after {moved.number} outcomes: go on there, with --store {moved.to}"

    def damaged(self, key: str, what: object) -> DamagedRun:
        """The error for an object that is not what it must be."""
        return DamagedRun(
            f"run {self.name!r} is damaged at {self.name}/{key}: {str(what).removeprefix(key + ': ')}. Nothing was changed. "
            f"`hiernas verify {self.name}` lists all that is wrong; restore the object from a backup or begin a new run"
        )

    def load(self) -> State:
        """Fold every record. DamagedRun where they do not add up: said only of what all objects themselves hold, read anew and without snapshots."""
        if not self._known:
            self._known = self._from_snapshots()
        remembered = bool(self._known)
        try:
            return self._add_up()
        except DamagedRun as error:
            self._known, self._slots = {}, {}
            if not remembered:
                raise
            log.warning("reading every object again, without snapshots run=%s error=%s", self.name, error)
        return self._add_up()

    def _add_up(self) -> State:
        """What depends is listed before what it depends on, so a live run reads as a whole."""
        state = State(self.run)
        history, ends, attempts = self._filled("history"), self.keys("ends"), self.keys("attempts")
        candidates, requests, controllers = self._filled("candidates"), self.keys("control"), self.keys("controllers")
        if history:
            self._known.pop(history[-1], None)  # the chain goes back from it: read itself, it vouches for every outcome that a snapshot holds
        self._fold(requests, control_key, lambda record, _: state.request(record))
        self._fold(controllers, controller_key, lambda record, _: state.claim_or_release(record))
        self._fold(candidates, candidate_key, lambda record, _: state.candidate(record))
        self._fold(attempts, None, lambda record, _: state.attempt(record))
        self._fold(ends, None, lambda record, _: state.end(record))
        self._fold(history, history_key, lambda record, digest: _fold_entry(state, record, digest))
        return state

    def _fold(self, keys: list[str], slot: Callable[[int], str] | None, apply: Callable[[Any, str], None]) -> None:
        if slot is None:
            keys = _in_order(keys)
        else:
            for at, key in enumerate(keys):
                if key != slot(at):
                    raise self.damaged(slot(at), f"it is missing, the next one found is {key}")
        for key, record, digest in self._remembered(keys):
            if slot is None and key != _own_key(record):
                raise self.damaged(key, "its name does not fit its content")
            try:
                apply(record, digest)
            except Inconsistent as error:
                raise self.damaged(key, error) from error

    def _filled(self, folder: str) -> list[str]:
        """Sorted keys of a folder in which slot n+1 is filled after slot n."""
        before = self._slots.get(folder, [])
        self._slots[folder] = before + self.keys(folder, before[-1] if before else None)
        return self._slots[folder]

    def _remembered(self, keys: list[str]) -> Iterator[tuple[str, Any, str]]:
        """As `records`, but nothing is read twice."""
        new = self.records([key for key in keys if key not in self._known])
        for key in keys:
            if key not in self._known:
                _, *found = next(new)
                self._known[key] = (found[0], found[1])
            yield key, *self._known[key]

    # -- snapshots (pipeline.snapshots)

    def _from_snapshots(self) -> dict[str, tuple[Any, str]]:
        """Every record that a snapshot holds, with its SHA-256."""
        found: dict[str, tuple[Any, str]] = {}
        for held in at_once(self._snapshot, self.keys(snapshots.FOLDER), self.store.parallel):
            found |= held
        return found

    def _snapshot(self, key: str) -> dict[str, tuple[Any, str]]:
        try:
            run_id = self.run.run_id
            held = snapshots.unpack(self.raw(key), key, run_id)
            return {own: (decode(data, own, run_id), sha256(data)) for own, data in held.items()}
        except (KeyError, BadObject, BadRecord) as error:
            log.info("ignored a snapshot run=%s key=%s error=%s", self.name, key, error)
            return {}

    def keep(self, state: State) -> bool:
        """Write the next snapshot that there is none of, once nothing that it holds is open; whether it did. A store that refuses it stops nothing."""
        if self._kept is None:
            there = set(self.keys(snapshots.FOLDER)) if len(state.history) >= snapshots.SEGMENT else set()
            self._kept = 0
            while snapshot_key(self._kept + snapshots.SEGMENT) in there:
                self._kept += snapshots.SEGMENT
        end = self._kept + snapshots.SEGMENT
        if len(state.history) < end or any(outcome.candidate in state.unfinished for outcome in state.history[self._kept : end]):
            return False
        outcomes, self._kept = state.history[self._kept : end], end
        stories = [state.stories[outcome.candidate] for outcome in outcomes]
        key, run_id = snapshot_key(end), self.run.run_id
        held = [encode(record, own, run_id) for own, record in _records_of(stories)]
        try:
            self.store.create(f"{self.name}/{key}", snapshots.pack(held, key, run_id))
        except (Unavailable, BadObject) as error:
            log.warning("no snapshot: a restart reads its records one by one run=%s key=%s error=%s", self.name, key, error)
            return False
        return True


def _records_of(stories: list[Story]) -> Iterator[tuple[str, Record]]:
    """What a snapshot of these candidates holds, each with its key."""
    for story in stories:
        index = story.candidate.index
        yield candidate_key(index), story.candidate
        yield from ((attempt_key(index, attempt.attempt), attempt) for attempt in story.attempts)
        yield from ((end_key(index, attempt), end) for attempt, end in sorted(story.ends.items()))
        if story.outcome is not None:
            yield history_key(story.outcome.number), story.outcome


def _fold_entry(state: State, record: Outcome | Moved, digest: str) -> None:
    if isinstance(record, Moved):
        state.move(record)
    else:
        state.outcome(record, digest)


def _in_order(keys: list[str]) -> list[str]:
    """By candidate and attempt as numbers (attempt 10 comes after 9)."""

    def numbers(key: str) -> tuple[str, int]:
        candidate, _, attempt = key.removesuffix(".json").rpartition("-")
        return candidate, int(attempt) if attempt.isdigit() else -1

    return sorted(keys, key=numbers)


def _own_key(record: Attempt | End) -> str:
    make = attempt_key if isinstance(record, Attempt) else end_key
    return make(record.candidate, record.attempt)
