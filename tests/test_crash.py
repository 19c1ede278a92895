"""A controller stopped at every single store operation of a small run, before the write and after it, then started again."""

import secrets

import pytest

from pipeline.config import parse_recipe
from pipeline.controller import Controller, Place
from pipeline.inline import InlineExecutor
from pipeline.run import RunFolder
from pipeline.store import MemoryStore, Store
from pipeline.verify import Level, verify
from search.evolution import Evolution
from search.graph import Model, Stem
from search.limits import Limits
from search.records import ALGORITHM, Constraints, DataReference, Resources, Run
from search.space import SPACES

COUNT = 7
RUN = Run(
    "crash",
    "0" * 32,
    ALGORITHM,
    3,
    SPACES["liu2018-hierarchical"],
    Evolution(initial=3, initial_mutations=30),
    parse_recipe("digits-small", "test"),
    Model(Stem.CIFAR, 8, 1, 1, 8, 10),
    DataReference("digits", "0" * 64),
    Constraints(),
)


class Crash(BaseException):
    """As sudden as SIGKILL: nothing in the program catches it."""


class Fragile:
    """A store that lets its user die at the n-th write."""

    def __init__(self, store: Store, survives: int, after: bool) -> None:
        self.store, self.left, self.after = store, survives, after

    def create(self, key: str, data: bytes) -> bytes:
        """See Store."""
        self.left -= 1
        if self.left < 0 and not self.after:
            raise Crash
        stored = self.store.create(key, data)
        if self.left < 0:
            raise Crash
        return stored

    def read(self, key: str) -> bytes:
        """See Store."""
        return self.store.read(key)

    def list(self, prefix: str, after: str | None = None) -> list[str]:
        """See Store."""
        return self.store.list(prefix, after)


class StillClock:
    """Time passes only when looked at."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> float:
        """See Clock."""
        self.seconds += 0.001
        return self.seconds

    monotonic = now


def controller(store: Store, life: str) -> Controller:
    folder = RunFolder(store, RUN.name)
    folder.begin(RUN)
    executor = InlineExecutor(store, "nowhere", "slow_trainer:train")
    place = Place(secrets.token_hex(16), "me@here", life)
    return Controller(folder, executor, StillClock(), place, Limits(max_evaluations=COUNT), Resources())


def search(store: Store, life: str) -> None:
    assert controller(store, life).work(lambda *_: None, 0) is not None


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    import slow_trainer

    monkeypatch.setattr(slow_trainer.time, "sleep", lambda _: None)


def check(store: Store) -> None:
    assert [one for one in verify(store, RUN.name) if one.level is Level.ERROR] == []
    state = RunFolder(store, RUN.name).load()
    assert sorted(outcome.candidate for outcome in state.history) == list(range(COUNT))


def writes() -> int:
    counted = Fragile(MemoryStore(), 10_000, False)
    search(counted, "only")
    check(counted)
    return 10_000 - counted.left


def test_a_run_survives_a_crash_before_and_after_every_write() -> None:
    total = writes()
    assert total > 4 * COUNT  # a candidate, an attempt, an evaluation and an outcome each
    for after in (False, True):
        for survives in range(total):
            store = MemoryStore()
            with pytest.raises(Crash):
                search(Fragile(store, survives, after), "first life")
            if survives < total - 1 or not after:
                search(store, "second life")
            check(store)


def test_a_run_survives_a_crash_at_every_write_of_every_life() -> None:
    """Each life manages a few writes more than the claim and the end of what it found open, then dies."""
    for step in (4, 5, 7):
        store = MemoryStore()
        for life in range(200):
            try:
                search(Fragile(store, step, life % 2 == 0), f"life {life}")
                break
            except Crash:
                assert [one for one in verify(store, RUN.name) if one.level is Level.ERROR] == []
        check(store)
