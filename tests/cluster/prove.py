"""Shows that the test cluster does what the tests rely on, and leaves nothing behind; prints what each step took.

    python tests/cluster/prove.py

Starts and removes a cluster with a node, twice. Needs the packages of `cluster.py install`, and root.
"""

from __future__ import annotations

import http.server
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import node
from artifacts import PAUSE_IMAGE, cache_dir
from cluster import Cluster
from facts import NODE_ADDRESS
from processes import wait_until

NAMESPACE = "restricted"
BASE_IMAGE = "localhost/hiernas-base:bookworm"
# Where Kubernetes and containerd write unless told otherwise.
USUAL = ("/etc/cni", "/etc/kubernetes", "/opt/cni", "/opt/containerd", "/usr/libexec/kubernetes", "/var/lib/containerd", "/var/log/pods", "/run/netns")
Json = dict[str, Any]


def main() -> None:
    before = machine()
    cluster = Cluster(Path(tempfile.gettempdir()) / "hiernas-prove")
    try:
        step("up", cluster.up)
        step("objects and jobs", lambda: jobs(cluster))
        step("what a pod sees", lambda: inside_a_pod(cluster))
        step("kill -9 of the API server, and start", lambda: api_server_dies(cluster))
        step("kill -9 of etcd, and start", lambda: etcd_dies(cluster))
        step("kill -9 of containerd, and start", lambda: containerd_dies(cluster))
        step("the kubelet dies and comes back", lambda: kubelet_dies(cluster))
        # What a `kill -9` of the session that called `up` leaves: all of it runs, a container is among it.
        apply(cluster, job("left-over", "sleep", "1000"))
        wait_until("a running pod", lambda: phase(cluster, "left-over") == "Running", 60)
        step("up over a cluster that was left running", cluster.up)
    finally:
        step("down", cluster.down)
    step("kill -9 of `up` at every half second, and down", lambda: up_dies(cluster, before))
    print(f"changed on the machine: {changes(before) or 'nothing'}")


def step(name: str, run: Callable[[], object]) -> None:
    began = time.monotonic()
    run()
    print(f"{time.monotonic() - began:6.1f} s  {name}", flush=True)


def machine() -> dict[str, set[str]]:
    """What a cluster could leave behind."""
    interfaces = subprocess.run(["ip", "-oneline", "link"], capture_output=True, text=True, check=True).stdout.splitlines()
    addresses = subprocess.run(["ip", "-oneline", "address"], capture_output=True, text=True, check=True).stdout.splitlines()
    mark = "hiernas-prove"
    return {
        "processes": {pid for pid in filter(str.isdigit, os.listdir("/proc")) if mark in (_text(f"/proc/{pid}/environ") + _text(f"/proc/{pid}/cmdline"))},
        "mounts": {line for line in _text("/proc/self/mounts").splitlines() if any(path in line for path in (mark, *node.HIDDEN))},
        "interfaces": {line.split(": ")[1] for line in interfaces},
        "addresses": {" ".join(line.split()[1:4]) for line in addresses},
        "routes": set(subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout.splitlines()),
        "control groups": {str(path) for path in Path("/sys/fs/cgroup").glob("*/*/") if node.CGROUP in path.name},
        "sysctls": {f"{name}={value}" for name, value in node.read_sysctls().items()},
        "folders": {str(path) for path in map(Path, (*node.HIDDEN, *USUAL, str(Path.home() / ".kube"))) if path.exists()},
        "state": {str(path) for path in Path(tempfile.gettempdir()).glob("hiernas-prove*")},
    }


def changes(before: dict[str, set[str]]) -> dict[str, list[str]]:
    both = {what: sorted(now ^ before[what]) for what, now in machine().items()}
    return {what: names for what, names in both.items() if names}


def _text(path: str) -> str:
    try:
        return Path(path).read_bytes().decode(errors="replace")
    except OSError:
        return ""


# Objects


def job(name: str, *words: str, image: str = PAUSE_IMAGE, command: list[str] | None = None) -> Json:
    container: Json = {
        "name": "main",
        "image": image,
        "args": list(words),
        "env": [
            {"name": "FROM_CONFIG_MAP", "valueFrom": {"configMapKeyRef": {"name": "words", "key": "word"}}},
            {"name": "FROM_SECRET", "valueFrom": {"secretKeyRef": {"name": "secrets", "key": "word"}}},
        ],
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "64Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": name, "mountPath": f"/{name}"} for name in ("scratch", "words", "secrets", "token")],
    }
    if command:
        container["command"] = command
    spec: Json = {
        "restartPolicy": "Never",
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [
            {"name": "scratch", "emptyDir": {}},
            {"name": "words", "configMap": {"name": "words"}},
            {"name": "secrets", "secret": {"secretName": "secrets"}},
            {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token", "audience": "somebody", "expirationSeconds": 600}}]}},
        ],
        # An unreachable node: the default is five minutes.
        "tolerations": [{"key": f"node.kubernetes.io/{key}", "effect": "NoExecute", "tolerationSeconds": 5} for key in ("unreachable", "not-ready")],
    }
    rules = [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [3]}},
    ]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"backoffLimit": 0, "podReplacementPolicy": "Failed", "podFailurePolicy": {"rules": rules}, "template": {"spec": spec}},
    }


def apply(cluster: Cluster, *objects: Json) -> None:
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))


def get(cluster: Cluster, *what: str) -> Json:
    return dict(json.loads(cluster.kubectl("--namespace", NAMESPACE, "get", *what, "-o", "json")))


def pod(cluster: Cluster, job_name: str) -> Json:
    pods = get(cluster, "pods", "-l", f"job-name={job_name}")["items"]
    return dict(pods[0]) if pods else {}


def phase(cluster: Cluster, job_name: str) -> str:
    return str(pod(cluster, job_name).get("status", {}).get("phase", ""))


def ended(cluster: Cluster, job_name: str) -> str:
    """Complete or the reason of the failure, once the Job has ended."""

    def conditions() -> list[Json]:
        return [
            one for one in get(cluster, "job", job_name)["status"].get("conditions", []) if one["type"] in ("Complete", "Failed") and one["status"] == "True"
        ]

    wait_until(f"the end of job {job_name}", lambda: bool(conditions()), 60)
    found = conditions()[0]
    return "Complete" if found["type"] == "Complete" else str(found["reason"])


def check(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise SystemExit(f"{what}: expected {expected!r}, found {found!r}")
    print(f"          {what}: {found}", flush=True)


# Steps


def jobs(cluster: Cluster) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    apply(cluster, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}})
    words = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "words", "namespace": NAMESPACE}, "data": {"word": "open"}}
    secrets = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "secrets", "namespace": NAMESPACE}, "stringData": {"word": "closed"}}
    root = job("root", "exit", "0")
    root["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"] = False
    apply(cluster, words, secrets, job("good", "sleep", "1"), job("three", "exit", "3"), job("hungry", "eat", "200"), root)
    check("a job that does its work", ended(cluster, "good"), "Complete")
    check("its log", cluster.kubectl("--namespace", NAMESPACE, "logs", "job/good"), "pause sleep 1\n")
    check("a job with an exit code of its failure policy", ended(cluster, "three"), "PodFailurePolicy")
    check("a job over its memory limit", ended(cluster, "hungry"), "BackoffLimitExceeded")
    state = pod(cluster, "hungry")["status"]["containerStatuses"][0]["state"]["terminated"]
    check("its container", (state["reason"], state["exitCode"]), ("OOMKilled", 137))
    wait_until("the refusal of root", lambda: "violates PodSecurity" in cluster.kubectl("--namespace", NAMESPACE, "get", "events"))
    check("pods of a job that may run as root", pod(cluster, "root"), {})
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": NAMESPACE}, "spec": {"hard": {"pods": "0"}}}
    apply(cluster, quota, job("too-many", "exit", "0"))
    wait_until("the refusal by quota", lambda: "exceeded quota" in cluster.kubectl("--namespace", NAMESPACE, "get", "events"))
    cluster.kubectl("--namespace", NAMESPACE, "delete", "resourcequota/none", "job/too-many", "job/root", "job/good", "--cascade=foreground", "--wait")
    check("pods of a deleted job", pod(cluster, "good"), {})


INSIDE = """
import json, os, ssl, urllib.request
def read(path): return open(path).read()
def fails(run):
    try: run()
    except OSError as error: return type(error).__name__
account = "/var/run/secrets/kubernetes.io/serviceaccount/"
api = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}/api/v1/namespaces/restricted/configmaps/words"
request = urllib.request.Request(api, headers={"Authorization": "Bearer " + read(account + "token")})
open("/scratch/file", "w").write("x")
print(json.dumps({
    "s3": urllib.request.urlopen("http://%s").read().decode(),
    "api": json.load(urllib.request.urlopen(request, context=ssl.create_default_context(cafile=account + "ca.crt")))["data"]["word"],
    "outside": fails(lambda: urllib.request.urlopen("http://192.0.2.1", timeout=3)),
    "name": fails(lambda: urllib.request.urlopen("http://example.invalid", timeout=3)),
    "env": os.environ["FROM_CONFIG_MAP"] + " " + os.environ["FROM_SECRET"],
    "files": read("/words/word") + " " + read("/secrets/word"),
    "token": len(read("/token/token").split(".")),
    "user": os.getuid(),
    "root file system": fails(lambda: open("/file", "w")),
}))
"""
SEEN = {
    "s3": "from the host",
    "api": "open",
    "outside": "URLError",
    "name": "URLError",
    "env": "open closed",
    "files": "open closed",
    "token": 3,
    "user": 1000,
    "root file system": "OSError",
}


def inside_a_pod(cluster: Cluster) -> None:
    step("  base image", lambda: subprocess.run([Path(__file__).with_name("base-image.sh")], check=True, stdout=subprocess.DEVNULL))
    with tempfile.TemporaryDirectory(dir=cache_dir()) as folder:
        archive = Path(folder) / "base.tar"
        step("  its export", lambda: subprocess.run(["buildah", "push", "--quiet", BASE_IMAGE, f"oci-archive:{archive}:{BASE_IMAGE}"], check=True))
        began = time.monotonic()
        check("names of the imported image", cluster.load_image(archive), [BASE_IMAGE])
        print(f"{time.monotonic() - began:6.1f} s    its import")
    rights = "create rolebinding reads --clusterrole=view --serviceaccount=restricted:default"
    cluster.kubectl("--namespace", NAMESPACE, *rights.split())

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"from the host")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer((cluster.address, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        program = INSIDE % f"{NODE_ADDRESS}:{server.server_port}"
        apply(cluster, job("look", program, image=BASE_IMAGE, command=["python3", "-c"]))
        how = ended(cluster, "look")
        server.shutdown()
    log = cluster.kubectl("--namespace", NAMESPACE, "logs", "job/look")
    check("a job that looks around", (how, log if how != "Complete" else ""), ("Complete", ""))
    check("what it saw", json.loads(log), SEEN)


def api_server_dies(cluster: Cluster) -> None:
    apply(cluster, job("through", "sleep", "5"))
    wait_until("a running pod", lambda: phase(cluster, "through") == "Running", 60)
    cluster.kill("kube-apiserver")
    check("the API server's process", cluster.status()["kube-apiserver"], None)
    step("  start", lambda: cluster.start("kube-apiserver"))
    check("a job that ran meanwhile", ended(cluster, "through"), "Complete")


def etcd_dies(cluster: Cluster) -> None:
    cluster.kill("etcd")
    step("  start", lambda: cluster.start("etcd"))
    apply(cluster, job("after-etcd", "exit", "0"))
    check("a job afterwards", ended(cluster, "after-etcd"), "Complete")


def containerd_dies(cluster: Cluster) -> None:
    apply(cluster, job("survivor", "sleep", "8"))
    wait_until("a running pod", lambda: phase(cluster, "survivor") == "Running", 60)
    cluster.kill("containerd")
    step("  start", lambda: cluster.start("containerd"))
    check("a job that ran meanwhile", ended(cluster, "survivor"), "Complete")


def kubelet_dies(cluster: Cluster) -> None:
    def ready() -> str:
        path = 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'
        return cluster.kubectl("get", "nodes", node.NAME, "-o", path)

    apply(cluster, job("lost", "sleep", "1000"))
    wait_until("a running pod", lambda: phase(cluster, "lost") == "Running", 60)
    cluster.kill("kubelet")
    step("  node unknown", lambda: wait_until("an unknown node", lambda: ready() == "Unknown", 60))
    step("  its pod marked for deletion", lambda: wait_until("deletion", lambda: "deletionTimestamp" in pod(cluster, "lost")["metadata"], 60))
    conditions = {one["type"]: one["status"] for one in pod(cluster, "lost")["status"]["conditions"]}
    check("its condition DisruptionTarget", conditions.get("DisruptionTarget"), "True")
    step("  start", lambda: cluster.start("kubelet"))
    step("  node ready", lambda: wait_until("a ready node", lambda: ready() == "True", 60))
    cluster.kubectl("--namespace", NAMESPACE, "delete", "job/lost", "--cascade=foreground", "--wait")


def up_dies(cluster: Cluster, before: dict[str, set[str]]) -> None:
    command = [sys.executable, str(Path(__file__).with_name("cluster.py")), "--state", str(cluster.state), "up"]
    for halves in itertools.count(1):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as up:
            try:
                up.wait(halves / 2)
            except subprocess.TimeoutExpired:
                up.kill()
        cluster.down()
        if found := changes(before):
            raise SystemExit(f"left after kill -9 at {halves / 2} s: {found}")
        if up.returncode == 0:
            print(f"          ended and cleaned up at 0.5 to {(halves - 1) / 2} s")
            return


if __name__ == "__main__":
    main()
