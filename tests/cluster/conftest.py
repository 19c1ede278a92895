"""One cluster for the whole session: Kubernetes with a node, our images in it, an S3 server that pods reach, a prepared data set.

Our own one, made here, or one that somebody names (foreign.py). Tests that take a node or the API server away, or change what belongs
to the whole cluster, are marked `own_cluster` with the reason; on a foreign one they are left out, and listed at the end.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import Cluster
from foreign import FOREIGN, LOCAL_PORT, LOCAL_STORE, STORE, Foreign, Forward, given, images
from foreign import NAMESPACE as FOREIGN_NAMESPACE
from processes import ClusterError
from s3_server import BUCKET, KEYS, S3Server

from images import IMAGES, build, load
from pipeline.run import RunFolder
from pipeline.store import Store, open_store
from search.state import State

ROOT = Path(__file__).parents[2]
NAMESPACE = "hiernas" if given() is None else FOREIGN_NAMESPACE
SECRET = "bucket"
WAIT_SECONDS = 300.0
PULL_SECONDS = 3600.0
"""For the first candidate on a foreign cluster, whose nodes may have to pull 3 GB."""
MARK = "own_cluster"
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


_left_out: list[str] = []
"""What was not done since the cluster is not ours."""


def left_out(what: str) -> None:
    """Listed at the end."""
    _left_out.append(what)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{MARK}(reason): only on the cluster that these tests make themselves")
    if given() is not None and os.environ.get("CI"):
        raise pytest.UsageError(f"{FOREIGN} is set, and so is CI: there nothing may be left out, so the tests make their own cluster")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if given() is None:
        return
    dropped = [(item, mark) for item in items if (mark := item.get_closest_marker(MARK)) is not None]
    config.hook.pytest_deselected(items=[item for item, _ in dropped])
    items[:] = [item for item in items if item.get_closest_marker(MARK) is None]
    for item, mark in dropped:
        left_out(f"{item.name}: {mark.args[0]}")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """In CI a skipped test is a failed one: whoever skips says that something was not shown."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("CI"):
        report.outcome, report.longrepr = "failed", f"{item.nodeid} was skipped, and CI is set: {report.longrepr}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _left_out:
        terminalreporter.section("left out, since the cluster is not made by these tests")
        for line in _left_out:
            terminalreporter.write_line(line)


@dataclass
class Own:
    """What a test may do to a cluster that these tests made themselves."""

    cluster: Cluster
    server: S3Server


@dataclass
class Site:
    """The cluster as a user has it: a kubeconfig, a namespace made by k8s/base, a bucket, a data set."""

    cluster: Cluster | Foreign
    folder: Path
    images: dict[str, str]
    store_root: str
    """s3://bucket, or with a prefix."""
    endpoint: str | None
    """As pods reach the store; None: Amazon's."""
    keys: dict[str, str]
    """The store's credentials, which pods have from a Secret."""
    environment: dict[str, str]
    own: Own | None = None

    def hiernas(self, *arguments: str, check: bool = True, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """The command as a user gives it."""
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *arguments],
            env=os.environ | self.environment,
            cwd=self.folder,
            text=True,
            capture_output=True,
            timeout=seconds,
        )
        assert not check or done.returncode == 0, f"hiernas {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def store_url(self, run: str) -> str:
        """Where a run's records are: each run has a store of its own, so that no test sees another's."""
        return f"{self.store_root}/{run}"

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
                "namespace": NAMESPACE,
                "worker_image": self.images["worker"],
                "controller_image": self.images["controller"],
                "store_secret": SECRET,
                "environment": {"AWS_ENDPOINT_URL": self.endpoint} if self.endpoint else {},
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

    @contextlib.contextmanager
    def address(self, pod: dict[str, Any], port: int) -> Iterator[str]:
        """Host and port by which this machine reaches a port of a pod."""
        if isinstance(self.cluster, Cluster):
            yield f"{pod['status']['podIP']}:{port}"
            return
        name = pod["metadata"]["name"]
        self.cluster.kubectl("-n", NAMESPACE, "wait", f"pod/{name}", "--for=condition=Ready", "--timeout=120s")
        forward = Forward(self.cluster, f"pod/{name}", port)
        try:
            yield f"127.0.0.1:{forward.port}"
        finally:
            forward.close()

    def restart_store(self) -> None:
        """The store goes away for a while, where it is ours to restart."""
        if self.own is not None:
            self.own.server.kill()
            self.own.server.start()
        elif STORE not in os.environ:
            self.cluster.kubectl("-n", NAMESPACE, "delete", "pod", "store-0")
            self.cluster.kubectl("-n", NAMESPACE, "rollout", "status", "statefulset/store", "--timeout=120s")
        else:
            left_out("the store goes away and comes back: it is not ours")

    def finished(self, run: str, seconds: float = WAIT_SECONDS) -> State:
        """Wait for the run's normal end, and that no Job or pod of a worker is left."""

        def ended() -> bool:
            found = self.status(run)
            # Released, or its last writes would fail where what it needs is taken away now, and it would try again for ever.
            return found["state"] == "finished" and found["evaluated"] >= found["max_evaluations"] and not found["in_charge"]

        try:
            until(f"the end of run {run}", ended, seconds)
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), json.dumps(self.status(run)), *self.why(run)])) from error
        selector = f"hiernas/run={run},app.kubernetes.io/component=worker"
        until("the end of its jobs", lambda: not self.objects("jobs", selector), 60)
        until("the end of its pods", lambda: not self.objects("pods", selector), 60)
        verified = self.hiernas("verify", run, "--store", self.store_url(run))
        assert "is whole" in verified.stdout
        return self.state(run)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder, kubeconfig = tmp_path_factory.mktemp("site"), given()
    with contextlib.ExitStack() as stack:
        site = own(folder, stack) if kubeconfig is None else foreign(Foreign(kubeconfig), folder, stack)
        site.environment |= {"KUBECONFIG": str(site.cluster.kubeconfig), "PYTHONPATH": str(ROOT)}
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in site.environment.items():
            patch.setenv(name, value)
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET, "namespace": NAMESPACE}, "stringData": site.keys}
        site.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(secret))
        site.hiernas("data", "prepare", "digits")
        if site.own is None:  # brings the images to a node, and says what is wrong before each test fails by it
            site.hiernas("doctor", str(site.config("first")), "--store", site.store_url("first"), "--smoke", seconds=PULL_SECONDS)
        yield site


@pytest.fixture(autouse=True)
def _nothing_lent(site: Site) -> Iterator[None]:
    """What a test puts beside the runs it takes away again, or it decides what the next one finds."""
    before = _beside_runs(site)
    yield
    until("the end of what the test made: " + ", ".join(_beside_runs(site) - before), lambda: not _beside_runs(site) - before, 10)


def _beside_runs(site: Site) -> set[str]:
    kinds = "persistentvolumeclaims,resourcequotas,limitranges,secrets,services,serviceaccounts,networkpolicies,roles,rolebindings"
    if site.own is not None:  # on another's cluster these are nobody's business here
        kinds += ",persistentvolumes,priorityclasses"
    return set(site.cluster.kubectl("-n", NAMESPACE, "get", kinds, "-o", "name").split())


def own(folder: Path, stack: contextlib.ExitStack) -> Site:
    """On the cluster that is made here, with a server of this machine as the store."""
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
    cluster.kubectl("apply", "-f", "-", stdin=cluster.kubectl("kustomize", str(ROOT / "k8s/base")))
    return Site(cluster, folder, IMAGES, f"s3://{BUCKET}", server.url, KEYS, _client(server.url), Own(cluster, server))


def foreign(cluster: Foreign, folder: Path, stack: contextlib.ExitStack) -> Site:
    """On a cluster that somebody names, in a namespace that is made and removed here, with a store of theirs or the server of k8s/local."""
    store = os.environ.get(STORE)
    try:
        cluster.make_namespace(folder, images()["store"], *(["base", "store"] if store else ["local"]))
    except ClusterError as error:
        pytest.exit(str(error), returncode=2)
    stack.callback(cluster.remove_namespace)
    if store:
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION")
        keys = {name: os.environ[name] for name in names if name in os.environ}
        if not {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"} <= keys.keys():
            pytest.exit(f"{STORE} is set: pods need AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION from the environment", returncode=2)
        root = f"{store.rstrip('/')}/{time.strftime('tests-%Y%m%dT%H%M%SZ', time.gmtime())}"
        return Site(cluster, folder, images(), root, os.environ.get("AWS_ENDPOINT_URL"), keys, {})
    try:
        cluster.kubectl("-n", NAMESPACE, "rollout", "status", "statefulset/store", "--timeout=300s")
    except ClusterError as error:
        pytest.exit(f"the S3 server of k8s/local does not start: {error}\n{cluster.kubectl('-n', NAMESPACE, 'describe', 'pod', 'store-0')}", returncode=2)
    forward = Forward(cluster, "service/store", LOCAL_PORT)
    stack.callback(forward.close)
    endpoint = f"http://store.{NAMESPACE}.svc:{LOCAL_PORT}"
    return Site(cluster, folder, images(), LOCAL_STORE, endpoint, KEYS, _client(f"http://127.0.0.1:{forward.port}"))


def _client(url: str) -> dict[str, str]:
    """The environment of who uses that server from here; whatever this machine has for AWS is set aside."""
    aside = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    return KEYS | aside | {"AWS_ENDPOINT_URL": url}
