"""What the controller costs a candidate, early and late in a search: process CPU time, store requests, resident memory.

    .venv/bin/python bench/controller_cost.py

A search as published (the paper's space, an initial population of 200, evolution, 2,200 candidates) with trainings that return
at once, on a store in memory and one in a folder, with and without reuse of equal networks. Attempts run inline; what they take
themselves is measured apart and subtracted, so what is left is the controller's. The first 200 are drawn with 1,000 mutations
each, which costs more than breeding; so the 200th is the median of the first hundred bred (200 to 299), and the 2,000th that of
1,950 to 2,049. Every repeat does the same work, candidate by candidate, so what a candidate costs is the least of its repeats: what
else the machine does only adds to it. The ratios of single repeats are given too. Required: the 2,000th costs at most 1.2 times the 200th, and makes the same store requests. With reuse the controller
assembles each network, and a search's networks grow; there the cost for each of a network's operations is what must not grow.
Takes some 5 minutes. Writes results/controller_cost.json and results/controller_cost.svg.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import record

from pipeline.answer import network
from pipeline.clock import SystemClock
from pipeline.config import parse_recipe
from pipeline.controller import Controller, Place
from pipeline.directory import DirectoryStore
from pipeline.executor import JobSpec
from pipeline.inline import InlineExecutor
from pipeline.run import RunFolder
from pipeline.store import MemoryStore, Store
from pipeline.worker import Task
from search.evolution import Evolution
from search.graph import Model, Unbuildable
from search.limits import Limits
from search.records import ALGORITHM, Constraints, DataReference, Evaluation, Machine, Metrics, Repeat, Resources, Run
from search.space import SPACES
from search.state import State

COUNT = 2200
EARLY, LATE = (200, 300), (1950, 2050)
WINDOWS = ((150, 200), EARLY, (500, 600), (1000, 1100), (1500, 1600), LATE, (2100, 2200))
ALLOWED = 1.2


def empty(task: Task) -> Evaluation:
    """A trainer that returns at once: the candidate's seed is its accuracy."""
    accuracy = task.candidate.seed % 1000 / 1000
    machine = Machine("none", task.threads, "float32", {})
    return Metrics(
        task.candidate.index, task.attempt, accuracy, (Repeat(accuracy, 1.0, 1.0, 0.5, ()),), 1, 1, task.graph.digest, 1,
        task.run.data.digest, 2.0, machine,
    )  # fmt: skip


class Timed(InlineExecutor):
    """Inline, and keeps how much CPU time and how many requests the attempts took themselves."""

    def __init__(self, store: "Watched") -> None:
        super().__init__(store, "nowhere", "controller_cost:empty")
        self._watched, store.executor = store, self
        self.cpu_seconds, self.requests = 0.0, Counter[str]()

    def start(self, spec: JobSpec) -> None:
        """See Executor."""
        began, before = time.process_time(), self._watched.requests.copy()
        super().start(spec)
        self.cpu_seconds += time.process_time() - began
        self.requests += self._watched.requests - before


@dataclass(frozen=True, slots=True)
class Moment:
    """Totals when an outcome was about to be written."""

    controller: float
    """CPU seconds, without those of the attempts."""
    attempts: float
    requests: Counter[str]
    """The controller's own."""
    attempts_requests: Counter[str]
    resident: int


@dataclass(slots=True)
class Watched:
    """A store that counts the requests it passes on, and takes the moment of every outcome."""

    store: Store
    parallel: int = 1
    executor: Timed | None = None
    requests: Counter[str] = field(default_factory=Counter)
    moments: list[Moment] = field(default_factory=list)
    _process: psutil.Process = field(default_factory=psutil.Process)

    def create(self, key: str, data: bytes) -> bytes:
        """See Store."""
        self.requests["create"] += 1
        if "/history/" in key and self.executor is not None:
            attempts = self.executor.cpu_seconds
            resident = self._process.memory_info().rss if len(self.moments) % 50 == 0 else self.moments[-1].resident
            own = self.requests - self.executor.requests
            self.moments.append(Moment(time.process_time() - attempts, attempts, own, self.executor.requests.copy(), resident))
        return self.store.create(key, data)

    def read(self, key: str) -> bytes:
        """See Store."""
        self.requests["read"] += 1
        return self.store.read(key)

    def list(self, prefix: str, after: str | None = None) -> list[str]:
        """See Store."""
        self.requests["list"] += 1
        return self.store.list(prefix, after)


def search(store: Store, reuse: bool, count: int) -> tuple[list[Moment], State]:
    """Run a search to its end: the moments in the order of acceptance, and the state."""
    recipe = parse_recipe("liu2018-search", "recipe")
    model = Model(recipe.stem, recipe.width, recipe.cells, 3, 32, 10)
    run = Run(
        "bench", "0" * 32, ALGORITHM, 1, SPACES["liu2018-hierarchical"], Evolution(reuse=reuse), recipe, model,
        DataReference("none", "0" * 64), Constraints(),
    )  # fmt: skip
    watched = Watched(store)
    folder = RunFolder(watched, run.name)
    folder.begin(run)
    limits = Limits(max_evaluations=count, workers=1)
    controller = Controller(folder, Timed(watched), SystemClock(), Place("0" * 32, "bench", "bench"), limits, Resources())
    controller.work(lambda *_: None, 0.0)
    return watched.moments, controller.state


def figures(moments: list[Moment], state: State, window: tuple[int, int]) -> dict[str, Any]:
    """What the candidates of a window cost: medians of CPU milliseconds, requests as (what: how many candidates), memory."""
    pairs = [(moments[at - 1], moments[at]) for at in range(*window)]
    first, last = pairs[0][0], pairs[-1][1]
    stories = [state.stories[outcome.candidate] for outcome in state.history[slice(*window)]]
    return {
        "outcomes": list(window),
        "controller_ms": round(1e3 * statistics.median(after.controller - before.controller for before, after in pairs), 3),
        "controller_mean_ms": round(1e3 * (last.controller - first.controller) / len(pairs), 3),
        "attempt_ms": round(1e3 * statistics.median(after.attempts - before.attempts for before, after in pairs), 3),
        "controller_requests": _kinds([after.requests - before.requests for before, after in pairs]),
        "attempt_requests": _kinds([after.attempts_requests - before.attempts_requests for before, after in pairs]),
        "resident_mib": round(last.resident / 1024**2, 1),
        "operations": statistics.median(_operations(state.run, story.candidate) for story in stories),
    }


def _kinds(requests: list[Counter[str]]) -> dict[str, int]:
    texts = Counter(", ".join(f"{count} {kind}" for kind, count in sorted(one.items())) or "none" for one in requests)
    return dict(texts.most_common())


def _operations(run: Run, candidate: Any) -> int:
    try:
        return len(network(run, candidate).operations)
    except Unbuildable:
        return 0


def once(kind: str, reuse: bool, count: int) -> dict[str, Any]:
    """One search, in a process of its own: figures of every window, and each candidate's milliseconds from the second on."""
    with tempfile.TemporaryDirectory() as root:
        moments, state = search(MemoryStore() if kind == "memory" else DirectoryStore(Path(root)), reuse, count)
    costs = [1e3 * (after.controller - before.controller) for before, after in pairwise(moments)]
    return {"windows": [figures(moments, state, window) for window in WINDOWS if window[1] <= count], "costs": costs}


def typical(costs: list[float], window: tuple[int, int]) -> float:
    """Median over a window; the first cost is that of outcome 1."""
    return statistics.median(costs[window[0] - 1 : window[1] - 1])


def draw(curves: dict[str, list[float]], path: Path) -> None:
    """CPU time a candidate over the search: medians of 50."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for label, costs in curves.items():
        middles = range(25, len(costs) - 24, 50)
        axes.plot(middles, [typical(costs, (at - 24, at + 26)) for at in middles], linewidth=1.2, label=label)
    axes.set(xlabel="outcomes accepted", ylabel="controller's CPU time a candidate (ms, medians of 50)", title="What the controller costs", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    """Measure, write, and say by the exit code whether what is required holds."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--count", type=int, default=COUNT, help=argparse.SUPPRESS)
    arguments.add_argument("--once", nargs=2, metavar=("STORE", "REUSE"), help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.once:
        print(json.dumps(once(given.once[0], given.once[1] == "reuse", given.count)))
        return 0
    found: dict[str, Any] = {}
    curves: dict[str, list[float]] = {}
    holds: dict[str, bool] = {}
    for kind, reuse in (("memory", "plain"), ("memory", "reuse"), ("directory", "plain"), ("directory", "reuse")):
        command = [sys.executable, __file__, "--count", str(given.count), "--once", kind, reuse]
        runs = [json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(given.repeats)]
        label = f"{kind}, {reuse}"
        least = curves[label] = [min(costs) for costs in zip(*(run["costs"] for run in runs), strict=True)]
        early, late = typical(least, EARLY), typical(least, LATE)
        before, after = (next(one["operations"] for one in runs[0]["windows"] if one["outcomes"] == list(window)) for window in (EARLY, LATE))
        ratio, growth = late / early, after / before
        holds[label] = (ratio if reuse == "plain" else ratio / growth) <= ALLOWED
        found[label] = {
            "late_to_early": round(ratio, 3),
            "late_to_early_per_operation": round(ratio / growth, 3),
            "late_to_early_of_single_repeats": record.spread([typical(run["costs"], LATE) / typical(run["costs"], EARLY) for run in runs]),
            "least_of_repeats_ms": {f"{first} to {end - 1}": round(typical(least, (first, end)), 3) for first, end in WINDOWS if end <= given.count},
            "windows_of_the_first_repeat": runs[0]["windows"],
        }
    draw(curves, record.RESULTS / "controller_cost.svg")
    required = f"late_to_early at most {ALLOWED}, with reuse per operation"
    record.write("controller_cost", {"required": required, "holds": holds, "figures": found}, ("pydantic",))
    return 0 if all(holds.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
