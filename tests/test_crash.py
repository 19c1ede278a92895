"""A controller stopped at every single store operation of a small run, before the write and after it, then started again."""

import pytest
from small_run import NAME, Passing, check_finished, controller, errors, work

from pipeline.errors import StoreUnavailable
from pipeline.run import RunFolder
from pipeline.store import MemoryStore, Store
from search.limits import Limits
from search.records import EndReason

COUNT = 7
LIMITS = Limits(max_evaluations=COUNT)


class Crash(BaseException):
    """As sudden as SIGKILL: nothing in the program catches it."""


class Fragile(Passing):
    """A store that lets its user die at the n-th write."""

    def __init__(self, store: Store, survives: int, after: bool) -> None:
        super().__init__(store)
        self.left, self.after = survives, after

    def create(self, key: str, data: bytes) -> bytes:
        """See Store."""
        self.left -= 1
        if self.left < 0 and not self.after:
            raise Crash
        stored = super().create(key, data)
        if self.left < 0:
            raise Crash
        return stored


def search(store: Store) -> None:
    """One life: a new process of the same owner."""
    assert work(controller(store, limits=LIMITS)) is not None


def check(store: Store) -> None:
    check_finished(store, COUNT)


def orphans(store: Store) -> list[tuple[int, int]]:
    """Attempts that a dead controller left open and that wrote no evaluation."""
    folder = RunFolder(store, NAME)
    if not folder.exists():
        return []
    running = [story.running for story in folder.load().stories if story.running is not None]
    return [(one.candidate, one.attempt) for one in running if folder.evaluation(one.candidate, one.attempt) is None]


def writes() -> int:
    counted = Fragile(MemoryStore(), 10_000, False)
    search(counted)
    check(counted)
    return 10_000 - counted.left


def test_a_run_survives_a_crash_before_and_after_every_write() -> None:
    total = writes()
    lost = 0
    assert total > 4 * COUNT  # a candidate, an attempt, an evaluation and an outcome each
    for after in (False, True):
        for survives in range(total):
            store = MemoryStore()
            with pytest.raises(Crash):
                search(Fragile(store, survives, after))
            open_before = orphans(store)
            if survives < total - 1 or not after:
                search(store)
            check(store)
            ends = [end for story in RunFolder(store, NAME).load().stories for end in story.ends.values()]
            assert [(end.candidate, end.attempt) for end in ends] == open_before  # what a dead controller left is on record
            assert {end.reason for end in ends} <= {EndReason.CONTROLLER_LOST}
            lost += len(ends)
    assert lost >= 2 * COUNT


def test_a_run_survives_a_crash_at_every_write_of_every_life() -> None:
    """Each life manages a few writes more than the claim and the end of what it found open, then dies."""
    for step in (4, 5, 7):
        store = MemoryStore()
        for life in range(200):
            try:
                search(Fragile(store, step, life % 2 == 0))
                break
            except Crash:
                assert errors(store) == []
        check(store)


class Unanswered(Passing):
    """A store whose n-th write lands but is not answered, and which then does not answer a second time."""

    def __init__(self, store: Store, survives: int, again: int) -> None:
        super().__init__(store)
        self.left, self.again = survives, again

    def create(self, key: str, data: bytes) -> bytes:
        """See Store."""
        self.left -= 1
        stored = super().create(key, data)
        if self.left == -1:
            raise StoreUnavailable("the answer was lost")
        return stored

    def read(self, key: str) -> bytes:
        """See Store."""
        if self.left < 0:
            self.again -= 1
            if self.again == 0:
                raise StoreUnavailable("no answer")
        return super().read(key)


@pytest.mark.parametrize("again", [0, 1, 2, 9])
def test_a_run_goes_on_after_any_write_whose_answer_is_lost(again: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two writes are run.json and the claim: a command that cannot even begin says so, and is given again."""
    monkeypatch.setattr("time.sleep", lambda _: None)  # a worker waits before it writes again
    for survives in range(writes()):
        store = MemoryStore()
        try:
            search(Unanswered(store, survives, again))
        except StoreUnavailable:
            assert survives < 2
            search(store)
        check(store)
