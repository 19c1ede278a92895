"""A cluster that somebody names, for the tests that need no power over its machines: `make test-cluster KUBECONFIG=…`.

It is reached by its kubeconfig alone, with the program kubectl. Only the variable FOREIGN leads here, never a KUBECONFIG that merely
happens to be exported. All is made in the namespace NAMESPACE, which must not be there before, and goes with it.
"""

import os
import shutil
import subprocess
import threading
from pathlib import Path

import yaml
from processes import ClusterError
from s3_server import free_port

FOREIGN = "HIERNAS_TEST_KUBECONFIG"
STORE = "HIERNAS_TEST_STORE"
"""s3://bucket/prefix that the pods and this machine reach, with the usual AWS environment; unset: the server of k8s/local."""
NAMESPACE = "hiernas-test"
LOCAL_PORT, LOCAL_STORE = 4566, "s3://searches"
K8S = Path(__file__).parents[2] / "k8s"


def given() -> Path | None:
    """The kubeconfig of a cluster that these tests were told to use."""
    found = os.environ.get(FOREIGN)
    return Path(found).absolute() if found else None


def images() -> dict[str, str]:
    """The images that its nodes have or pull, named by the variables that name them for images/build.sh too."""
    registry, tag = os.environ.get("REGISTRY") or "localhost", os.environ.get("TAG") or "local"
    return {name: f"{registry}/hiernas-{name}:{tag}" for name in ("controller", "worker", "store")}


class Foreign:
    """What tests ask of a cluster that is not theirs."""

    def __init__(self, kubeconfig: Path) -> None:
        if not shutil.which("kubectl"):
            raise ClusterError("kubectl is missing: these tests reach a cluster by it")
        self.kubeconfig = kubeconfig

    def command(self, *arguments: str) -> list[str]:
        """kubectl for this cluster. A test may give another --kubeconfig, which comes later and counts."""
        return ["kubectl", "--kubeconfig", str(self.kubeconfig), *arguments]

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """What kubectl prints; ClusterError if it fails."""
        done = subprocess.run(self.command(*arguments), input=stdin, capture_output=True, text=True)
        if done.returncode:
            raise ClusterError(f"kubectl {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def make_namespace(self, folder: Path, image: str, *overlays: str) -> None:
        """Apply folders of k8s/ in a namespace of their own, as docs/deploy.md says; ClusterError if it is there already."""
        if self.kubectl("get", "namespace", NAMESPACE, "--ignore-not-found", "-o", "name"):
            raise ClusterError(
                f"the cluster has a namespace {NAMESPACE} already, and these tests use no other: if it is left over from tests that "
                f"were broken off, delete it (kubectl delete namespace {NAMESPACE})"
            )
        shutil.copytree(K8S, folder / "k8s")
        (folder / "test").mkdir()
        name, _, tag = image.rpartition(":")
        overlay = {
            "namespace": NAMESPACE,
            "resources": [f"../k8s/{one}" for one in overlays],
            "images": [{"name": "localhost/hiernas-store", "newName": name, "newTag": tag}],
        }
        (folder / "test" / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
        self.kubectl("apply", "-k", str(folder / "test"))

    def remove_namespace(self) -> None:
        """Of all that was made here nothing stays in the cluster."""
        self.kubectl("delete", "namespace", NAMESPACE, "--timeout=300s")


class Forward:
    """A port of this machine that leads to one in the cluster, until `close`; made again whenever it breaks, as with its pod."""

    def __init__(self, cluster: Foreign, what: str, port: int) -> None:
        self.port = free_port()
        self._command = cluster.command("-n", NAMESPACE, "port-forward", what, f"{self.port}:{port}")
        self._process: subprocess.Popen[bytes] | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep)
        self._thread.start()

    def _keep(self) -> None:
        while not self._over.wait(0.5):
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def close(self) -> None:
        """Forward no more."""
        self._over.set()
        self._thread.join()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
