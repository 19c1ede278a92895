"""A stand-in for Kueue, whose module no registry of ours has: the same label, suspended Jobs, and Workloads with the same conditions.

A thread that lets `quota` Jobs of a queue run at once, the oldest first, and preempts one when told to. Only what Kueue 0.19
was seen to do: a waiting Job shows nothing but `Suspended`; why it waits is on its Workload, found by the label of its Job's UID.
"""

import json
import threading
import time
from typing import Any

from cluster import Cluster
from processes import ClusterError

from pipeline import labels

GROUP, VERSION, KIND = "kueue.x-k8s.io", "v1beta1", "Workload"
QUEUED = f"{labels.QUEUE}=search"
Object = dict[str, Any]
CRD: Object = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": f"workloads.{GROUP}", "annotations": {"api-approved.kubernetes.io": "unapproved, a stand-in for tests"}},
    "spec": {
        "group": GROUP,
        "scope": "Namespaced",
        "names": {"kind": KIND, "plural": "workloads", "singular": "workload"},
        "versions": [
            {
                "name": VERSION,
                "served": True,
                "storage": True,
                "subresources": {},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


class Queue:
    """Admits Jobs until `close`. `most` is the largest number that it has ever let run at once."""

    def __init__(self, cluster: Cluster, namespace: str, quota: int) -> None:
        self._cluster, self._namespace, self._quota = cluster, namespace, quota
        self.preempted: list[str] = []
        self._preempt = threading.Event()
        self._over = threading.Event()
        self._cluster.kubectl("apply", "-f", "-", stdin=json.dumps(CRD))
        self._cluster.kubectl("wait", "--for=condition=Established", f"crd/workloads.{GROUP}", "--timeout=30s")
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def preempt(self) -> None:
        """Suspend the Job that runs, and let others go first."""
        self._preempt.set()

    def close(self) -> None:
        """Admit nothing any more."""
        self._over.set()
        self._thread.join()
        self._cluster.kubectl("delete", "crd", f"workloads.{GROUP}")

    def _kubectl(self, *arguments: str, stdin: str = "") -> str:
        return self._cluster.kubectl("-n", self._namespace, *arguments, stdin=stdin)

    def _work(self) -> None:
        while not self._over.wait(0.3):
            try:
                self._round()
            except ClusterError:
                time.sleep(0.5)  # a Job that was deleted meanwhile

    def _round(self) -> None:
        jobs: list[Object] = json.loads(self._kubectl("get", "jobs", "-l", QUEUED, "-o", "json"))["items"]
        jobs = [job for job in jobs if not any(one["type"] in ("Complete", "Failed") for one in job["status"].get("conditions", []))]
        jobs.sort(key=lambda job: (job["metadata"]["name"] in self.preempted, job["metadata"]["name"]))
        running = [job for job in jobs if not job["spec"].get("suspend")]
        if running and self._preempt.is_set() and running[0]["status"].get("ready"):
            self._preempt.clear()
            self.preempted.append(running[0]["metadata"]["name"])
            self._suspend(running[0], True)
            self._tell(running[0], "Evicted", "True", "Preempted", "Preempted to accommodate a workload of a higher priority")
            return
        for job in [job for job in jobs if job["spec"].get("suspend")]:
            if len(running) < self._quota:
                running.append(job)
                self._suspend(job, False)
                self._tell(job, "QuotaReserved", "True", "QuotaReserved", "Quota reserved in ClusterQueue search")
            elif job["metadata"]["name"] not in self.preempted:
                self._tell(job, "QuotaReserved", "False", "Pending", "couldn't assign flavors to pod set main: insufficient unused quota for cpu")

    def _suspend(self, job: Object, suspend: bool) -> None:
        self._kubectl("patch", "job", job["metadata"]["name"], "-p", json.dumps({"spec": {"suspend": suspend}}))

    def _tell(self, job: Object, kind: str, status: str, reason: str, message: str) -> None:
        workload = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": KIND,
            "metadata": {
                "name": f"job-{job['metadata']['name']}",
                "namespace": self._namespace,
                "labels": {labels.QUEUED_JOB: job["metadata"]["uid"]},
                "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}],
            },
            "status": {"conditions": [{"type": kind, "status": status, "reason": reason, "message": message}]},
        }
        self._kubectl("apply", "-f", "-", stdin=json.dumps(workload))
