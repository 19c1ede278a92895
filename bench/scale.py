"""Does the controller keep up with the cluster? 800 workers on 100 fake 8-GPU nodes, 3,000 candidates, beside a bare client.

    make prove-scale        (.venv/bin/python bench/scale.py)

A control plane is started on this machine (tests/cluster: etcd, API server, controller manager, scheduler, their own limits raised),
with KWOK, which plays the nodes and their pods: each pod runs 10 s and ends well. On it, one after the other:
1. a bare client that keeps 800 Jobs in flight and does nothing else (scale_bare.py);
2. a search, as published but for its length, by the real controller in a process of its own, with a store in a folder, metrics and
   all, `max_pending` out of the way. A simulator, another process, does what the workers would: it writes an evaluation for each
   pod that runs, by the worker's own code with a trainer that returns at once, long before that pod ends;
3. the bare client again.
With `--kinds bare scale bare ramped` comes a search with `max_pending` as it is where nobody sets it: no more jobs wait than run.
Everything shares the machine's processors, the simulator with the searches alone. Jobs/s is over the outcomes (for the bare client:
Jobs seen completed, deleted and replaced) from 10 to 90 %. At their ends `verify` must find nothing in the searches, each candidate
have one outcome, of its first attempt, and no Job be left. Required: at least 0.8 of the bare client's Jobs/s.
Takes some eight minutes, once KWOK and Kubernetes are built; writes results/scale.json.
"""

import argparse
import cProfile
import json
import os
import resource
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import record

sys.path.insert(0, str(record.ROOT / "tests"))
import scale_bare
import scale_cluster
from scale_cluster import GPUS, NAMESPACE, NODES, POD_SECONDS, Cluster

from pipeline import deploy, labels
from pipeline.api import path_of
from pipeline.clock import SystemClock
from pipeline.cluster import ClusterConfig
from pipeline.config import parse_recipe
from pipeline.controller import Controller
from pipeline.launch import PACE_SECONDS, place
from pipeline.metrics import CountedStore, Exporter
from pipeline.plan import View
from pipeline.run import RunFolder
from pipeline.store import open_store
from pipeline.verify import verify
from pipeline.worker import work
from search.evolution import Evolution
from search.graph import Model
from search.limits import Limits
from search.records import ALGORITHM, Constraints, DataReference, Resources, Run
from search.space import SPACES

COUNT, WORKERS = 3000, NODES * GPUS
REQUIRED = 0.8
STEADY = (0.1, 0.9)
RESOURCES = Resources(threads=4, memory_bytes=16 * 1024**3, time_limit_seconds=3600.0, gpus=1)
CLUSTER = ClusterConfig("example.org/hiernas-worker:1", "example.org/hiernas-controller:1", NAMESPACE)
SEARCH, RAMPED = "scale", "ramped"
EMPTY_SECONDS = 120.0
"""How long the cluster may take to remove what a run has left."""


def begin(name: str) -> Run:
    """What is searched."""
    recipe = parse_recipe("liu2018-search", "recipe")
    model = Model(recipe.stem, recipe.width, recipe.cells, 3, 32, 10)
    data = DataReference("none", "0" * 64)
    return Run(name, secrets.token_hex(16), ALGORITHM, 1, SPACES["liu2018-hierarchical"], Evolution(), recipe, model, data, Constraints())


def control(url: str, name: str, count: int, profile: str | None) -> dict[str, Any]:
    """The controller, in this process, from its claim to its release."""
    store = CountedStore(open_store(url))
    folder = RunFolder(store, name)
    executor = deploy.executor(folder.run, url, CLUSTER, SystemClock())
    limits = Limits(max_evaluations=count, workers=WORKERS, max_pending=None if name == RAMPED else WORKERS)
    one = Controller(folder, executor, SystemClock(), place(), limits, RESOURCES)
    exporter = Exporter(name, store)
    latencies: list[float] = []
    rounds = [time.monotonic()]

    def observe(controller: Controller, view: View) -> None:
        latencies.extend(controller.latencies)
        exporter(controller, view)
        rounds.append(time.monotonic())

    profiler = cProfile.Profile()
    if profile:
        profiler.enable()
    before = time.process_time()
    one.work(observe, PACE_SECONDS[executor.name])
    cpu = time.process_time() - before
    if profile:
        profiler.dump_stats(profile)
    return {
        "cpu_seconds_at_start": before,
        "cpu_seconds": cpu,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "latencies": latencies,
        "rounds": [after - before for before, after in pairwise(rounds)],
        "store_requests": {f"{operation} {result}": number for (operation, result), number in store.requests.items() if number},
    }


def simulate(url: str, name: str) -> None:
    """Write an evaluation for each pod as soon as it runs, until this process is ended."""
    from trainers import instant

    store, asked = open_store(url), scale_bare.Http(Path(os.environ["KUBECONFIG"]))
    pods = path_of(NAMESPACE, "pods")
    print("ready", flush=True)
    for event in asked.watch(pods, labelSelector=labels.workers_of(name), fieldSelector="status.phase=Running"):
        if event["type"] == "ADDED":
            found = event["object"]["metadata"]["labels"]
            if work(store, name, int(found[labels.CANDIDATE]), int(found[labels.ATTEMPT]), lambda: instant, "nowhere"):
                raise SystemExit(f"the worker of {found} failed")


def search(cluster: Cluster, name: str, count: int, profile: str | None = None) -> dict[str, Any]:
    """A search to its end, and its figures."""
    with tempfile.TemporaryDirectory(prefix="hiernas-scale-store-") as root:
        RunFolder(open_store(root), name).begin(begin(name))
        command = [sys.executable, __file__, "--count", str(count), "--store", root]
        environment = scale_cluster.environment(cluster)
        usage = scale_cluster.Usage(cluster)
        with subprocess.Popen([*command, "--simulate", name], env=environment, stdout=subprocess.PIPE, text=True) as simulator:
            try:
                assert simulator.stdout is not None
                require(simulator.stdout.readline() == "ready\n", "the simulator did not begin")
                asked = [*command, "--control", name, *(["--profile", profile] if profile else [])]
                done = subprocess.run(asked, env=environment, stdout=subprocess.PIPE, text=True, check=False)
                require(simulator.poll() is None, "the simulator ended")
                simulated = scale_cluster.processor_seconds(simulator.pid)
            finally:
                simulator.terminate()
        require(done.returncode == 0, f"the controller ended with {done.returncode}")
        told = json.loads(done.stdout)
        used = usage.figures(count, simulated + told["cpu_seconds_at_start"] + told["cpu_seconds"])
        left = cluster.kubectl("-n", NAMESPACE, "get", "jobs", "-l", labels.workers_of(name), "-o", "name")
        require(not left, f"Jobs are left: {left}")
        store = open_store(root)
        require(not (found := verify(store, name)), f"verify: {found[:5]}")
        state = RunFolder(store, name).load()
        require(sorted(one.candidate for one in state.history) == list(range(count)), "not each candidate has one outcome")
        require(not state.totals.ends, f"attempts ended without being accepted: {state.totals.ends}")
        attempts = sorted((story.attempts[0].stamp.at, story.attempts[0].open) for story in state.stories)
        first, last = (int(count * part) for part in STEADY)
        cluster.kubectl("-n", NAMESPACE, "delete", "lease", name)
        return {
            **_rate([one.stamp.at for one in state.history]),
            "attempts open at a dispatch, median of the steady part": statistics.median(opened for _, opened in attempts[first:last]),
            "controller": _controller(told, count),
            "seconds from a result to the next Job": _percentiles(told["latencies"]),
            "seconds between rounds": _percentiles(told["rounds"]),
            "simulator_cpu_ms_each": round(simulated / count * 1000, 2),
            **used,
        }


def _controller(told: dict[str, Any], count: int) -> dict[str, Any]:
    return {
        "cpu_ms_each": round(told["cpu_seconds"] / count * 1000, 2),
        "cpu_seconds_before_its_claim": round(told["cpu_seconds_at_start"], 2),
        "peak_memory_mib": round(told["peak_memory_bytes"] / 1024**2, 1),
        "store_requests": told["store_requests"],
    }


def bare(cluster: Cluster, name: str, count: int) -> dict[str, Any]:
    """The bare client, and its figures."""
    usage = scale_cluster.Usage(cluster)
    told = scale_bare.run(cluster.kubeconfig, name, CLUSTER, RESOURCES, count, WORKERS)
    used = usage.figures(count, told.cpu_seconds)
    return {**_rate(told.ends), "client_cpu_ms_each": round(told.cpu_seconds / count * 1000, 2), **used}


def _rate(times: Sequence[float]) -> dict[str, float]:
    """How many a second in the steady part."""
    first, last = (int(len(times) * part) for part in STEADY)
    return {
        "jobs_per_second": round((last - first) / (times[last] - times[first]), 2),
        "seconds_from_first_to_last": round(times[-1] - times[0], 1),
    }


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"median": round(statistics.median(values), 3), "p99": round(cuts[98], 3), "most": round(max(values), 3), "n": len(values)}


def settle(cluster: Cluster) -> None:
    """Wait until the cluster has removed what a run has left, so that the next one finds it idle."""
    end = time.monotonic() + EMPTY_SECONDS
    while cluster.kubectl("-n", NAMESPACE, "get", "jobs,pods", "-o", "name"):
        require(time.monotonic() < end, f"the cluster was not empty after {EMPTY_SECONDS:.0f} s")
        time.sleep(1)


def require(holds: bool, message: str) -> None:
    """End with an error where something does not hold."""
    if not holds:
        raise SystemExit(f"broken: {message}")


def measure(kinds: Sequence[str], count: int, profile: str | None) -> dict[str, list[dict[str, Any]]]:
    """One after the other on one cluster: what each came to, by kind."""
    found: dict[str, list[dict[str, Any]]] = {}
    with scale_cluster.cluster(Path(tempfile.gettempdir()) / "hiernas-scale") as cluster:
        for kind in kinds:
            one = bare(cluster, f"bare-{len(found.get('bare', ()))}", count) if kind == "bare" else search(cluster, kind, count, profile)
            found.setdefault(kind, []).append(one)
            print(kind, json.dumps(one), os.getloadavg(), file=sys.stderr, flush=True)
            settle(cluster)
    return found


def main() -> int:
    """Measure, write, and say by the exit code whether what is required holds."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--kinds", nargs="+", choices=("bare", SEARCH, RAMPED), default=["bare", SEARCH, "bare"], help="what runs, in this order")
    arguments.add_argument("--count", type=int, default=COUNT, help="candidates; with another number nothing is written")
    arguments.add_argument("--profile", help="file for the controller's profile; it slows it down")
    for name in ("store", "control", "simulate"):
        arguments.add_argument(f"--{name}", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.control:
        print(json.dumps(control(given.store, given.control, given.count, given.profile)))
        return 0
    if given.simulate:
        simulate(given.store, given.simulate)
        return 0
    found = measure(given.kinds, given.count, given.profile)
    if given.count != COUNT or given.profile or not {"bare", SEARCH} <= found.keys():
        return 0
    return 0 if report(found, given.kinds) else 1


def report(found: dict[str, list[dict[str, Any]]], order: Sequence[str]) -> bool:
    """Write what was measured; whether it is what is required."""
    rates = {kind: [one["jobs_per_second"] for one in runs] for kind, runs in found.items()}
    ratio = statistics.mean(rates[SEARCH]) / statistics.mean(rates["bare"])
    figures = {
        "required": f"at least {REQUIRED} of the bare client's Jobs/s",
        "holds": ratio >= REQUIRED,
        "ratio": round(ratio, 3),
        "jobs_per_second": {kind: record.spread(found, 2) for kind, found in rates.items()},
        "run": {"candidates": COUNT, "workers": WORKERS, "nodes": NODES, "gpus_of_a_node": GPUS, "pod_seconds": POD_SECONDS},
        "order": order,
        **found,
    }
    record.write("scale", figures, ("kubernetes", "pydantic"))
    return ratio >= REQUIRED


if __name__ == "__main__":
    sys.exit(main())
