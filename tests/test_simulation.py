"""The controller in a world that fails in every way (tests/simulation.py): the invariants hold after each step, and it always ends."""

from collections import Counter
from collections.abc import Iterator

import pytest
import simulation
from simulation import Broken, World, simulate

import pipeline.worker
from pipeline.controller import Controller
from pipeline.run import RunFolder
from search.records import Attempt, Record

SEEDS = range(60)
STEPS = 700
SEEN = (
    "late write lands", "late start lands", "refused", "overtaken", "kill controller", "exit 1", "store outage", "interrupt",
    "log: a predecessor's write landed late, reading again", "log: evaluation is not valid", "log: not available, trying again",
    "log: another process of this attempt was quicker", "log: nothing to do", "log: jobs of unknown attempts",
    "end controller_lost", "end disrupted", "end gone", "end handed_over", "end killed", "end machine", "end memory", "end node_lost",
    "end rejected", "end stopped", "end superseded",
    "outcome bug", "outcome diverged", "outcome evaluated", "outcome lost", "outcome out_of_memory", "outcome over_limit", "outcome reused",
    "outcome unbuildable", "snapshots",
)  # fmt: skip
"""What must have happened in so many seeds, or this test has gone blind."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with simulation.quiet():
        yield


def test_the_invariants_hold_after_every_step_and_a_run_left_alone_ends() -> None:
    steps, happened = 0, Counter[str]()
    for seed in SEEDS:
        world = simulate(seed, STEPS)
        steps += world.steps
        happened += world.happened
    assert steps >= 20_000
    assert [what for what in SEEN if not happened[what]] == []


def test_a_seed_is_a_whole_world_told_again() -> None:
    one, two = simulate(7, STEPS), simulate(7, STEPS)
    assert (one.steps, one.now, one.happened) == (two.steps, two.now, two.happened)
    assert RunFolder(one.truth, simulation.NAME).load().history != []
    assert one.truth.list("") == two.truth.list("")


def breaks(seeds: int = 40) -> str:
    """What is found wrong in the first of so many seeds that breaks."""
    for seed in range(seeds):
        try:
            simulate(seed, STEPS)
        except Broken as broken:
            return str(broken)
    return ""


def test_it_notices_a_worker_that_does_not_look_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.worker, "_superfluous", lambda *_: False)
    assert "trains though all was known" in breaks()


def test_it_notices_a_controller_that_acts_before_it_records(monkeypatch: pytest.MonkeyPatch) -> None:
    write = Controller._write

    def lazy(self: Controller, key: str, record: Record) -> str:
        return "0" * 64 if isinstance(record, Attempt) else write(self, key, record)

    monkeypatch.setattr(Controller, "_write", lazy)
    assert breaks()


def test_it_notices_a_lost_acknowledged_write(monkeypatch: pytest.MonkeyPatch) -> None:
    write = World.write

    def forgetting(self: World, key: str, data: bytes) -> bytes:
        return data if "/candidates/000005" in key else write(self, key, data)

    monkeypatch.setattr(World, "write", forgetting)
    with pytest.raises((Broken, KeyError)):
        simulate(1, STEPS)
