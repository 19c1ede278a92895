"""A Kubernetes control plane on this machine with 100 nodes of 8 GPUs that are not there: KWOK plays them and their pods.

Only for bench/scale.py. What the pods would have written is written by its simulator.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import record
import yaml

sys.path.insert(0, str(record.ROOT / "tests" / "cluster"))
import artifacts
from cluster import COMPONENTS, Cluster
from processes import Processes

NODES, GPUS = 100, 8
NAMESPACE = "hiernas"
POD_SECONDS = 10
"""From a fake pod's start to its end. 800 of them would end at 80 a second, some twice what the cluster can do on two processors, so
they do not set the pace; and it is long enough that the simulator has written before a pod ends."""
READY_SECONDS = 120.0
FAKE = "kwok.x-k8s.io/node"


@contextmanager
def cluster(state: Path) -> Iterator[Cluster]:
    """Up, with its nodes ready and the namespace as an administrator makes it; down at the end."""
    one = Cluster(state)
    stages = _stages(artifacts.kwok())
    one.up(node=False, crowded=True)
    try:
        one.kubectl("apply", "-k", str(record.ROOT / "k8s" / "base"))
        (state / "stages.yaml").write_text(stages)
        one.kubectl("create", "-f", "-", stdin="\n---\n".join(json.dumps(_node(number)) for number in range(NODES)))
        kwok = Processes(state)  # marked as one of the cluster's, so it ends with it
        kwok.start("kwok", _command(one))
        ready = ("get", "nodes", "-o", 'jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}')
        kwok.wait_ready("kwok", lambda: one.kubectl(*ready).split() == ["True"] * NODES, READY_SECONDS)
        yield one
    finally:
        one.down()


class Usage:
    """What the processors did from its making on: for each of the cluster's processes, and for all that is not the cluster."""

    def __init__(self, one: Cluster) -> None:
        self._cluster = one
        self._began, self._busy, self._of = time.monotonic(), _busy(), self._each()

    def _each(self) -> dict[str, float]:
        processes = Processes(self._cluster.state)
        pids = {name: processes.pid(name) for name in (*COMPONENTS, "kwok")}
        return {name: processor_seconds(pid) for name, pid in pids.items() if pid is not None}

    def figures(self, jobs: int, own_seconds: float) -> dict[str, Any]:
        """For each of so many jobs; `own_seconds`: what the measured clients took. Others' share tells how quiet the machine was."""
        wall, busy = time.monotonic() - self._began, _busy() - self._busy
        used = {name: seconds - self._of[name] for name, seconds in self._each().items()}
        every = sum(used.values())
        return {
            "cluster_cpu_ms_each": {name: round(seconds / jobs * 1000, 1) for name, seconds in (used | {"all": every}).items()},
            "processors_busy": round(busy / wall, 2),
            "of_which_with_other_things": round((busy - every - own_seconds) / wall, 2),
        }


def processor_seconds(pid: int) -> float:
    """CPU time so far of a process."""
    found = psutil.Process(pid).cpu_times()
    return float(found.user + found.system)


def _busy() -> float:
    found = psutil.cpu_times()
    return float(found.user + found.nice + found.system)


def _stages(folder: Path) -> str:
    """KWOK's own stages, all of which happen at once, but for the end of a pod; and more pods at the same time than its four."""
    found: list[dict[str, Any]] = [yaml.safe_load(path.read_text()) for path in sorted(folder.glob("*.yaml"))]
    for one in found:
        if one["metadata"]["name"] == "pod-complete":
            one["spec"]["delay"] = {"durationMilliseconds": POD_SECONDS * 1000}
    options = {
        "manageNodesWithAnnotationSelector": f"{FAKE}=fake",
        "podPlayStageParallelism": 32,
        "nodePlayStageParallelism": 4,  # this and the next are its defaults, which it drops where it is given options
        "podsOnNodeSyncParallelism": 1,
    }
    found.append({"apiVersion": "config.kwok.x-k8s.io/v1alpha1", "kind": "KwokConfiguration", "options": options})
    return yaml.safe_dump_all(found)


def _command(one: Cluster) -> list[str]:
    return [str(artifacts.kwok() / "kwok"), f"--kubeconfig={one.kubeconfig}", f"--config={one.state}/stages.yaml", "--node-ip=127.0.0.1"]


def _node(number: int) -> dict[str, Any]:
    has = {"cpu": "64", "memory": "512Gi", "ephemeral-storage": "1Ti", "pods": "110", "nvidia.com/gpu": str(GPUS)}
    name = f"fake-{number:03d}"
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "annotations": {FAKE: "fake"}, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
        "status": {"allocatable": has, "capacity": has},
    }


def environment(one: Cluster) -> dict[str, str]:
    """Of a process that uses the cluster: no proxy may carry its requests away."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")} | {"KUBECONFIG": str(one.kubeconfig)}
