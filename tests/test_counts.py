"""A candidate costs the same early and late in a search: counted exactly, never timed (bench/controller_cost.py measures)."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from small_run import RUN, Passing, controller, work

from pipeline import snapshots
from pipeline.errors import ExecutorUnavailable
from pipeline.executor import Job, JobSpec, JobStatus
from pipeline.inline import InlineExecutor
from pipeline.requests import request
from pipeline.snapshots import FOLDER, SEGMENT
from pipeline.store import MemoryStore
from search.evolution import Evolution, tournament_size
from search.limits import Desire, Limits
from search.records import Outcome, OutcomeKind, ReleaseReason

EARLY, LATE = range(40, 60), range(240, 260)


class Counting(Passing):
    """Counts requests and the keys that lists return, and hands over the count at each outcome."""

    def __init__(self) -> None:
        super().__init__(MemoryStore())
        self.count: Counter[str] = Counter()
        self.between: list[Counter[str]] = []
        """What each outcome cost since the one before."""

    def create(self, key: str, data: bytes) -> bytes:
        """See Store."""
        self.count["snapshot" if f"/{FOLDER}/" in key else "create"] += 1
        if "/history/" in key:
            self.between.append(self.count.copy())
            self.count.clear()
        return super().create(key, data)

    def read(self, key: str) -> bytes:
        """See Store."""
        self.count["read"] += 1
        return super().read(key)

    def list(self, prefix: str, after: str | None = None) -> list[str]:
        """See Store."""
        found = super().list(prefix, after)
        self.count["list"] += 1
        self.count["listed"] += len(found)
        return found


class Touched(list[Any]):
    """A list that counts which of its elements are looked at."""

    def __init__(self, name: str, count: Counter[str], elements: list[Any]) -> None:
        super().__init__(elements)
        self._name, self._count = name, count

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        self._count[self._name] += len(found) if isinstance(at, slice) else 1
        return found

    def __iter__(self) -> Iterator[Any]:
        for element in super().__iter__():
            self._count[self._name] += 1
            yield element

    def __reversed__(self) -> Iterator[Any]:
        for element in super().__reversed__():
            self._count[self._name] += 1
            yield element


def costs(reuse: bool, touches: bool) -> tuple[list[Outcome], list[Counter[str]]]:
    """The outcomes of a search with one worker, and what each cost: requests, and elements of the state's lists looked at."""
    store = Counting()
    run = replace(RUN, strategy=Evolution(initial=10, initial_mutations=20, reuse=reuse))
    one = controller(store, run=run, limits=Limits(max_evaluations=max(LATE) + 1, workers=1))
    if touches:
        original = one._load

        def load() -> None:
            original()
            for owner, name in ((one.state, "history"), (one.state, "stories"), (one.state.past, "population"), (one.state.past, "genotypes")):
                setattr(owner, name, Touched(name, store.count, getattr(owner, name)))

        one._load = load  # type: ignore[method-assign]
    work(one)
    return list(one.state.history), store.between


@pytest.mark.parametrize("reuse", [False, True])
def test_the_250th_candidate_makes_the_requests_of_the_50th(reuse: bool) -> None:
    history, found = costs(reuse, touches=False)
    kinds = {kind: [cost for outcome, cost in zip(history, found, strict=True) if outcome.outcome is kind] for kind in OutcomeKind}
    assert sum(cost.pop("snapshot", 0) for cost in found) == max(LATE) // SEGMENT
    trained = kinds[OutcomeKind.EVALUATED][1:]  # the first pays for taking charge too
    assert trained == [Counter(create=4, read=6, list=4, listed=1)] * len(trained)
    answered = [cost for kind in (OutcomeKind.REUSED, OutcomeKind.UNBUILDABLE) for cost in kinds[kind]]
    assert all(cost["create"] == 4 and cost["read"] == 1 for cost in answered)
    assert len(trained) > (50 if reuse else 200)
    assert len(answered) + len(trained) + 1 == len(history) == max(LATE) + 1


@pytest.mark.parametrize("reuse", [False, True])
def test_the_250th_candidate_looks_at_no_more_of_the_run_than_the_50th(reuse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the tournament, which is a share of the population: the paper's, and all that grows. Every 128th writes a snapshot of as many."""
    monkeypatch.setattr(snapshots, "SEGMENT", 1000)
    history, found = costs(reuse, touches=True)
    bred = [(number, cost) for number, cost in enumerate(found) if number > 10]
    population = [outcome.fitness is not None for outcome in history]
    assert all(cost["population"] == tournament_size(sum(population[:number])) for number, cost in bred)
    for name in ("history", "stories", "genotypes"):
        most = [max(cost[name] for number, cost in bred if number in window) for window in (EARLY, LATE)]
        assert most[0] == most[1], name


class Running(InlineExecutor):
    """Attempts that go on for ever, in a cluster that may not answer."""

    survives = True

    def __init__(self) -> None:
        super().__init__(MemoryStore(), "nowhere", "trainers:instant")
        self.names: list[str] = []
        self.answers = True

    def start(self, spec: JobSpec) -> None:
        """See Executor."""
        self.names.append(spec.name)

    def jobs(self) -> list[Job]:
        """See Executor."""
        return [Job(name, JobStatus.RUNNING) for name in self.names]

    def delete(self, name: str) -> None:
        """See Executor."""
        if not self.answers:
            raise ExecutorUnavailable("on purpose")
        self.names.remove(name)


def test_what_is_read_again_after_an_error_grows_with_no_attempt_in_flight() -> None:
    """Or a store that answers but a part of its requests, as under SlowDown, would never let a large run through again."""
    store = Counting()
    one = controller(store, run=replace(RUN, strategy=Evolution(initial=200, initial_mutations=20)), limits=Limits(max_evaluations=200, workers=100))
    one.executor = executor = Running()
    assert one.claim()
    while len(executor.names) < 90:
        one.step()
    store.count.clear()
    one.step()
    assert store.count.total() - store.count["listed"] == 2
    for reads in (300, 5):  # what it wrote itself, once; then the newest alone
        one._stale = True
        store.count.clear()
        one.step()
        assert store.count["read"] < reads


def test_an_executor_that_does_not_answer_makes_nobody_read_the_run_again() -> None:
    store = Counting()
    one = controller(store, limits=Limits(max_evaluations=3, workers=1))
    one.executor = executor = Running()
    assert one.claim()
    one.step()
    request(one.folder, {}, Desire.STOP_NOW)
    executor.answers = False
    with pytest.raises(ExecutorUnavailable):
        one.step()
    assert one.state.open_attempts == 0
    store.count.clear()
    with pytest.raises(ExecutorUnavailable):
        one.step()
    assert store.count["read"] == 1  # whether an evaluation came after all; not the run
    executor.answers = True
    assert one.step()[1] is ReleaseReason.STOPPED
