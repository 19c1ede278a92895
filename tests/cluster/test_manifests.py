"""What an administrator applies, and what `hiernas submit` makes, as a real API server sees it: dry runs, every field known, every admission rule asked.

Not here: k8s/kueue, whose definitions come from no registry that these tests reach.
"""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import Cluster
from conftest import NAMESPACE, ROOT, Site, until
from processes import ClusterError

FOLDERS = ["base", "store", "local", "gpu", "identity", "monitoring"]
GOLDEN = sorted((ROOT / "tests" / "golden").glob("*.yaml"))
OPERATOR = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
"""Go module that holds the definitions of PodMonitor and PrometheusRule."""
RUN = "rights"
DEFINITIONS = pytest.mark.own_cluster("teaches the whole cluster Prometheus' kinds, and takes them away again")
Object = dict[str, Any]


def definitions() -> list[str]:
    """Files that teach a server the kinds of k8s/monitoring."""
    done = subprocess.run(["go", "mod", "download", "-json", OPERATOR], capture_output=True, text=True, check=True)
    folder = Path(json.loads(done.stdout)["Dir"]) / "example" / "prometheus-operator-crd"
    return [str(folder / f"monitoring.coreos.com_{kind}.yaml") for kind in ("podmonitors", "prometheusrules")]


def dry_run(cluster: Cluster, *objects: Object) -> None:
    """ClusterError unless the server would take them all, knowing every field."""
    text = yaml.safe_dump_all(objects)
    cluster.kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts", "-f", "-", stdin=text)


def rendered(cluster: Cluster, folder: str) -> list[Object]:
    return list(yaml.safe_load_all(cluster.kubectl("kustomize", str(ROOT / "k8s" / folder))))


def golden(path: Path) -> list[Object]:
    """Objects of a golden file, in the namespace that is there."""
    found = list(yaml.safe_load_all(path.read_text()))
    for one in found:
        one["metadata"]["namespace"] = NAMESPACE
    return found


def pod_of(job: Object) -> Object:
    """The pod that a Job would get: Pod Security judges pods, and only warns of Jobs."""
    template = job["spec"]["template"]
    spec = {key: value for key, value in template["spec"].items() if key != "priorityClassName"}  # a class that is not there
    return {"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"] | {"name": job["metadata"]["name"], "namespace": NAMESPACE}, "spec": spec}


@pytest.fixture(scope="module")
def cluster(site: Site) -> Iterator[Cluster]:
    """The cluster, knowing Prometheus' kinds."""
    assert site.own is not None
    for path in definitions():
        site.cluster.kubectl("apply", "--server-side", "-f", path)
    site.cluster.kubectl(
        "wait", "--for=condition=Established", "--timeout=30s", *[f"crd/{kind}.monitoring.coreos.com" for kind in ("podmonitors", "prometheusrules")]
    )
    yield site.own.cluster
    for path in definitions():
        site.cluster.kubectl("delete", "-f", path)


@DEFINITIONS
@pytest.mark.parametrize("folder", FOLDERS)
def test_the_server_takes_each_folder(cluster: Cluster, folder: str) -> None:
    dry_run(cluster, *rendered(cluster, folder))


@DEFINITIONS
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_the_server_takes_what_submit_makes_and_its_pods(cluster: Cluster, path: Path) -> None:
    objects = golden(path)
    dry_run(cluster, *objects)
    dry_run(cluster, *[pod_of(one) for one in objects if one["kind"] == "Job"])


@DEFINITIONS
def test_the_server_refuses_a_misspelt_field_and_a_pod_that_is_not_restricted(cluster: Cluster) -> None:
    monitor = next(one for one in rendered(cluster, "monitoring") if one["kind"] == "PodMonitor")
    monitor["spec"]["podMetricsEndpoints"][0]["scrapeTimeOut"] = "10s"
    with pytest.raises(ClusterError, match="scrapeTimeOut"):
        dry_run(cluster, monitor)
    (job,) = golden(ROOT / "tests" / "golden" / "worker.yaml")
    pod = pod_of(job)
    del pod["spec"]["securityContext"]["runAsNonRoot"]
    with pytest.raises(ClusterError, match="violates PodSecurity"):
        dry_run(cluster, pod)
    job["spec"]["podFailurPolicy"] = {}
    with pytest.raises(ClusterError, match="podFailurPolicy"):
        dry_run(cluster, job)


def somebody(site: Site) -> Site:
    """The site as a person has it who was given the role of k8s/base, and nothing else."""
    cluster = site.cluster
    cluster.kubectl("-n", NAMESPACE, "create", "serviceaccount", "somebody")
    cluster.kubectl("-n", NAMESPACE, "create", "rolebinding", "somebody", "--role=hiernas-submitter", f"--serviceaccount={NAMESPACE}:somebody")
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    for user in config["users"]:
        user["user"] = {"token": cluster.kubectl("-n", NAMESPACE, "create", "token", "somebody").strip()}
    path = site.folder / "somebody.kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return replace(site, environment=site.environment | {"KUBECONFIG": str(path)})


def test_a_person_with_the_submitters_role_submits_changes_asks_and_removes(site: Site) -> None:
    person = somebody(site)
    kubectl = ("--kubeconfig", person.environment["KUBECONFIG"], "-n", NAMESPACE)
    try:
        limits = {"max_evaluations": 5, "workers": 0}  # nothing needs to run for this
        assert "its controller is started" in person.submit(RUN, limits=limits)
        until("its claim", lambda: person.status(RUN)["max_evaluations"] == 5, 120)
        (before,) = site.objects("jobs", f"hiernas/run={RUN}")
        assert "its controller runs as it is" in person.submit(RUN, limits=limits | {"max_evaluations": 6})
        assert person.status(RUN)["max_evaluations"] == 6  # by a request in the store
        assert person.state(RUN).requests[-1].changes == {"max_evaluations": 6}
        (after,) = site.objects("jobs", f"hiernas/run={RUN}")
        assert after["metadata"]["uid"] == before["metadata"]["uid"]
        noted = {"controller_pod": {"metadata": {"annotations": {"note": "another"}}}}
        assert "its controller is replaced" in person.submit(RUN, limits=limits, cluster=noted)
        assert not [line for line in person.why(RUN) if "cannot be read" in line]
        for forbidden in (("get", "secrets"), ("get", "nodes"), ("delete", "pods", "--all")):
            with pytest.raises(ClusterError, match="forbidden"):
                site.cluster.kubectl(*kubectl, *forbidden)
        site.cluster.kubectl(*kubectl, "delete", "lease", RUN)
        until("no job of the run", lambda: not site.objects("jobs", f"hiernas/run={RUN}"), 60)
    finally:
        site.cluster.kubectl("-n", NAMESPACE, "delete", "lease/" + RUN, "rolebinding/somebody", "serviceaccount/somebody", "--ignore-not-found")
