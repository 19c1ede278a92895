"""The controller over a store in memory, a trainer that only the seed decides and a clock that stands still."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from small_run import COUNT, LIMITS, NAME, RUN, Passing, check_finished, controller, errors, work

from pipeline.codec import sha256
from pipeline.controller import Controller, Place
from pipeline.errors import DamagedRun, Overtaken
from pipeline.executor import Job, JobSpec, JobStatus, Waiting
from pipeline.labels import namespace_of, pod_owner
from pipeline.requests import request
from pipeline.run import RunFolder, attempt_key, candidate_key, history_key
from pipeline.store import MemoryStore, Store
from search.evolution import Evolution
from search.limits import Desire, Limits
from search.records import (
    CONTROLLER,
    Claim,
    Constraints,
    EndReason,
    OutcomeKind,
    ReleaseReason,
)
from search.space import PAPER_PRIMITIVES, Space
from search.space import Level as SpaceLevel


class Late(Passing):
    """A store in which a person's request lands right behind the first release."""

    asked = False

    def create(self, key: str, data: bytes) -> bytes:
        """See Store."""
        stored = super().create(key, data)
        if b'"kind":"release"' in data and not self.asked:
            self.asked = True
            request(RunFolder(self.store, NAME), {"max_evaluations": COUNT + 2}, None)
        return stored


def steps(one: Controller) -> ReleaseReason:
    """Step one that is in charge until it gives up its charge."""
    return next(reason for _ in range(1000) if (reason := one.step()[1]) is not None)


@pytest.fixture(scope="module")
def finished() -> MemoryStore:
    """A whole run; copy it before changing anything."""
    store = MemoryStore()
    assert work(controller(store)) is ReleaseReason.FINISHED
    return store


def changed(store: Store, changes: dict[str, bytes | None]) -> MemoryStore:
    """A copy with other bytes under some keys of the run; None: without the object."""
    copy = MemoryStore()
    full = {f"{NAME}/{key}": data for key, data in changes.items()}
    assert set(full) <= set(store.list(""))
    for key in store.list(""):
        data = full.get(key, store.read(key))
        if data is not None:
            copy.create(key, data)
    return copy


# -- a run in good order


def test_a_run_finishes_and_is_whole(finished: MemoryStore) -> None:
    check_finished(finished)
    folder = RunFolder(finished, NAME)
    state = folder.load()
    assert all(outcome.outcome is OutcomeKind.EVALUATED and outcome.attempt == 0 for outcome in state.history)
    assert state.best is not None
    assert state.best.fitness == max(outcome.fitness or 0 for outcome in state.history)
    assert [story.candidate.parent is None for story in state.stories] == [index < 4 for index in range(COUNT)]
    assert max(story.attempts[0].open for story in state.stories) == LIMITS.workers - 1


def test_a_finished_run_has_nothing_to_do(finished: MemoryStore) -> None:
    store = changed(finished, {})
    assert work(controller(store)) is None
    assert work(controller(store, owner="you@there")) is None
    assert store.list("") == finished.list("")


def test_the_same_run_twice_has_the_same_candidates_and_fitnesses(finished: MemoryStore) -> None:
    again = MemoryStore()
    work(controller(again))
    for key in finished.list(f"{NAME}/candidates/"):
        assert again.read(key) == finished.read(key)
    one, two = (RunFolder(store, NAME).load().history for store in (finished, again))
    assert [(outcome.candidate, outcome.fitness) for outcome in one] == [(outcome.candidate, outcome.fitness) for outcome in two]


def test_a_request_that_lands_behind_the_release_is_served_under_a_claim_of_its_own() -> None:
    store = MemoryStore()
    assert work(controller(Late(store))) is ReleaseReason.FINISHED
    check_finished(store, COUNT + 2)
    claims = [one.controller for one in RunFolder(store, NAME).load().controllers if isinstance(one, Claim)]
    assert len(set(claims)) == len(claims) == 2


def test_claiming_before_work_is_a_claim_of_its_own() -> None:
    store = MemoryStore()
    one = controller(store)
    assert one.claim()
    assert work(one) is ReleaseReason.FINISHED
    check_finished(store)


def test_a_finished_run_goes_on_when_extended(finished: MemoryStore) -> None:
    store = changed(finished, {})
    request(RunFolder(store, NAME), {"max_evaluations": COUNT + 3}, None)
    assert work(controller(store)) is ReleaseReason.FINISHED
    check_finished(store, COUNT + 3)


# -- two controllers


def test_another_owner_is_refused_and_takes_over_only_when_told() -> None:
    store = MemoryStore()
    first = controller(store)
    assert first.claim()
    for _ in range(3):
        assert first.step()[1] is None
    before = store.list("")
    with pytest.raises(Overtaken, match="me@here"):
        controller(store, owner="you@there").claim()
    assert store.list("") == before
    assert first.step()[1] is None  # the refused one has disturbed nothing
    second = controller(store, owner="you@there", take_over=True)
    assert second.claim()
    before = store.list("")
    with pytest.raises(Overtaken, match="you@there"):
        first.step()
    with pytest.raises(Overtaken):
        first.claim()
    assert store.list("") == before
    assert steps(second) is ReleaseReason.FINISHED
    check_finished(store)


def test_the_same_owner_takes_over_silently() -> None:
    store = MemoryStore()
    first = controller(store)
    first.claim()
    first.step()
    second = controller(store)
    assert second.claim()
    with pytest.raises(Overtaken):
        first.step()
    claim = RunFolder(store, NAME).load().controllers[-1]
    assert isinstance(claim, Claim)
    earlier = RunFolder(store, NAME).load().controllers[-2]
    assert isinstance(earlier, Claim)
    assert claim.follows == earlier.controller != claim.controller
    assert steps(second) is ReleaseReason.FINISHED
    check_finished(store)


# -- requests


def steps_until(one: Controller, outcomes: int) -> None:
    while len(one.state.history) < outcomes:
        assert one.step()[1] is None


@pytest.mark.parametrize("desire", [Desire.STOP, Desire.STOP_NOW])
def test_a_stopped_run_stays_stopped_until_it_is_resumed(desire: Desire) -> None:
    store = MemoryStore()
    one = controller(store)
    one.claim()
    steps_until(one, 5)
    request(one.folder, {}, desire)
    assert steps(one) is ReleaseReason.STOPPED
    assert errors(store) == []
    stopped = store.list("")
    assert 5 <= len(store.list(f"{NAME}/history/")) < COUNT
    for _ in range(3):
        assert work(controller(store)) is None
    request(one.folder, {"workers": 3}, None)  # says nothing of going on
    assert work(controller(store)) is None
    assert len(store.list("")) == len(stopped) + 1
    request(one.folder, {}, Desire.RUN)
    assert work(controller(store)) is ReleaseReason.FINISHED
    check_finished(store)


def test_lowered_workers_are_kept_also_after_a_restart() -> None:
    store = MemoryStore()
    one = controller(store)
    one.claim()
    steps_until(one, 6)
    request(one.folder, {"workers": 1}, None)
    steps_until(one, 12)
    two = controller(store)  # configured with 4, as at the first start
    assert two.claim()
    assert two.state.limits == replace(LIMITS, workers=1)
    assert steps(two) is ReleaseReason.FINISHED
    check_finished(store)
    attempts = [attempt for story in RunFolder(store, NAME).load().stories for attempt in story.attempts]
    assert max(attempt.open for attempt in attempts if attempt.stamp.control == 0) == 3
    assert {attempt.open for attempt in attempts if attempt.stamp.control == 1} == {0}


# -- what the controller answers


def test_unbuildable_candidates_are_answered_by_the_controller() -> None:
    space = Space("tiny", PAPER_PRIMITIVES, (SpaceLevel(1, 2),))
    run = replace(RUN, space=space, strategy=Evolution(initial=12, initial_mutations=3))
    store = MemoryStore()
    assert work(controller(store, run=run)) is ReleaseReason.FINISHED
    check_finished(store)
    state = RunFolder(store, NAME).load()
    unbuildable = [outcome for outcome in state.history if outcome.outcome is OutcomeKind.UNBUILDABLE]
    assert 0 < len(unbuildable) < COUNT
    for outcome in state.history:
        attempt = state.stories[outcome.candidate].attempts[outcome.attempt]
        assert (attempt.executor == CONTROLLER) == (outcome in unbuildable)
        assert (outcome.fitness is None) == (outcome in unbuildable)
    parents = {story.candidate.parent for story in state.stories}
    assert not parents & {outcome.candidate for outcome in unbuildable}


def test_candidates_over_a_constraint_are_answered_by_the_controller() -> None:
    store = MemoryStore()
    run = replace(RUN, constraints=Constraints(parameters=0))
    assert work(controller(store, run=run)) is ReleaseReason.FINISHED
    check_finished(store)
    assert {outcome.outcome for outcome in RunFolder(store, NAME).load().history} == {OutcomeKind.OVER_LIMIT}


# -- damage

KEYS = [candidate_key(0), candidate_key(9), history_key(0), history_key(9)]


def assert_damaged(store: Store, where: object) -> None:
    assert errors(store), where
    with pytest.raises(DamagedRun, match=NAME):
        RunFolder(store, NAME).load()
    with pytest.raises(DamagedRun):
        controller(store).claim()


@pytest.mark.parametrize("key", [candidate_key(9), history_key(9)])
def test_any_flipped_bit_is_found(finished: MemoryStore, key: str) -> None:
    data = finished.read(f"{NAME}/{key}")
    for at in range(0, len(data), 5):
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        store = changed(finished, {key: bytes(flipped)})
        assert errors(store), (at, data[at], flipped[at])
        if key.startswith("history/"):  # the chain of digests finds each; a changed value in a candidate is for verify to find
            with pytest.raises(DamagedRun, match=NAME):
                RunFolder(store, NAME).load()


@pytest.mark.parametrize("key", KEYS)
def test_a_bit_flipped_in_the_frame_of_a_record_stops_the_run(finished: MemoryStore, key: str) -> None:
    data = finished.read(f"{NAME}/{key}")
    for word in (b'{"key"', b"schema_name", b"run_id", b'version":1', key.encode(), b"aaaa", b"}"):
        flipped = bytearray(data)
        flipped[data.index(word) + len(word) - 1] ^= 1
        assert_damaged(changed(finished, {key: bytes(flipped)}), word)


@pytest.mark.parametrize("make", [candidate_key, history_key])
@pytest.mark.parametrize(("one", "two"), [(0, 1), (3, 9), (COUNT - 2, COUNT - 1)])
def test_swapped_records_are_found(finished: MemoryStore, make: Callable[[int], str], one: int, two: int) -> None:
    first, second = (finished.read(f"{NAME}/{make(number)}") for number in (one, two))
    assert_damaged(changed(finished, {make(one): second, make(two): first}), (one, two))


@pytest.mark.parametrize("key", KEYS)
def test_truncated_records_are_found(finished: MemoryStore, key: str) -> None:
    data = finished.read(f"{NAME}/{key}")
    for length in (0, 1, len(data) // 3, len(data) // 2, len(data) - 2):
        assert_damaged(changed(finished, {key: data[:length]}), length)
    assert errors(changed(finished, {key: data[:-1]}))  # only the newline at the end is gone


@pytest.mark.parametrize("key", KEYS)
def test_missing_records_are_found(finished: MemoryStore, key: str) -> None:
    assert_damaged(changed(finished, {key: None}), key)


@pytest.mark.parametrize("field", ["seed", "genotype", "after"])
def test_verify_derives_each_candidate_again(finished: MemoryStore, field: str) -> None:
    """Records that are valid and canonical, but not what run, seed and history give."""
    from pipeline.codec import decode, encode

    key = candidate_key(COUNT - 1)
    candidate = decode(finished.read(f"{NAME}/{key}"), key, RUN.run_id)
    other = decode(finished.read(f"{NAME}/{candidate_key(0)}"), candidate_key(0), RUN.run_id)
    forged = {
        "seed": replace(candidate, seed=candidate.seed + 1),
        "genotype": replace(candidate, work=other.work),
        "after": replace(candidate, after=candidate.after - 1),
    }[field]
    assert forged != candidate
    assert key in {finding.key for finding in errors(changed(finished, {key: encode(forged, key, RUN.run_id)}))}


class Slow:
    """A cluster in which as many jobs run as it is told to let run; the others wait."""

    name = "slow"
    survives = True
    parallel = 8

    def __init__(self) -> None:
        self.names: list[str] = []
        self.running = 0

    def start(self, spec: JobSpec) -> None:
        """See Executor."""
        self.names.append(spec.name)

    def jobs(self) -> list[Job]:
        """See Executor."""
        return [Job(name, JobStatus.RUNNING if at < self.running else JobStatus.PENDING) for at, name in enumerate(self.names)]

    def delete(self, name: str) -> None:
        """See Executor."""

    def wait(self, seconds: float) -> None:
        """See Executor."""

    def close(self) -> None:
        """See Executor."""


@pytest.mark.parametrize(("max_pending", "started"), [(None, [16, 16, 26, 52, 100, 100]), (3, [3, 3, 6, 9, 12, 15])])
def test_a_cluster_is_asked_for_no_more_than_it_has_shown_to_have(max_pending: int | None, started: list[int]) -> None:
    store = MemoryStore()
    one = controller(store, limits=Limits(max_evaluations=1000, workers=100, max_pending=max_pending), run=replace(RUN, strategy=Evolution(200, 20)))
    cluster = Slow()
    one.executor = cluster
    assert one.claim()
    found = []
    for running in (0, 0, 10, 30, 70, 100):
        cluster.running = running
        one.step()
        found.append(len(cluster.names))
    assert found == started
    assert errors(store) == []
    assert len(one.state.stories) - len(cluster.names) <= 16  # nor are more candidates bred than may start


@pytest.mark.parametrize(("waits", "other", "gives_way"), [
    (Waiting.IMAGE, True, True), (Waiting.UNSCHEDULABLE, True, True), (Waiting.IMAGE, False, False), (Waiting.SUSPENDED, True, False), (Waiting.STARTING, True, False),
])  # fmt: skip
def test_what_waits_for_corrected_settings_gives_way(waits: Waiting, other: bool, gives_way: bool) -> None:
    store = MemoryStore()
    one = controller(store, limits=Limits(max_evaluations=1))
    cluster = Slow()
    one.executor = cluster
    assert one.claim()
    one.step()
    waiting = Job(cluster.names[0], JobStatus.PENDING, waits=waits, outdated=other)
    cluster.jobs = lambda: [waiting]  # type: ignore[method-assign]
    one.step()
    story = one.state.stories[0]
    assert [end.reason for end in story.ends.values()] == ([EndReason.STOPPED] if gives_way else [])
    assert len(story.attempts) == 1 + gives_way
    assert errors(store) == []


@pytest.mark.parametrize(("lease", "authority", "overtaken"), [("one", "new", False), ("two", "old", False), ("two", "new", True)])
def test_a_pod_goes_on_where_one_of_the_same_lease_or_cluster_was(lease: str, authority: str, overtaken: bool) -> None:
    """The certificates of a cluster change, and a Lease is made anew; only where both differ may it be another cluster."""
    store = MemoryStore()
    controller(store).claim()
    first, second = controller(store, take_over=True), controller(store)
    first.place = Place("a" * 32, pod_owner("team", NAME, "old"), "one/pod-1")
    second.place = Place("b" * 32, pod_owner("team", NAME, authority), f"{lease}/pod-2")
    assert first.claim()
    if overtaken:
        with pytest.raises(Overtaken, match="--take-over"):
            second.claim()
    else:
        assert second.claim()
        assert namespace_of(second.state.charge.owner if second.state.charge else "") == "team"


def test_a_run_of_an_older_version_is_whole_and_goes_on(finished: MemoryStore) -> None:
    """Fields that were added since are missing in its records; a digest is of the bytes that are there."""
    older: dict[str, bytes | None] = {}
    for key in (key.removeprefix(f"{NAME}/") for key in finished.list(f"{NAME}/")):
        data = finished.read(f"{NAME}/{key}")
        if key.startswith("attempts/"):
            assert b'"avoid":[],' in data
            older[key] = data.replace(b'"avoid":[],', b"")
        elif key.startswith("controllers/"):
            older[key] = data.replace(b'"max_failures":20,', b"")
    assert sum(finished.read(f"{NAME}/{key}") != data for key, data in older.items()) == COUNT + 1
    store = changed(finished, older)
    assert errors(store) == []
    folder = RunFolder(store, NAME)
    state = folder.load()
    key = attempt_key(0, 0)
    assert folder.digest(key, state.stories[0].attempts[0]) == sha256(older[key] or b"")
    request(folder, {"max_evaluations": COUNT + 3}, None)
    assert work(controller(store)) is ReleaseReason.FINISHED
    check_finished(store, COUNT + 3)


def test_a_record_written_otherwise_than_by_us_is_found(finished: MemoryStore) -> None:
    data = finished.read(f"{NAME}/{attempt_key(0, 0)}")
    for other in (data.replace(b'"open":0', b'"open": 0'), data[:-1], data.replace(b'"avoid":[],', b"").replace(b'"why"', b'"why" ')):
        assert errors(changed(finished, {attempt_key(0, 0): other}))
