"""How long a restart takes that finds 7,000 outcomes in an S3 bucket: wall and CPU time, requests, bytes; with snapshots and without.

    .venv/bin/python bench/restart.py        (make prove-restart)

A search as published (the paper's space, 64 workers, trainings that return at once) dies when its 7,001st outcome is due, with
what was under way recorded. Its objects are put into an S3 server on this machine (ministack, over HTTP). Then, again and again, a
fresh process does what `hiernas run` does before its first decision: it opens the store, begins the run and reads it, takes
charge (the records are read again before and after the claim) and looks at jobs, requests and evaluations. Wall time is from
starting that process to the end of the look, its imports included. Without snapshots: the same program, the bucket's snapshots
hidden from it. Server and client share the machine. Required: at most 10 s with snapshots. Takes about a quarter of an hour.
Writes results/restart.json.
"""

import argparse
import json
import os
import secrets
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import record
from controller_cost import empty

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from s3_server import S3Server, environment

from pipeline.clock import SystemClock
from pipeline.config import parse_recipe
from pipeline.controller import Controller, Place
from pipeline.inline import InlineExecutor
from pipeline.run import RunFolder, history_key
from pipeline.s3 import S3Store
from pipeline.snapshots import FOLDER, SEGMENT
from pipeline.store import MemoryStore, Store, at_once, open_store
from search.evolution import Evolution
from search.graph import Model
from search.limits import Limits
from search.records import ALGORITHM, Constraints, DataReference, Resources, Run
from search.space import SPACES

COUNT, WORKERS = 7000, 64
REQUIRED_SECONDS = 10.0
NAME, URL = "bench", "s3://search/runs"
LIMITS = Limits(max_evaluations=2 * COUNT, workers=WORKERS)
TRAINER = f"{empty.__module__}:{empty.__name__}"


def run() -> Run:
    """What is searched."""
    recipe = parse_recipe("liu2018-search", "recipe")
    model = Model(recipe.stem, recipe.width, recipe.cells, 3, 32, 10)
    return Run(
        NAME, "0" * 32, ALGORITHM, 1, SPACES["liu2018-hierarchical"], Evolution(), recipe, model, DataReference("none", "0" * 64), Constraints()
    )  # fmt: skip


class Died(BaseException):
    """The controller is gone."""


class Watched:
    """A store that counts what passes; it may hide the snapshots, and let its user die before one object."""

    def __init__(self, store: Store, hides: bool = False, last: str = "") -> None:
        self._store, self._hides, self._last = store, hides, last
        self.parallel = store.parallel
        self.requests, self.bytes_read = Counter[str](), 0

    def create(self, key: str, data: bytes) -> bytes:
        """See Store."""
        if key == self._last:
            raise Died
        self.requests["create"] += 1
        return self._store.create(key, data)

    def read(self, key: str) -> bytes:
        """See Store."""
        data = self._store.read(key)
        self.requests["read"] += 1
        self.bytes_read += len(data)
        return data

    def list(self, prefix: str, after: str | None = None) -> list[str]:
        """See Store."""
        if self._hides and f"/{FOLDER}/" in prefix:
            return []
        found = self._store.list(prefix, after)
        self.requests["list"] += 1 + len(found) // 1000
        return found


def controller(store: Store, folder: RunFolder) -> Controller:
    """A new process of the same owner."""
    place = Place(secrets.token_hex(16), "bench", secrets.token_hex(8))
    return Controller(folder, InlineExecutor(store, "nowhere", TRAINER), SystemClock(), place, LIMITS, Resources())


def searched(count: int) -> MemoryStore:
    """A run whose controller died when its history was so long."""
    store = MemoryStore()
    watched = Watched(store, last=f"{NAME}/{history_key(count)}")
    folder = RunFolder(watched, NAME)
    folder.begin(run())
    try:
        controller(watched, folder).work(lambda *_: None, 0.0)
    except Died:
        return store
    raise SystemExit("the search ended before it was to die")


def restart(hides: bool) -> dict[str, Any]:
    """What a controller does before its first decision, in this process."""
    store = Watched(open_store(URL), hides)
    folder = RunFolder(store, NAME)
    folder.begin(run())
    folder.load()
    one = controller(store, folder)
    one.claim()
    seen = one.observe()
    state = one.state
    return {
        "cpu_seconds": time.process_time(),
        "requests": dict(sorted(store.requests.items())),
        "bytes_read": store.bytes_read,
        "outcomes": len(state.history),
        "in_flight": state.in_flight,
        "evaluations_seen": len(seen.evaluations),
        "digest": state.last_digest,
    }


def once(kind: str) -> dict[str, Any]:
    """One restart in a fresh process."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, __file__, "--once", kind], capture_output=True, text=True, check=False)
    wall = time.monotonic() - began
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return {"wall_seconds": wall} | found


def main() -> int:
    """Measure, write, and say by the exit code whether what is required holds."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--count", type=int, default=COUNT, help=argparse.SUPPRESS)
    arguments.add_argument("--once", choices=("with", "without"), help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.once:
        print(json.dumps(restart(given.once == "without")))
        return 0
    made = searched(given.count)
    keys = made.list("")
    of_snapshots = [made.read(key) for key in keys if f"/{FOLDER}/" in key]
    server = S3Server()
    server.start()
    try:
        with environment(server.url):
            bucket = S3Store("search", "runs")
            for _ in at_once(lambda key: bucket.create(key, made.read(key)), keys, bucket.parallel):
                pass
            runs: dict[str, list[dict[str, Any]]] = {"with": [], "without": []}
            for _ in range(given.repeats):  # in turns: what else the machine does meets both
                for kind, found in runs.items():
                    found.append(once(kind))
                    print(kind, found[-1], os.getloadavg(), file=sys.stderr, flush=True)
    finally:
        server.kill()
    same = {tuple(one[name] for name in ("outcomes", "in_flight", "evaluations_seen", "digest")) for found in runs.values() for one in found}
    wall = record.spread([one["wall_seconds"] for one in runs["with"]])
    holds = len(same) == 1 and wall["range"][1] <= REQUIRED_SECONDS
    figures = {
        "required": f"wall_seconds with snapshots at most {REQUIRED_SECONDS} in each repeat, and the same state either way",
        "holds": holds,
        "run": {"objects": len(keys), "snapshots": len(of_snapshots), "segment": SEGMENT, "largest_snapshot_bytes": max(map(len, of_snapshots), default=0),
                **{name: runs["with"][0][name] for name in ("outcomes", "in_flight")}},
        **{f"{kind}_snapshots": _figures(found) for kind, found in runs.items()},
    }  # fmt: skip
    record.write("restart", figures, ("pydantic", "boto3"))
    return 0 if holds else 1


def _figures(found: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "wall_seconds": record.spread([one["wall_seconds"] for one in found]),
        "cpu_seconds": record.spread([one["cpu_seconds"] for one in found]),
        "requests": found[0]["requests"],
        "bytes_read": record.spread([one["bytes_read"] for one in found]),
    }


if __name__ == "__main__":
    sys.exit(main())
