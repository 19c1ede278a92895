"""A small run with its controller, for tests: a store to be chosen, a trainer that only the seed decides, a clock of its own."""

import itertools
import secrets

from pipeline.config import parse_recipe
from pipeline.controller import Controller, Place
from pipeline.inline import InlineExecutor
from pipeline.run import RunFolder
from pipeline.store import Store
from pipeline.verify import Finding, Level, verify
from search.evolution import Evolution
from search.graph import Model, Stem
from search.limits import Limits
from search.records import ALGORITHM, Constraints, DataReference, Release, ReleaseReason, Resources, Run
from search.space import SPACES

NAME = "small"
COUNT = 20
LIMITS = Limits(max_evaluations=COUNT, workers=4)
RUN = Run(
    NAME,
    "a" * 32,
    ALGORITHM,
    5,
    SPACES["liu2018-hierarchical"],
    Evolution(initial=4, initial_mutations=20),
    parse_recipe("digits-small", "test"),
    Model(Stem.CIFAR, 8, 1, 1, 8, 10),
    DataReference("digits", "0" * 64),
    Constraints(),
)


class FakeClock:
    """A thousandth of a second passes at each look; sleeping takes no time."""

    def __init__(self) -> None:
        self._ticks = itertools.count(1_000_000)
        self._slept = 0.0

    def now(self) -> float:
        """See Clock."""
        return next(self._ticks) / 1000 + self._slept

    monotonic = now

    def sleep(self, seconds: float) -> None:
        """See Clock."""
        self._slept += seconds


class Passing:
    """A store that passes everything on: what others change of it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.parallel = 1

    def create(self, key: str, data: bytes) -> bytes:
        """See Store."""
        return self.store.create(key, data)

    def read(self, key: str) -> bytes:
        """See Store."""
        return self.store.read(key)

    def list(self, prefix: str, after: str | None = None) -> list[str]:
        """See Store."""
        return self.store.list(prefix, after)


def controller(store: Store, owner: str = "me@here", take_over: bool = False, run: Run = RUN, limits: Limits = LIMITS) -> Controller:
    """A new process: a Place of its own, with an incarnation of its own."""
    folder = RunFolder(store, run.name)
    folder.begin(run)
    executor = InlineExecutor(store, "nowhere", "trainers:instant")
    place = Place(secrets.token_hex(16), owner, secrets.token_hex(8))
    return Controller(folder, executor, FakeClock(), place, limits, Resources(), take_over)


def work(one: Controller) -> ReleaseReason | None:
    return one.work(lambda *_: None, 0.0)


def errors(store: Store) -> list[Finding]:
    return [finding for finding in verify(store, NAME) if finding.level is Level.ERROR]


def check_finished(store: Store, count: int = COUNT) -> None:
    assert errors(store) == []
    state = RunFolder(store, NAME).load()
    assert sorted(outcome.candidate for outcome in state.history) == list(range(count))
    assert len(state.stories) == count
    assert not state.unfinished
    last = state.controllers[-1]
    assert isinstance(last, Release)
    assert last.reason is ReleaseReason.FINISHED
