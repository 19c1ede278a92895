"""A worker on a machine of its own: what it does before it trains."""

import time
from pathlib import Path

import pytest
import trainers
from small_run import NAME, RUN, FakeClock, Passing, controller, errors

from pipeline.errors import StoreUnavailable
from pipeline.run import RunFolder
from pipeline.store import MemoryStore
from pipeline.worker import Task, Trainer, work
from search.records import DataReference, Evaluation


def decided() -> MemoryStore:
    """A run whose candidate 0 has an open attempt."""
    store = MemoryStore()
    one = controller(store)
    one.executor.start = lambda _: None  # type: ignore[method-assign]
    assert one.claim()
    one.step()
    return store


def fetched(reference: DataReference, root: Path) -> None:
    assert (reference, root) == (RUN.data, Path("data"))


def test_it_says_that_it_begins_and_the_run_is_as_whole_as_before() -> None:
    store = decided()
    assert work(store, NAME, 0, 0, lambda: trainers.instant, "data", fetched) == 0
    (key,) = store.list(f"{NAME}/logs/")
    assert key.startswith(f"{NAME}/logs/000000-0-")
    assert b"attempt 0 of candidate 0 begins on" in store.read(key)
    assert errors(store) == []
    RunFolder(store, NAME).load()


def test_one_that_may_not_write_is_the_machines_fault_before_it_trains() -> None:
    class ReadOnly(Passing):
        def create(self, key: str, data: bytes) -> bytes:
            raise StoreUnavailable(f"{key}: access is denied; the credentials need s3:PutObject")

    def never() -> Trainer:
        raise AssertionError("it trains")

    assert work(ReadOnly(decided()), NAME, 0, 0, never, "data", fetched) == 5


@pytest.mark.parametrize("again", range(2))
def test_one_that_has_nothing_to_do_writes_nothing(again: int) -> None:
    store = decided()
    assert work(store, NAME, 0, 0, lambda: trainers.instant, "data") == 0
    before = store.list("")
    for _ in range(again + 1):
        assert work(store, NAME, 0, 0, lambda: trainers.instant, "data", fetched) == 0
    assert store.list("") == before


@pytest.mark.parametrize(("hours", "code"), [(1.9, 0), (2.1, 5)])
def test_a_training_of_two_hours_waits_as_long_for_its_store(monkeypatch: pytest.MonkeyPatch, hours: float, code: int) -> None:
    clock = FakeClock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    monkeypatch.setattr(time, "sleep", clock.sleep)

    class Down(Passing):
        until = 0.0

        def create(self, key: str, data: bytes) -> bytes:
            if clock.monotonic() < self.until:
                raise StoreUnavailable("on purpose")
            return super().create(key, data)

    store = Down(decided())

    def train(task: Task) -> Evaluation:
        clock.sleep(7200.0)
        store.until = clock.monotonic() + hours * 3600.0
        return trainers.instant(task)

    assert work(store, NAME, 0, 0, lambda: train, "data") == code
    assert bool(store.list(f"{NAME}/evaluations/")) is (code == 0)
