"""Records what a real cluster says of attempts that end or wait in every way we know: `python tests/cluster/record.py`, into tests/recorded.

tests/test_observe.py reads them. Needs root, takes some minutes; nothing but times and names should change from one run to the next.
"""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster import Cluster
from processes import ClusterError

from pipeline import manifest
from pipeline.cluster import ClusterConfig
from pipeline.executor import JobSpec, job_name
from search.records import Resources

ROOT = Path(__file__).parents[2]
OUT = ROOT / "tests" / "recorded"
NAMESPACE = "hiernas"
PAUSE = "localhost/hiernas-pause:1"
Object = dict[str, Any]


class Recorder:
    """One attempt after the other, each recorded when its story has been told."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.number = cluster, 0
        self.uid = ""

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        return self.cluster.kubectl("-n", NAMESPACE, *arguments, stdin=stdin)

    def create(self, body: Object) -> None:
        self.kubectl("create", "-f", "-", stdin=json.dumps(body))

    def attempt(self, *args: str, patch: Object | None = None, container: Object | None = None, limit: float | None = None, **job: Any) -> str:
        """Create a worker's Job whose container does something else; returns its name."""
        self.number += 1
        small: Object = {"name": "worker", "args": list(args), "resources": {"requests": {"cpu": "10m", "memory": "20Mi"}, "limits": {"memory": "100Mi"}}}
        pod: Object = {"spec": {"containers": [small | (container or {})], "terminationGracePeriodSeconds": 2, **(patch or {})}}
        config = ClusterConfig(PAUSE, "none", unreachable_seconds=5, start_seconds=10, worker_pod=pod)
        spec = JobSpec(job_name("recorded", self.number, 0), "recorded", self.number, 0, Resources(time_limit_seconds=limit), "0" * 64)
        body = manifest.worker_job(spec, manifest.Origin("recorded", "a" * 32, "s3://search/x", self.uid, "0"), config)
        body["spec"] |= job
        self.create(body)
        return spec.name

    def seen(self, name: str) -> Object:
        """What the controller would read of it."""
        job = json.loads(self.kubectl("get", "job", name, "--ignore-not-found", "-o", "json") or "null")
        pods = json.loads(self.kubectl("get", "pods", "-l", f"batch.kubernetes.io/job-name={name}", "-o", "json"))["items"]
        events = json.loads(self.kubectl("get", "events", "--field-selector", f"involvedObject.name={name}", "-o", "json"))["items"]
        for one in [job, *pods, *events]:
            if one is not None:
                one["metadata"].pop("managedFields", None)
        return {"job": job, "pods": pods, "events": events}

    def record(self, title: str, name: str, holds: Callable[[Object], object], seconds: float = 60) -> None:
        """Wait until what is seen holds, write it, and remove the Job."""
        end = time.monotonic() + seconds
        while not holds(found := self.seen(name)):
            if time.monotonic() > end:
                raise SystemExit(f"{title}: not within {seconds} s; last seen {json.dumps(found, indent=1)}")
            time.sleep(0.3)
        (OUT / f"{title}.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        print(title, flush=True)
        self.kubectl("delete", "job", name, "--ignore-not-found", "--cascade=background", "--wait=false")


def condition(found: Object, kind: str) -> bool:
    return any(one["type"] == kind and one["status"] == "True" for one in ((found["job"] or {}).get("status") or {}).get("conditions") or [])


def failed(found: Object) -> bool:
    return condition(found, "Failed")


def ended(found: Object) -> bool:
    return failed(found) or condition(found, "Complete")  # the pause program ends with 0 when it is told to


def running(found: Object) -> bool:
    return any("running" in one["state"] for pod in found["pods"] for one in pod["status"].get("containerStatuses") or [])


def waiting(*reasons: str) -> Callable[[Object], bool]:
    return lambda found: any(
        one["state"].get("waiting", {}).get("reason") in reasons for pod in found["pods"] for one in pod["status"].get("containerStatuses") or []
    )


def refused(found: Object) -> bool:
    return any(one["reason"] == "FailedCreate" for one in found["events"])


def terminating(found: Object) -> bool:
    return any(pod["metadata"].get("deletionTimestamp") for pod in found["pods"])


def record_all(one: Recorder) -> None:
    one.record("complete", one.attempt("exit", "0"), lambda found: condition(found, "Complete"))
    one.record("exit-1", one.attempt("exit", "1"), failed)
    one.record("exit-5", one.attempt("exit", "5"), failed)
    one.record("out-of-memory", one.attempt("eat", "300"), failed)
    one.record("deadline", one.attempt("sleep", "100", patch={"activeDeadlineSeconds": 2}), failed)
    one.record("running", one.attempt("sleep", "100"), running)
    one.record("no-image", one.attempt("sleep", "1", container={"image": "localhost/absent:1"}), waiting("ErrImagePull", "ImagePullBackOff"))
    one.record("no-secret", one.attempt("sleep", "1", container={"envFrom": [{"secretRef": {"name": "absent"}}]}), waiting("CreateContainerConfigError"))
    gpu: Object = {"resources": {"limits": {"nvidia.com/gpu": "1"}}}
    one.record("unschedulable", one.attempt("sleep", "1", container=gpu), lambda found: "Insufficient nvidia.com/gpu" in json.dumps(found["pods"]))
    one.record("suspended", one.attempt("sleep", "1", suspend=True), lambda found: condition(found, "Suspended"))
    name = one.attempt("sleep", "100")
    until(lambda: running(one.seen(name)))
    one.kubectl("patch", "job", name, "-p", '{"spec":{"suspend":true}}')
    one.record("suspended-after-running", name, lambda found: condition(found, "Suspended") and not found["pods"])
    one.record("root-refused", one.attempt("sleep", "1", patch={"securityContext": {"runAsNonRoot": False, "runAsUser": 0}}), refused)
    one.create({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}})
    time.sleep(1)
    one.record("quota", one.attempt("sleep", "1"), refused)
    one.kubectl("delete", "resourcequota", "none")
    name = one.attempt("sleep", "100")
    until(lambda: running(one.seen(name)))
    one.kubectl("delete", "pod", "-l", f"batch.kubernetes.io/job-name={name}", "--wait=false")
    one.record("pod-deleted", name, ended)
    name = one.attempt("sleep", "100")
    until(lambda: running(one.seen(name)))
    one.kubectl("delete", "pod", "-l", f"batch.kubernetes.io/job-name={name}", "--grace-period=0", "--force")
    one.record("pod-deleted-by-force", name, ended)
    name = one.attempt("sleep", "100")
    until(lambda: running(one.seen(name)))
    one.kubectl("delete", "job", name, "--cascade=foreground", "--wait=false")
    one.record("job-being-deleted", name, lambda found: found["job"]["metadata"].get("deletionTimestamp"))
    name = one.attempt("sleep", "100")
    until(lambda: running(one.seen(name)))
    pod = one.seen(name)["pods"][0]["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": NAMESPACE}}
    one.kubectl("create", "--raw", f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction", "-f", "-", stdin=json.dumps(eviction))
    one.record("evicted", name, ended)
    big: Object = {"resources": {"requests": {"cpu": "1500m"}}}
    name = one.attempt("sleep", "100", container=big)
    until(lambda: running(one.seen(name)))
    one.cluster.kubectl("create", "priorityclass", "high", "--value=1000")
    other = one.attempt("sleep", "100", container=big, patch={"priorityClassName": "high"})
    one.record("preempted", name, ended)
    one.kubectl("delete", "job", other, "--wait=false")
    name = one.attempt("sleep", "1000")
    until(lambda: running(one.seen(name)))
    one.cluster.kill("kubelet")
    one.record("node-lost", name, terminating, 120)
    one.cluster.start("kubelet")


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise SystemExit("it never ran")
        time.sleep(0.3)


def main() -> None:
    OUT.mkdir(exist_ok=True)
    cluster = Cluster()
    cluster.up()
    try:
        made = subprocess.run(["kubectl", "kustomize", ROOT / "k8s/base"], check=True, capture_output=True, text=True).stdout
        cluster.kubectl("apply", "-f", "-", stdin=made)
        one = Recorder(cluster)
        one.create(manifest.lease("recorded", "a" * 32, "s3://search/x", NAMESPACE, "0"))
        one.uid = json.loads(one.kubectl("get", "lease", "recorded", "-o", "json"))["metadata"]["uid"]
        record_all(one)
    except ClusterError as error:
        raise SystemExit(str(error)) from error
    finally:
        cluster.down()


if __name__ == "__main__":
    main()
