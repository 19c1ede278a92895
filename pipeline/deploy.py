"""A run's objects in a cluster: what `hiernas submit` applies, and the executor of a controller inside or outside of it.

The run's Lease owns everything else. Applying again changes what differs: the ConfigMap in place, the controller's Job by a new
one; worker Jobs are left alone, whoever controls them.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, TypeVar

import yaml

from pipeline import labels, manifest, observe
from pipeline.api import ACCOUNT, Api, ApiRefusal, path_of
from pipeline.clock import Clock
from pipeline.cluster import ClusterConfig
from pipeline.controller import Place
from pipeline.errors import ConfigError, ExecutorUnavailable, HiernasError
from pipeline.executor import JobSpec, job_name
from pipeline.kubernetes import KubernetesExecutor, explain_refusal
from pipeline.manifest import LEASE_VARIABLE, POD_VARIABLE
from search.records import Resources, Run

Object = dict[str, Any]
Got = TypeVar("Got")
log = logging.getLogger("hiernas.deploy")
REPORT_SECONDS = 60.0
REPLACE_SECONDS = 60.0
"""How long the old controller's Job may take to disappear."""


def executor(run: Run, store: str, cluster: ClusterConfig, clock: Clock) -> KubernetesExecutor:
    """The executor of a controller: in its pod under the Lease that it was submitted with, outside under one that it makes if need be."""
    api = Api()
    uid = os.environ.get(LEASE_VARIABLE) or _lease(api, run, store, cluster)
    return KubernetesExecutor(api, manifest.Origin(run.name, run.run_id, store, uid, version("hiernas")), cluster, clock)


def place(nonce: str, run: str, cluster: ClusterConfig) -> Place | None:
    """A controller pod: the same run on the same cluster takes over from itself silently. None outside of a pod."""
    pod = os.environ.get(POD_VARIABLE)
    if not pod:
        return None
    authority = hashlib.sha256((ACCOUNT / "ca.crt").read_bytes()).hexdigest()[:12]
    return Place(nonce, labels.pod_owner(cluster.namespace, run, authority), f"{os.environ.get(LEASE_VARIABLE)}/{pod}")


def _asked(cluster: ClusterConfig, what: str, ask: Callable[[], Got]) -> Got:
    """The API server's answer; what it refuses is told with what to do."""
    try:
        return ask()
    except ApiRefusal as refusal:
        raise HiernasError(f"{what}: {explain_refusal(refusal, cluster)}") from refusal


def _get(api: Api, cluster: ClusterConfig, kind: str, name: str) -> Object | None:
    return _asked(cluster, f"{kind}/{name}", lambda: api.find(path_of(cluster.namespace, kind, name)))


def _create(api: Api, cluster: ClusterConfig, kind: str, body: Object) -> Object:
    return _asked(cluster, f"{body['kind']} {body['metadata']['name']}", lambda: api.create(path_of(cluster.namespace, kind), body))


def _lease(api: Api, run: Run, store: str, cluster: ClusterConfig) -> str:
    """UID of the run's Lease, made if there is none; ConfigError if that name belongs to another run."""
    name = labels.lease_name(run.name)
    there = _get(api, cluster, "leases", name)
    if there is None:
        there = _create(api, cluster, "leases", manifest.lease(run.name, run.run_id, store, cluster.namespace, version("hiernas")))
    found = there["metadata"].get("annotations") or {}
    if (found.get(labels.RUN_ID), found.get(labels.STORE)) != (run.run_id, store):
        raise ConfigError(
            f"namespace {cluster.namespace!r} has a run {run.name!r} already, another one: in store {found.get(labels.STORE)!r}, id {found.get(labels.RUN_ID)!r}; "
            f"this one is in {store!r}, id {run.run_id!r}. Use another name or namespace, or remove that run from the cluster: "
            f"kubectl -n {cluster.namespace} delete lease {name}"
        )
    return str(there["metadata"]["uid"])


def objects(run: Run, store: str, cluster: ClusterConfig, config: str, lease_uid: str) -> list[Object]:
    """What a run's controller consists of: its ConfigMap and its Job."""
    origin = manifest.Origin(run.name, run.run_id, store, lease_uid, version("hiernas"))
    settings = manifest.config_map(config, origin, cluster.namespace)
    job = manifest.controller_job(origin, cluster, "")
    return [settings, manifest.controller_job(origin, cluster, _digest([_lasting(config), job]))]


def _lasting(config: str) -> Any:
    """A config without its limits: those are asked for by requests, and replace no controller."""
    return {key: value for key, value in yaml.safe_load(config).items() if key != "limits"}


def described(run: Run, store: str, cluster: ClusterConfig, config: str, resources: Resources) -> list[Object]:
    """What would be created, with words in the place of what only the cluster and the records know."""
    unknown = "<known-once-it-is-created>"
    origin = manifest.Origin(run.name, run.run_id, store, unknown, version("hiernas"))
    spec = JobSpec(job_name(run.name, 0, 0), run.name, 0, 0, resources, unknown)
    return [
        manifest.lease(run.name, run.run_id, store, cluster.namespace, version("hiernas")),
        *objects(run, store, cluster, config, unknown),
        manifest.worker_job(spec, origin, cluster),
    ]


def _digest(what: object) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def submitted_config(api: Api, run: str, cluster: ClusterConfig) -> str | None:
    """The config that the controller in the cluster was given last; None if there is none."""
    there = _get(api, cluster, "configmaps", labels.controller_name(run))
    return None if there is None else str((there.get("data") or {}).get("config.yaml") or "")


def apply(api: Api, run: Run, store: str, cluster: ClusterConfig, config: str, again: bool = False) -> str:
    """Make the cluster as `objects` say; returns in a few words what was done. `again`: also replace a controller that is as it should be."""
    settings, job = objects(run, store, cluster, config, _lease(api, run, store, cluster))
    name = job["metadata"]["name"]
    there = _get(api, cluster, "configmaps", name)
    if there is None:
        _create(api, cluster, "configmaps", settings)
    elif (there.get("data"), there["metadata"].get("ownerReferences")) != (settings["data"], settings["metadata"]["ownerReferences"]):
        # Also where it belongs to a Lease that is gone: it would be removed with that one, under the new controller.
        _asked(cluster, f"ConfigMap {name}", lambda: api.replace(path_of(cluster.namespace, "configmaps", name), settings))
    old = _get(api, cluster, "jobs", name)
    if old is None:
        _create(api, cluster, "jobs", job)
        return "its controller is started"
    done = any(one.get("type") == "Complete" and one.get("status") == "True" for one in (old.get("status") or {}).get("conditions") or [])
    done = done or _idle(api, run.name, cluster)
    if (old["metadata"].get("annotations") or {}).get(labels.CONFIG_DIGEST) == job["metadata"]["annotations"][labels.CONFIG_DIGEST] and not (done or again):
        return "its controller runs as it is"
    _asked(cluster, f"Job {name}", lambda: api.delete(path_of(cluster.namespace, "jobs", name), old["metadata"]["uid"]))
    until = time.monotonic() + REPLACE_SECONDS
    while True:
        try:
            api.create(path_of(cluster.namespace, "jobs"), job)
            return "its controller is started again" if done else "its controller is replaced; running workers go on"
        except ApiRefusal as refusal:
            if refusal.reason != "AlreadyExists" or time.monotonic() > until:
                raise HiernasError(f"Job {name}: {explain_refusal(refusal, cluster)}") from refusal
            time.sleep(0.5)


def _idle(api: Api, run: str, cluster: ClusterConfig) -> bool:
    """Whether the run's controller has stopped for an error, and waits. Where pods may not be listed nobody knows."""
    try:
        pods = api.list(path_of(cluster.namespace, "pods"), labels.controller_of(run))
    except ApiRefusal:
        return False
    return any(observe.idle(pod, time.time()) for pod in pods if not pod["metadata"].get("deletionTimestamp"))


class Reporter:
    """Events on the run's Lease: what a person should see who looks at the cluster. Best effort: it never fails."""

    def __init__(self, cluster: ClusterConfig, run: str) -> None:
        self._cluster, self._run = cluster, run
        self._told: dict[str, float] = {}

    def __call__(self, reason: str, message: str) -> None:
        """Report in one word and a sentence; of the same kind again only after a minute."""
        now = time.monotonic()
        if now - self._told.get(reason, -REPORT_SECONDS) < REPORT_SECONDS:
            return
        self._told[reason] = now
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "name": labels.lease_name(self._run),
            "namespace": self._cluster.namespace,
            "uid": os.environ.get(LEASE_VARIABLE, ""),
        }
        event: Object = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{self._run}-", "namespace": self._cluster.namespace},
            "involvedObject": lease,
            "reason": reason,
            "message": message[:1000],
            "type": "Warning",
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
            "source": {"component": "hiernas-controller"},
        }
        try:
            Api().create(path_of(self._cluster.namespace, "events"), event)
        except (ApiRefusal, ExecutorUnavailable, ConfigError) as error:
            log.warning("no event could be written reason=%s error=%s", reason, error)
