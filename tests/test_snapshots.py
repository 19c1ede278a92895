"""Snapshots spare a restart most of its reads and decide nothing: with them, without them and with bad ones, a run is the same."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import test_crash
from small_run import LIMITS, NAME, RUN, Passing, check_finished, controller, errors, work
from test_copy import contents, copy

from pipeline import snapshots
from pipeline.cli import main
from pipeline.codec import BadRecord, decode, encode, sha256
from pipeline.directory import DirectoryStore
from pipeline.errors import DamagedRun, Overtaken, StoreUnavailable
from pipeline.move import begin_from
from pipeline.requests import request
from pipeline.run import RunFolder, attempt_key, candidate_key, controller_key, end_key, history_key
from pipeline.snapshots import FOLDER, pack, snapshot_key, unpack
from pipeline.store import MAX_OBJECT_BYTES, BadObject, MemoryStore, Store
from pipeline.verify import verify
from search.evolution import Evolution
from search.records import Claim, End, EndReason, Stamp
from search.state import State

SEGMENT, COUNT = 4, 18
RUN_ID = RUN.run_id


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "SEGMENT", SEGMENT)


class Without(Passing):
    """A store whose snapshots nobody sees."""

    def read(self, key: str) -> bytes:
        """See Store."""
        assert f"/{FOLDER}/" not in key
        return super().read(key)

    def list(self, prefix: str, after: str | None = None) -> list[str]:
        """See Store."""
        return [key for key in super().list(prefix, after) if f"/{FOLDER}/" not in key]


class Counting(Passing):
    """Counts reads by folder."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.reads: Counter[str] = Counter()

    def read(self, key: str) -> bytes:
        """See Store."""
        self.reads[key.split("/")[1]] += 1
        return super().read(key)


class Altered(Passing):
    """A store with other bytes, or an exception, in some places."""

    def __init__(self, store: Store, places: dict[str, bytes | Exception]) -> None:
        super().__init__(store)
        self.places = {f"{NAME}/{key}": what for key, what in places.items()}

    def read(self, key: str) -> bytes:
        """See Store."""
        what = self.places.get(key, b"")
        if isinstance(what, Exception):
            raise what
        return what or super().read(key)


def load(store: Store) -> State:
    return RunFolder(store, NAME).load()


def keys(store: Store) -> list[str]:
    return RunFolder(store, NAME).keys(FOLDER)


def searched(count: int = COUNT, seed: int = 5, reuse: bool = False, workers: int = 1, store: Store | None = None) -> Store:
    store = store or MemoryStore()
    run = replace(RUN, seed=seed, strategy=Evolution(initial=4, initial_mutations=20, reuse=reuse))
    work(controller(store, run=run, limits=replace(LIMITS, max_evaluations=count, workers=workers)))
    return store


@pytest.fixture(scope="module")
def whole() -> Iterator[Store]:
    """A finished run with its snapshots; never changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshots, "SEGMENT", SEGMENT)
        yield searched()


def held(store: Store, key: str) -> dict[str, bytes]:
    return unpack(store.read(f"{NAME}/{key}"), key, RUN_ID)


# -- the same run


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_run_is_the_same_with_its_snapshots_and_without(seed: int, reuse: bool, workers: int) -> None:
    store = searched(seed=seed, reuse=reuse, workers=workers)
    request(RunFolder(store, NAME), {"max_evaluations": COUNT + 5}, None)
    work(controller(store, limits=replace(LIMITS, max_evaluations=COUNT), run=RunFolder(store, NAME).run))
    assert keys(store) == [snapshot_key(end) for end in range(SEGMENT, COUNT + 5, SEGMENT)]
    counting = Counting(store)
    assert load(counting) == load(Without(store))
    assert counting.reads["history"] < SEGMENT
    assert len(load(store).history) == COUNT + 5


class Rough(Passing):
    """A store to which nothing can be written now and then: its workers fail, and are tried again."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.written: Counter[str] = Counter()

    def create(self, key: str, data: bytes) -> bytes:
        """See Store."""
        folder = key.split("/")[1]
        self.written[folder] += 1
        if folder == "evaluations" and self.written[folder] % 3 == 0:
            return super().create(key, b"no evaluation")
        return super().create(key, data)


def test_retries_and_ends_are_held_too() -> None:
    store = searched(store=Rough(MemoryStore()))
    state = load(store)
    assert state == load(Without(store))
    assert sum(state.totals.ends.values()) > 3
    assert any(key.startswith("ends/") for name in keys(store) for key in held(store, name))
    assert any(len(story.attempts) > 1 for story in state.stories)


def late_end(store: Store) -> None:
    """The first attempt of candidate 0 was accepted; its end lands afterwards."""
    claim = load(store).controllers[0]
    assert isinstance(claim, Claim)
    stamp = Stamp(claim.controller, 2e6, COUNT, 0)
    RunFolder(store, NAME).create(end_key(0, 0), End(0, 0, EndReason.KILLED, "", None, None, 1.0, 0.0, (), stamp))


def test_an_end_that_is_recorded_after_its_snapshot_is_read_itself() -> None:
    store = searched()
    before = load(store)
    late_end(store)
    assert end_key(0, 0) not in held(store, keys(store)[0])
    after = load(store)
    assert after == load(Without(store))
    assert (after.stories[0].ends.keys(), before.stories[0].ends.keys()) == ({0}, set())


def test_a_segment_waits_for_the_attempts_of_its_candidates() -> None:
    store = searched(SEGMENT)
    state = load(store)
    state.unfinished[2] = state.stories[2]
    fresh = MemoryStore()
    folder = RunFolder(fresh, NAME)
    folder.begin(RUN)
    assert not folder.keep(state)
    assert keys(fresh) == []
    state.unfinished.clear()
    assert folder.keep(state)
    assert keys(fresh) == [snapshot_key(SEGMENT)]
    assert not folder.keep(state)


def test_a_run_of_an_older_version_gets_its_snapshots_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "SEGMENT", 1000)
    store = searched()
    assert keys(store) == []
    monkeypatch.setattr(snapshots, "SEGMENT", SEGMENT)
    request(RunFolder(store, NAME), {"max_evaluations": COUNT + 6}, None)
    work(controller(store))
    assert keys(store) == [snapshot_key(end) for end in range(SEGMENT, COUNT + 6 + 1, SEGMENT)]
    assert load(store) == load(Without(store))


def test_a_snapshot_of_the_same_records_is_the_same_whoever_writes_it() -> None:
    store = searched()
    state = load(store)
    for key in keys(store):
        again = MemoryStore()
        folder = RunFolder(again, NAME)
        folder.begin(RUN)
        for _ in keys(store):
            folder.keep(state)
        assert again.read(f"{NAME}/{key}") == store.read(f"{NAME}/{key}")
        assert all(data == RunFolder(store, NAME).raw(own) for own, data in held(store, key).items())


# -- what it saves


def test_a_restart_reads_a_segment_in_one_request() -> None:
    for count in (SEGMENT, 5 * SEGMENT, 5 * SEGMENT + 2, 20 * SEGMENT + 2):
        store = searched(count)
        there = len(keys(store))
        left = count - there * SEGMENT
        assert left < 2 * SEGMENT
        counting = Counting(store)
        load(counting)
        # One claim and one release. The last outcome is read itself, also where a snapshot holds it.
        assert counting.reads == Counter(
            {"run.json": 1, "controllers": 2, FOLDER: there, "candidates": left, "attempts": left, "history": max(left, 1)}
        ) - Counter()  # fmt: skip


def test_a_second_look_reads_what_is_new() -> None:
    store = searched()
    counting = Counting(store)
    folder = RunFolder(counting, NAME)
    folder.load()
    counting.reads.clear()
    assert folder.load() == load(store)
    assert counting.reads == Counter(history=1)
    late_end(store)
    counting.reads.clear()
    assert folder.load() == load(Without(store))
    assert counting.reads == Counter(history=1, ends=1)


# -- bad ones


def rewritten(objects: dict[str, bytes], change: Callable[[str, object], object]) -> list[bytes]:
    """The same objects with records changed, each in canonical form."""
    return [encode(change(key, decode(data, key, RUN_ID)), key, RUN_ID) for key, data in objects.items()]  # type: ignore[arg-type]


def worse(key: str, record: object) -> object:
    """A record of the history with another fitness."""
    return replace(record, fitness=0.5) if key.startswith("history/") else record  # type: ignore[type-var]


def forged_chain(store: Store) -> dict[str, bytes | Exception]:
    """Every snapshot rewritten with other fitnesses, the digests following."""
    previous, places = None, dict[str, bytes | Exception]()
    for key in keys(store):
        lines = []
        for own, data in held(store, key).items():
            record = decode(data, own, RUN_ID)
            if own.startswith("history/"):
                record = replace(record, fitness=0.5, previous=previous)
                data = encode(record, own, RUN_ID)
                previous = sha256(data)
            lines.append(data)
        places[key] = pack(lines, key, RUN_ID)
    return places


def bad_ones(store: Store) -> Iterator[tuple[str, dict[str, bytes | Exception]]]:
    """Names, and what lies in the place of snapshots."""
    first, second = snapshot_key(SEGMENT), snapshot_key(2 * SEGMENT)
    data, objects = store.read(f"{NAME}/{first}"), held(store, first)
    lines = list(objects.values())
    yield "empty", {first: b"\n"}
    yield "truncated at every line", {first: b"\n".join(data.split(b"\n")[:3])}
    yield "truncated within a line", {first: data[:-5]}
    yield "with a byte changed", {first: data.replace(b'"seed":', b'"seed":1', 1)}
    yield "with more behind it", {first: data + lines[0]}
    yield "no text", {first: b"\xff\x00" * 500}
    yield "of another run", {first: pack(lines, first, "b" * 32)}
    yield "with objects of another run", {first: pack([line.replace(RUN_ID.encode(), b"b" * 32) for line in lines], first, RUN_ID)}
    yield "of another version", {first: data.replace(b'"schema_name":"snapshot","sha256"', b'"schema_name":"snapshut","sha256"', 1)}
    yield "with records of another version", {first: pack([line.replace(b'"version":1', b'"version":2') for line in lines], first, RUN_ID)}
    yield "in another's place", {first: store.read(f"{NAME}/{second}"), second: data}
    yield "with an object twice", {first: pack([*lines, lines[0]], first, RUN_ID)}
    claim = controller_key(0)
    yield "with a claim", {first: pack(rewritten({claim: store.read(f"{NAME}/{claim}")}, lambda _, one: replace(one, owner="else")), first, RUN_ID)}  # type: ignore[type-var]
    yield "with an unknown field", {first: pack([line.replace(b'"record":{', b'"record":{"more":1,') for line in lines], first, RUN_ID)}
    yield "with a field twice", {first: pack([line.replace(b'"record":{', b'"record":{"index":0,') for line in lines], first, RUN_ID)}
    yield "with a number that is none", {first: pack([line.replace(b'"fitness":', b'"fitness":NaN,"_":') for line in lines], first, RUN_ID)}
    yield "too deep", {first: pack([b'{"key":"candidates/000000.json","record":' + b"[" * 100_000 + b"\n"], first, RUN_ID)}
    yield "stale, with less", {first: pack(lines[:2], first, RUN_ID)}
    yield "with objects that nobody has", {first: pack([*lines, rewritten({candidate_key(0): lines[0]}, lambda _, one: one)[0].replace(b"000000", b"099999")], first, RUN_ID)}  # fmt: skip
    yield "with another fitness", {first: pack(rewritten(objects, worse), first, RUN_ID)}
    yield "forged, the chain too", forged_chain(store)
    yield "too large", {first: BadObject("too large")}
    yield "gone since it was listed", {first: KeyError(first)}


BAD = [
    "empty", "truncated at every line", "truncated within a line", "with a byte changed", "with more behind it", "no text", "of another run",
    "with objects of another run", "of another version", "with records of another version", "in another's place", "with an object twice", "with a claim",
    "with an unknown field", "with a field twice", "with a number that is none", "too deep", "stale, with less", "with objects that nobody has",
    "with another fitness", "forged, the chain too", "too large", "gone since it was listed",
]  # fmt: skip


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("count", [COUNT, 4 * SEGMENT])  # with outcomes behind the last snapshot, and without
def test_a_bad_snapshot_changes_nothing(what: str, count: int) -> None:
    store = searched(count)
    places = dict(bad_ones(store))[what]
    bad = Altered(store, places)
    assert load(bad) == load(Without(store))
    assert errors(bad) == []
    request(RunFolder(bad, NAME), {"max_evaluations": count + SEGMENT}, None)
    work(controller(bad))
    check_finished(bad, count + SEGMENT)
    assert verify(bad, NAME) == []
    assert load(bad) == load(Without(store))


def test_every_kind_of_bad_snapshot_is_tried(whole: Store) -> None:
    assert [name for name, _ in bad_ones(whole)] == BAD


def test_whatever_byte_is_changed_it_is_no_snapshot(whole: Store) -> None:
    key = snapshot_key(SEGMENT)
    data = whole.read(f"{NAME}/{key}")
    for at in range(0, len(data), 7):
        with pytest.raises(BadRecord):
            unpack(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], key, RUN_ID)
        with pytest.raises(BadRecord):
            unpack(data[:at], key, RUN_ID)


def test_a_forged_candidate_is_trusted_as_one_in_its_own_place_would_be(whole: Store) -> None:
    """The limit: whoever may write into the store and is quicker than the controller. Nothing is lost: verify reads the records themselves."""
    first = snapshot_key(SEGMENT)
    lines = rewritten(held(whole, first), lambda key, one: replace(one, seed=1) if key == candidate_key(1) else one)  # type: ignore[type-var]
    forged = Altered(whole, {first: pack(lines, first, RUN_ID)})
    assert load(forged).stories[1].candidate.seed == 1
    assert verify(forged, NAME) == []


class Lost(Altered):
    """A store that has lost one object."""

    def __init__(self, store: Store, key: str) -> None:
        super().__init__(store, {key: KeyError(key)})

    def list(self, prefix: str, after: str | None = None) -> list[str]:
        """See Store."""
        return [key for key in super().list(prefix, after) if key not in self.places]


@pytest.mark.parametrize("key", [candidate_key(1), attempt_key(1, 0), history_key(1), history_key(SEGMENT - 1)])
def test_a_record_that_is_gone_is_missed_although_a_snapshot_holds_it(key: str) -> None:
    store = searched()
    told = []
    for one in (Lost(store, key), Without(Lost(store, key))):
        with pytest.raises(DamagedRun) as raised:
            load(one)
        told.append(str(raised.value))
    assert told[0] == told[1]


def test_damage_behind_the_snapshots_is_told_as_without_them() -> None:
    store = searched()
    for key in (history_key(COUNT - 1), candidate_key(COUNT - 1), attempt_key(COUNT - 1, 0)):
        told = []
        for one in (Altered(store, {key: b"{}"}), Without(Altered(store, {key: b"{}"}))):
            with pytest.raises(DamagedRun) as raised:
                load(one)
            told.append(str(raised.value))
        assert told[0] == told[1]


@pytest.mark.parametrize("segment", [SEGMENT, 1000])
def test_a_reader_that_saw_damage_sees_that_it_was_repaired(segment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "SEGMENT", segment)
    whole = searched()
    for store in (Altered(whole, {history_key(COUNT - 1): b"{}"}), Lost(whole, candidate_key(1)), Lost(whole, history_key(1))):
        folder = RunFolder(store, NAME)
        for _ in range(2):
            with pytest.raises(DamagedRun):
                folder.load()
        store.places.clear()
        assert folder.load() == load(Without(store))


# -- writing them


class Refusing(Passing):
    """A store that takes no snapshot."""

    def __init__(self, store: Store, error: Exception) -> None:
        super().__init__(store)
        self.error, self.asked = error, Counter[str]()

    def create(self, key: str, data: bytes) -> bytes:
        """See Store."""
        if f"/{FOLDER}/" in key:
            self.asked[key] += 1
            raise self.error
        return super().create(key, data)


@pytest.mark.parametrize("error", [StoreUnavailable("denied"), BadObject("too large")])
def test_a_store_that_refuses_snapshots_stops_nothing(error: Exception) -> None:
    store = Refusing(MemoryStore(), error)
    searched(store=store)
    check_finished(store, COUNT)
    assert store.asked == Counter({f"{NAME}/{snapshot_key(end)}": 1 for end in range(SEGMENT, COUNT, SEGMENT)})


def test_a_snapshot_larger_than_an_object_may_be_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.store.MAX_OBJECT_BYTES", 3000)
    store = searched()
    check_finished(store, COUNT)
    assert keys(store) == []


def test_the_largest_segment_of_usual_records_is_far_from_the_limit(whole: Store) -> None:
    most = max(len(whole.read(f"{NAME}/{key}")) for key in keys(whole))
    assert most / SEGMENT * 128 < MAX_OBJECT_BYTES / 16


def test_a_run_survives_a_crash_before_and_after_every_write_snapshots_included(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "SEGMENT", 2)

    def check(store: Store) -> None:
        check_finished(store, test_crash.COUNT)
        assert load(store) == load(Without(store))

    written = Fragments()
    monkeypatch.setattr(test_crash, "check", check)
    monkeypatch.setattr(test_crash, "MemoryStore", written.store)
    test_crash.test_a_run_survives_a_crash_before_and_after_every_write()
    test_crash.test_a_run_survives_a_crash_at_every_write_of_every_life()
    assert min(len(keys(store)) for store in written.stores) >= test_crash.COUNT // 2 - 1
    assert max(len(keys(store)) for store in written.stores) == test_crash.COUNT // 2


class Fragments:
    """Keeps the stores that a test made."""

    def __init__(self) -> None:
        self.stores: list[Store] = []

    def store(self) -> MemoryStore:
        """A new one."""
        self.stores.append(made := MemoryStore())
        return made


# -- who else meets them


def test_verify_does_not_look_at_them(whole: Store) -> None:
    assert keys(whole) != []
    assert verify(Altered(whole, dict.fromkeys(keys(whole), AssertionError("verify read a snapshot"))), NAME) == []


def test_damaged_files_of_snapshots_stop_no_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "runs"
    searched(store=DirectoryStore(root))
    folder = root / NAME / FOLDER
    files = sorted(folder.iterdir())
    files[0].write_bytes(b"")
    with files[1].open("ab") as file:
        file.truncate(MAX_OBJECT_BYTES + 1)
    files[2].unlink()
    files[2].mkdir()
    (folder / "notes.json").write_text(json.dumps({"a": 1}))
    for command in (f"verify {NAME}", f"status {NAME}", f"show {NAME} 3", "ls"):
        assert main([*command.split(), "--store", str(root)]) == 0
    assert "error" not in capsys.readouterr().out
    shutil.rmtree(folder)
    assert main(["status", NAME, "--store", str(root)]) == 0


def test_a_run_moves_with_its_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = searched(), MemoryStore()
    copy(source, target)
    assert {key: target.read(f"{NAME}/{key}") for key in keys(target)} == {key: source.read(f"{NAME}/{key}") for key in keys(source)}
    counting = Counting(target)
    assert load(counting) == load(Without(target))
    assert counting.reads["history"] <= SEGMENT
    assert load(source) == load(Without(source))  # which ends with `moved`
    with pytest.raises(Overtaken):
        work(controller(source))


def test_a_bad_snapshot_does_not_keep_a_run_from_moving() -> None:
    source, target = searched(), MemoryStore()
    bad = snapshot_key(SEGMENT)
    told = copy(Altered(source, {bad: BadObject("too large")}), target)
    assert f"left behind, it cannot be read: {NAME}/{bad}" in told
    assert load(target) == load(Without(target))


def test_a_run_begun_from_the_beginning_of_another_takes_no_snapshot_along() -> None:
    source, target = searched(), MemoryStore()
    begin_from(RunFolder(source, NAME), 10, target, "elsewhere", lambda *_: None)
    assert keys(target) == []
    assert not any(f"/{FOLDER}/" in key for key in contents(target))
    work(controller(target, run=RunFolder(target, NAME).run, limits=replace(LIMITS, max_evaluations=COUNT)))
    assert len(keys(target)) == COUNT // SEGMENT
    assert load(target) == load(Without(target))
