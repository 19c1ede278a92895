"""One cluster for the whole session: Kubernetes with a node, our images in it, an S3 server that pods reach, a prepared data set."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import Cluster
from s3_server import BUCKET, KEYS, S3Server

from images import IMAGES, build, load
from pipeline.run import RunFolder
from pipeline.store import Store, open_store
from search.state import State

ROOT = Path(__file__).parents[2]
NAMESPACE = "hiernas"
WAIT_SECONDS = 300.0
KEEP = "HIERNAS_KEEP_CLUSTER"
"""Set by who writes these tests: the cluster stays up after them and is taken as it is by the next ones."""


def until(what: str, holds: Callable[[], object], seconds: float = WAIT_SECONDS) -> Any:
    """The first true value of `holds`; an AssertionError that names what did not come."""
    end = time.monotonic() + seconds
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.5)


@dataclass
class Site:
    """The cluster as a user has it: a kubeconfig, a namespace made by k8s/base, a bucket, a data set."""

    cluster: Cluster
    server: S3Server
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def hiernas(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """The command as a user gives it."""
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *arguments], env=os.environ | self.environment, cwd=self.folder, text=True, capture_output=True, timeout=120
        )
        assert not check or done.returncode == 0, f"hiernas {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def store_url(self, run: str) -> str:
        """Where a run's records are: each run has a store of its own, so that no test sees another's."""
        return f"s3://{BUCKET}/{run}"

    def config(self, run: str, **changes: Any) -> Path:
        """A config file for a small search; `changes` are laid over it, section by section."""
        plain: dict[str, Any] = {
            "run": run,
            "seed": 7,
            "data": "digits",
            "space": "liu2018-hierarchical",
            "strategy": {"kind": "evolution", "initial": 3, "initial_mutations": 60},
            "recipe": {"extends": "digits-small", "steps": 8, "milestones": [6], "curve_points": 2},
            "limits": {"max_evaluations": 5, "workers": 2},
            "executor": {"kind": "kubernetes", "threads": 1, "memory_gib": 3},
            "cluster": {
                "worker_image": IMAGES["worker"],
                "controller_image": IMAGES["controller"],
                "store_secret": "bucket",
                "environment": {"AWS_ENDPOINT_URL": self.server.url},
                "unreachable_seconds": 5,
                # The node of the tests has two processors in all.
                "worker_pod": {"spec": {"containers": [{"name": "worker", "resources": {"requests": {"cpu": "100m", "memory": "500Mi"}}}]}},
            },
        }
        for section, values in changes.items():
            plain[section] = plain.get(section, {}) | values if isinstance(values, dict) else values
        path = self.folder / f"{run}.yaml"
        path.write_text(yaml.safe_dump(plain))
        return path

    def submit(self, run: str, **changes: Any) -> str:
        """`hiernas submit`; returns what it printed."""
        return self.hiernas("submit", str(self.config(run, **changes)), "--store", self.store_url(run)).stdout

    def store(self, run: str) -> Store:
        """The run's store, read over the network as anybody would."""
        return open_store(self.store_url(run), make=False)

    def state(self, run: str) -> State:
        """The run as its records tell it."""
        return RunFolder(self.store(run), run).load()

    def status(self, run: str) -> dict[str, Any]:
        """`hiernas status --json`."""
        found: dict[str, Any] = json.loads(self.hiernas("status", run, "--store", self.store_url(run), "--json").stdout)
        return found

    def why(self, run: str) -> list[str]:
        """The lines of `hiernas status --why`."""
        lines = self.hiernas("status", run, "--store", self.store_url(run), "--why", "--namespace", NAMESPACE).stdout.splitlines()
        return [line.removeprefix("why").strip() for line in lines if line.startswith("why")]

    def objects(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        """Objects of the namespace."""
        found: list[dict[str, Any]] = json.loads(self.cluster.kubectl("-n", NAMESPACE, "get", kind, "-l", selector, "-o", "json"))["items"]
        return found

    def finished(self, run: str, seconds: float = WAIT_SECONDS) -> State:
        """Wait for the run's normal end, and that no Job or pod of a worker is left."""

        def ended() -> bool:
            found = self.status(run)
            return found["state"] == "finished" and found["evaluated"] >= found["max_evaluations"]

        until(f"the end of run {run}", ended, seconds)
        selector = f"hiernas/run={run},app.kubernetes.io/component=worker"
        until("the end of its jobs", lambda: not self.objects("jobs", selector), 60)
        until("the end of its pods", lambda: not self.objects("pods", selector), 60)
        verified = self.hiernas("verify", run, "--store", self.store_url(run))
        assert "is whole" in verified.stdout
        return self.state(run)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with contextlib.ExitStack() as stack:
        build()
        cluster = Cluster()
        if not (os.environ.get(KEEP) and cluster.status().get("kubelet")):
            cluster.up()
        if not os.environ.get(KEEP):
            stack.callback(cluster.down)
        load(cluster)
        cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found")  # of earlier tests, where the cluster was kept
        server = S3Server(folder / "bucket", cluster.address)
        server.start()
        stack.callback(server.kill)
        site = Site(cluster, server, folder)
        site.environment = KEYS | {"AWS_ENDPOINT_URL": server.url, "AWS_EC2_METADATA_DISABLED": "true", "KUBECONFIG": str(cluster.kubeconfig)}
        site.environment |= {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "PYTHONPATH": str(ROOT)}
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in site.environment.items():
            patch.setenv(name, value)
        cluster.kubectl("apply", "-f", "-", stdin=cluster.kubectl("kustomize", str(ROOT / "k8s/base")))
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bucket", "namespace": NAMESPACE}, "stringData": KEYS}
        cluster.kubectl("apply", "-f", "-", stdin=json.dumps(secret))
        site.hiernas("data", "prepare", "digits")
        yield site
