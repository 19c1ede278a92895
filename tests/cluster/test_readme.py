"""The README's quick start on a cluster, command by command, as it stands there; and what is said of its store.

What cannot be the same here is replaced by this table, and nothing else:

| README | here | why |
| --- | --- | --- |
| `make .venv/.run` | nothing | these tests run in that environment |
| `kind create cluster` | the tests' cluster | kind needs docker |
| `make images …` | the same, by buildah, on a base image made by debootstrap | neither docker nor its registry; docs/images.md has these settings |
| `kind load docker-image …` | `images/build.sh layout`, then `load` | kind needs docker |
| the default storage class of kind | one PersistentVolume, made before | the tests' cluster has none |
| the cluster's DNS | names.py | the tests' cluster has none |
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import artifacts
import pytest
import yaml
from conftest import NAMESPACE, ROOT, Own, Site, until
from names import Names
from node import NAME
from readme_commands import CLUSTER_MARK, blocks

from images import IMAGES, ctr, settings

RUN, STORE = "first", "hiernas-store"
PATIENCE_SECONDS = 540.0
LEFT_OUT = ("make .venv/.run", "kind create cluster")
LOAD = "kind load docker-image "
pytestmark = pytest.mark.own_cluster("the README's commands are run in the namespace hiernas, and their images brought to the node")


def script(own: Own) -> str:
    """The README's commands for bash, which ends at the first that fails, and then what they left in the background."""
    commands = [line for info, lines in blocks(ROOT / "README.md") for line in lines if CLUSTER_MARK in info]
    assert set(LEFT_OUT) < set(commands)
    (load,) = [line for line in commands if line.startswith(LOAD)]
    assert sorted(load.removeprefix(LOAD).split()) == sorted(f"localhost/hiernas-{image}:local" for image in IMAGES)
    here = {load: f"images/build.sh layout && CTR='{ctr(own.cluster)}' images/build.sh load >/dev/null"} | dict.fromkeys(LEFT_OUT, ":")
    return "\n".join(["set -euo pipefail", "trap 'kill $(jobs -p)' EXIT", "set -x", *(here.get(line, line) for line in commands)])


def environment(own: Own) -> dict[str, str]:
    """What a person has who has kubectl, a kubeconfig and nothing of AWS, beside what images/build.sh needs here."""
    plain = {name: value for name, value in settings("local").items() if not name.startswith(("AWS_", "HIERNAS_"))}
    programs = os.pathsep.join([str(artifacts.programs()), str(Path(sys.executable).parent), os.environ["PATH"]])
    return plain | {"PATH": programs, "KUBECONFIG": str(own.cluster.kubeconfig)}


@contextmanager
def volume(own: Own) -> Iterator[Path]:
    """What a storage class would make."""
    folder = own.cluster.state / "volumes" / "store"
    folder.mkdir(parents=True)
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [NAME]}
    spec = {
        "capacity": {"storage": "5Gi"},
        "accessModes": ["ReadWriteOnce"],
        "local": {"path": str(folder)},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
    }
    own.cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "store"}, "spec": spec}))
    try:
        yield folder
    finally:
        own.cluster.kubectl("delete", "pv", "store", "--wait=false")


def remove(own: Own) -> None:
    """All that the commands made beside k8s/base, which other tests need. The pods of the run first: no connection is left hanging."""
    own.cluster.kubectl("-n", NAMESPACE, "delete", "lease", RUN, "--ignore-not-found")
    own.cluster.kubectl("-n", NAMESPACE, "wait", "pod", "-l", f"hiernas/run={RUN}", "--for=delete", "--timeout=60s")
    made = ["statefulset/store", "service/store", "pvc/store", "secret/store", "networkpolicy/store", "networkpolicy/hiernas-local"]
    own.cluster.kubectl("-n", NAMESPACE, "delete", *made, "--ignore-not-found")
    own.cluster.kubectl("-n", NAMESPACE, "wait", "pod", "-l", f"app.kubernetes.io/name={STORE}", "--for=delete", "--timeout=60s")


def test_the_quick_start_is_followed_to_its_report_and_its_store_outlives_a_pod(site: Site) -> None:
    own = site.own
    assert own is not None
    with ExitStack() as stack:
        names = Names(own.cluster)
        stack.callback(names.close)
        folder = stack.enter_context(volume(own))
        stack.callback(remove, own)
        done = subprocess.run(["bash", "-c", script(own)], cwd=ROOT, env=environment(own), text=True, capture_output=True, timeout=PATIENCE_SECONDS)
        assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        assert "its controller is started" in done.stdout
        assert (ROOT / "runs" / "first-report" / "report.html").stat().st_size > 10_000

        (before,) = site.objects("pods", f"app.kubernetes.io/name={STORE}")
        own.cluster.kubectl("-n", NAMESPACE, "delete", "pod", "store-0")
        own.cluster.kubectl("-n", NAMESPACE, "rollout", "status", "statefulset/store", "--timeout=60s")
        (after,) = until("its next pod", lambda: site.objects("pods", f"app.kubernetes.io/name={STORE}"), 30)
        assert before["metadata"]["uid"] != after["metadata"]["uid"]
        keys = yaml.safe_load((ROOT / "k8s" / "local" / "secret.yaml").read_text())["stringData"]
        there = {"AWS_ENDPOINT_URL": f"http://{after['status']['podIP']}:4566", "AWS_REGION": "us-east-1"} | keys
        command = [sys.executable, "-m", "pipeline.cli", "verify", RUN, "--store", "s3://searches/runs"]
        verified = subprocess.run(command, cwd=ROOT, env=os.environ | there, text=True, capture_output=True, timeout=60)
        assert "is whole" in verified.stdout, verified.stderr
        assert any(folder.rglob("run.json"))
