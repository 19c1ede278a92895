"""Attempts as Kubernetes Jobs, one each (DESIGN, 'Kubernetes'). They outlive the controller: a new one finds them by label.

One list of Jobs and one of pods each round are the truth. The record was written first, so creating a Job is repeated freely;
a name that is taken is success only if that Job is ours.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pipeline import labels, manifest, observe
from pipeline.api import Api, ApiRefusal, path_of
from pipeline.clock import Clock
from pipeline.cluster import ClusterConfig
from pipeline.errors import ExecutorUnavailable, HiernasError, Overtaken
from pipeline.executor import Job, JobSpec, JobStatus, Refused

Object = dict[str, Any]
log = logging.getLogger("hiernas.kubernetes")
_OBSTACLES = frozenset({"FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox"})
EVENT_SECONDS = 15.0
"""How often events are read while jobs wait without a pod."""


class KubernetesExecutor:
    """See Executor."""

    name = "kubernetes"
    survives = True
    parallel = 8

    def __init__(self, api: Api, origin: manifest.Origin, cluster: ClusterConfig, clock: Clock) -> None:
        self._api, self._origin, self._cluster, self._clock = api, origin, cluster, clock
        self._jobs_path = path_of(cluster.namespace, "jobs")
        self._settings = manifest.settings_digest(cluster)
        self._known: dict[str, str] = {}
        """UID of each Job seen or created, by name: what vanishes from a list is asked for by name before it counts as gone."""
        self._terminating: dict[str, float] = {}
        """When each terminating pod was first seen so, by UID."""
        self._held: dict[str, dict[str, float]] = {}
        """Seconds held by each pod (UID) of a job: a queue may suspend a job and let it run again in another pod."""
        self._refusals: dict[str, list[str]] = {}
        self._events_at = -EVENT_SECONDS
        self._listed_at = clock.monotonic()
        self._looked_at = False  # what the cluster makes of a Job

    def start(self, spec: JobSpec) -> None:
        """See Executor."""
        body = manifest.worker_job(spec, self._origin, self._cluster)
        try:
            made = self._api.create(self._jobs_path, body)
            if not self._looked_at:
                self._looked_at = True
                if ignored := manifest.dropped(body["spec"], made.get("spec")):
                    log.warning("the cluster ignores fields of worker Jobs run=%s fields=%s: is it older than 1.31?", self._origin.run, ", ".join(ignored))
        except ApiRefusal as refusal:
            if refusal.reason != "AlreadyExists":
                raise Refused(explain_refusal(refusal, self._cluster)) from refusal
            made = self._ours(spec.name, body)
        self._known[spec.name] = str(made["metadata"]["uid"])

    def _ours(self, name: str, body: Object) -> Object:
        """The Job of that name, if it is the one that would have been created."""
        there = self._find("jobs", name)
        if there is None:
            raise ExecutorUnavailable(f"Job {name} is there and not there: it is being deleted")
        wanted = body["metadata"]["annotations"]
        found = there["metadata"].get("annotations") or {}
        if not self._is_ours(there) and found.get(labels.RUN_ID) == self._origin.run_id:
            raise ExecutorUnavailable(f"Job {name} belongs to an earlier Lease of this run, and is being removed with it")
        for key in (labels.RUN_ID, labels.STORE, labels.DIGEST):
            if found.get(key) != wanted[key]:
                raise HiernasError(
                    f"Job {self._cluster.namespace}/{name} belongs to something else: its annotation {key} is {found.get(key)!r}, this run's is "
                    f"{wanted[key]!r}. Use another namespace or another run name, or delete that Job if nobody needs it"
                )
        return there

    def _find(self, kind: str, name: str) -> Object | None:
        try:
            return self._api.find(path_of(self._cluster.namespace, kind, name))
        except ApiRefusal as refusal:
            raise self._unavailable(refusal) from refusal

    def jobs(self) -> Sequence[Job]:
        """See Executor. Overtaken when the run's Lease is gone: somebody has removed the run from the cluster."""
        self._listed_at = self._clock.monotonic()
        selector = labels.workers_of(self._origin.run)
        try:
            jobs = self._api.list(self._jobs_path, selector)
            pods = observe.by_job(self._api.list(path_of(self._cluster.namespace, "pods"), selector))
        except ApiRefusal as refusal:
            raise self._unavailable(refusal) from refusal
        listed = {str(one["metadata"]["name"]) for one in jobs}
        for name in self._known.keys() - listed:
            if (there := self._find("jobs", name)) is None:
                self._forget(name)
            else:
                jobs.append(there)
        self._check_lease()  # after the Jobs: what was garbage-collected with it must not count as deleted by hand
        self._watch_terminating([pod for some in pods.values() for pod in some])
        seen = [self._see(one, pods.get(str(one["metadata"]["uid"]), [])) for one in jobs if self._is_ours(one)]
        if any(job.status is JobStatus.PENDING and job.node is None for job in seen):
            self._read_refusals()
        return seen

    def _is_ours(self, found: Object) -> bool:
        """Of this run, and not of an earlier Lease of it: then it is about to be removed."""
        owners = [one.get("uid") for one in found["metadata"].get("ownerReferences") or []]
        return (found["metadata"].get("annotations") or {}).get(labels.RUN_ID) == self._origin.run_id and self._origin.lease_uid in owners

    def _see(self, found: Object, pods: Sequence[Object]) -> Job:
        name, uid = str(found["metadata"]["name"]), str(found["metadata"]["uid"])
        self._known[name] = uid
        now = self._clock.now()
        held = self._held.setdefault(name, {})
        newest = observe.newest(pods)
        for pod in pods:
            held[str(pod["metadata"]["uid"])] = observe.held_seconds(pod, now)
        current = str(newest["metadata"]["uid"]) if newest is not None else None
        since = self._terminating.get(current) if current is not None else None
        seen = observe.Seen(
            sum(seconds for one, seconds in held.items() if one != current),
            self._clock.monotonic() - since if since is not None else None,
        )
        made = (found["metadata"].get("annotations") or {}).get(labels.SETTINGS, self._settings)
        read = observe.job(found, newest, now, self._cluster.unreachable_seconds, seen, self._refusals.get(uid, ()))
        return replace(read, outdated=made != self._settings)

    def _watch_terminating(self, pods: Sequence[Object]) -> None:
        now = self._clock.monotonic()
        uids = {str(pod["metadata"]["uid"]) for pod in pods if pod["metadata"].get("deletionTimestamp")}
        self._terminating = {uid: self._terminating.get(uid, now) for uid in uids}

    def _read_refusals(self) -> None:
        if self._clock.monotonic() - self._events_at >= EVENT_SECONDS:
            self._events_at = self._clock.monotonic()
            self._refusals = read_refusals(self._api, self._cluster.namespace)

    def _check_lease(self) -> None:
        lease = self._find("leases", labels.lease_name(self._origin.run))
        if lease is None or lease["metadata"]["uid"] != self._origin.lease_uid:
            raise Overtaken(
                f"run {self._origin.run!r} was removed from the cluster (its Lease {self._cluster.namespace}/{self._origin.run} is gone): "
                "this controller has stopped, nothing in the store is lost; `hiernas submit` continues it"
            )

    def _forget(self, name: str) -> None:
        self._known.pop(name, None)
        self._held.pop(name, None)

    def delete(self, name: str) -> None:
        """See Executor."""
        try:
            self._api.delete(f"{self._jobs_path}/{name}", self._known.get(name))
        except ApiRefusal as refusal:
            if refusal.status != 409:  # another Job of that name by now
                raise self._unavailable(refusal) from refusal
        self._forget(name)

    def wait(self, seconds: float) -> None:
        """See Executor. The time counts from the last list on: in a round that took so long, jobs have ended. An API server that is slow gets a pause."""
        time.sleep(max(seconds / 10, self._listed_at + seconds - self._clock.monotonic()))

    def close(self) -> None:
        """See Executor. Jobs go on."""

    def _unavailable(self, refusal: ApiRefusal) -> ExecutorUnavailable:
        return ExecutorUnavailable(f"Kubernetes API: {explain_refusal(refusal, self._cluster)}")


def read_refusals(api: Api, namespace: str) -> dict[str, list[str]]:
    """Why the cluster makes no pod for a Job is told by events alone. Where they cannot be read the reason stays unknown."""
    return messages_of(_events(api, namespace, "involvedObject.kind=Job,reason=FailedCreate"))


def read_obstacles(api: Api, namespace: str) -> dict[str, str]:
    """What keeps pods from starting on their nodes, under their UIDs: their own status says nothing of a volume or a network that cannot be had."""
    found = [one for one in _events(api, namespace, "involvedObject.kind=Pod,type=Warning") if one.get("reason") in _OBSTACLES]
    return {uid: messages[-1] for uid, messages in messages_of(found).items()}


def _events(api: Api, namespace: str, selector: str) -> Sequence[Object]:
    try:
        return api.list(path_of(namespace, "events"), fieldSelector=selector)
    except (ApiRefusal, ExecutorUnavailable):
        return []


def messages_of(events: Sequence[Object]) -> dict[str, list[str]]:
    """Messages of events under the UID of their object, the newest last."""
    found: dict[str, list[str]] = {}
    for event in sorted(events, key=lambda one: str(one.get("lastTimestamp") or one.get("eventTime") or "")):
        found.setdefault(str((event.get("involvedObject") or {}).get("uid")), []).append(str(event.get("message") or ""))
    return found


def explain_refusal(refusal: ApiRefusal, cluster: ClusterConfig) -> str:
    """What a definite no means, and what to do."""
    message = refusal.message
    if "exceeded quota" in message:
        advice = "raise the ResourceQuota, or lower `workers`"
    elif refusal.status == 403 and 'User "' in message and "cannot" in message:
        advice = f"the Role of this account lacks a right; apply k8s/base to namespace {cluster.namespace!r} again (`hiernas doctor` lists rights)"
    elif refusal.status == 401:
        advice = "the credentials are not valid; renew the kubeconfig or the service account"
    elif refusal.status == 404 and "namespaces" in message:
        advice = f"namespace {cluster.namespace!r} is not there; an administrator makes it with k8s/base"
    elif refusal.status == 422:
        advice = "the API server finds the object impossible; look at cluster.worker_pod in the config"
    else:
        advice = "an admission rule of the cluster refuses it"
    return f"{message} — {advice}"
