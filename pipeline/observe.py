"""What a Job and its pods say of an attempt: pure functions of what the API server answers (DESIGN, 'Whose fault').

One sentence decides: if the worker was well, it wrote; if nothing is written, the platform took it. So this reads how the
platform did, never how the candidate did. Unknown or missing fields never stop a search: what is not understood waits.
"""

import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline import labels
from pipeline.executor import Job, JobStatus, Waiting
from search.records import EndReason

Object = dict[str, Any]
MAX_MESSAGE = 1000
LOG_LINES = 20
SLACK_SECONDS = 5.0
STARTUP_SECONDS = 10.0
"""A controller that is not ready before may just have begun."""
_IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError", "RegistryUnavailable"})
_TOLD_TO_END = (None, 0, 128 + signal.SIGTERM, 128 + signal.SIGKILL)
"""Exit codes of a worker whose pod is deleted."""
_TAKEN = frozenset({"Preempting", "NodeShutdown", "Terminated", "NodeLost", "Shutdown"})
"""Reasons of pods that their node gave up without a condition DisruptionTarget."""
_BROKEN = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError", "ContainerCannotRun"})


@dataclass(frozen=True, slots=True)
class Seen:
    """What the controller itself remembers of a job."""

    held_before: float = 0.0
    """GPU holding time of pods that are gone, in seconds."""
    terminating: float | None = None
    """How long its pod has been terminating, by the controller's clock."""


def newest(pods: Sequence[Object]) -> Object | None:
    """The last one that was made; a Job has several after a queue has suspended it."""
    return max(pods, key=lambda one: str(_at(one, "metadata", "creationTimestamp") or ""), default=None)


def job(found: Object, pod: Object | None, now: float, unreachable_seconds: float, seen: Seen, refusals: Sequence[str] = ()) -> Job:
    """One job and its newest pod. `now`: seconds since 1970; `refusals`: messages of FailedCreate events of the Job, the newest last."""
    name = str(_at(found, "metadata", "name"))
    held = seen.held_before + (held_seconds(pod, now) if pod is not None else 0.0)
    node = _text(pod, "spec", "nodeName") or None
    code, told = _exit(pod)
    ended = _ended(found, pod, code, now, unreachable_seconds, seen)
    if ended is not None:
        reason, message = ended
        log = tuple(told.splitlines()[-LOG_LINES:])
        message = message or _last(told) or f"the worker ended with exit code {code}"
        return Job(name, JobStatus.ENDED, reason, _cut(message), code, node, held, log)
    if pod is not None and _phase(pod) == "Running" and any("running" in (one.get("state") or {}) for one in _containers(pod)):
        return Job(name, JobStatus.RUNNING, node=node, held_seconds=held)
    waits, message = _waits(found, pod, refusals)
    return Job(name, JobStatus.PENDING, message=_cut(message), node=node, held_seconds=held, waits=waits)


def queued(workload: Object) -> str:
    """Why a Workload of Kueue does not run, in its own words; empty if it does. One that was given up (`inactive`) keeps its conditions when it is activated."""
    conditions = {str(one.get("type")): one for one in _list(workload, "status", "conditions")}
    for kind, status in (("Deactivated", "True"), ("Evicted", "True"), ("QuotaReserved", "False"), ("Admitted", "False")):
        one = conditions.get(kind)
        if one is not None and one.get("status") == status and (inactive(workload) or "Deactivated" not in f"{kind} {one.get('reason')}"):
            return _cut(f"{one.get('reason')}: {one.get('message')}")
    return ""


def inactive(workload: Object) -> bool:
    """Whether Kueue, or a person, has given up a Workload: it waits for no quota any more."""
    return _at(workload, "spec", "active") is False


def began(pod: Object | None, container: str) -> float | None:
    """When this container of a pod was started last, in seconds since 1970; until it is, when its node got the pod."""
    return seconds(_at(_container(pod, container), "state", "running", "startedAt")) or seconds(_at(pod, "status", "startTime"))


def set_up(pod: Object) -> bool:
    """Whether its node has made the pod ready for its containers: volumes and network are there, whatever went wrong on the way."""
    return any(one.get("type") == "PodReadyToStartContainers" and one.get("status") == "True" for one in _list(pod, "status", "conditions"))


def restarts(pod: Object) -> str:
    """Last words of a container that ended and waits to be started again; empty if there is none."""
    for one in _containers(pod):
        before = _at(one, "lastState", "terminated") or _at(one, "state", "terminated")
        if isinstance(before, dict) and before.get("exitCode"):
            return _cut(_last(str(before.get("message") or "")) or f"exit code {before.get('exitCode')}")
    return ""


def idle(pod: Object, now: float) -> bool:
    """Whether a controller's pod has come up a while ago and is not ready: it has stopped, and waits for somebody to mend what it reported."""
    container = _container(pod, labels.CONTROLLER) or {}
    since = seconds(_at(container, "state", "running", "startedAt"))
    return container.get("started") is True and container.get("ready") is False and since is not None and now - since > STARTUP_SECONDS


def held_seconds(pod: Object, now: float) -> float:
    """How long a pod has held its node's resources, from its start there to its end."""
    start = seconds(_at(pod, "status", "startTime"))
    if start is None:
        return 0.0
    ends = [seconds(_at(one, "state", "terminated", "finishedAt")) for one in _containers(pod)]
    known = [end for end in ends if end is not None]
    if known and len(known) == len(ends):
        end = max(known)
    elif _phase(pod) in ("Failed", "Succeeded"):  # refused by its node, or forgotten by it: it holds nothing any more
        changed = (seconds(one.get("lastTransitionTime")) for one in _list(pod, "status", "conditions"))
        end = max([one for one in [*known, *changed] if one is not None], default=start)
    else:
        end = now
    return max(0.0, end - start)


def _ended(found: Object, pod: Object | None, code: int | None, now: float, unreachable_seconds: float, seen: Seen) -> tuple[EndReason | None, str] | None:
    """Reason (None: the exit code decides) and message of a job that has ended; None while it has not."""
    conditions = {str(one.get("type")): one for one in _list(found, "status", "conditions") if one.get("status") == "True"}
    disrupted = _disruption(pod)
    if "Complete" in conditions or "SuccessCriteriaMet" in conditions:
        if disrupted is not None:
            return EndReason.DISRUPTED, disrupted
        return None, "it ended well, but wrote no evaluation"
    failed = conditions.get("Failed") or conditions.get("FailureTarget")
    if failed is not None:
        reason, message = str(failed.get("reason") or ""), str(failed.get("message") or "")
        if reason == "PodFailurePolicy" or disrupted is not None:
            return EndReason.DISRUPTED, disrupted or message
        if reason == "DeadlineExceeded":
            return EndReason.DEADLINE, message
        return _of_pod(pod, code, message)
    if _text(found, "metadata", "deletionTimestamp"):
        return EndReason.GONE, "the Job is being deleted, by somebody else than the controller"
    taken_back = _at(found, "spec", "suspend") is True  # by a queue, which lets the same Job run again
    if pod is not None and _phase(pod) == "Running" and _at(_worker(pod), "state", "terminated") is not None and disrupted is None and not taken_back:
        if code == 0:
            return None, "it ended well, but wrote no evaluation"
        return _of_pod(pod, code, "the worker has ended, another container of its pod has not")
    where = _text(pod, "spec", "nodeName") or "its node"
    if pod is not None and (overdue := _overdue(pod, now)) > unreachable_seconds:
        return EndReason.NODE_LOST, f"node {where} is silent: it should have ended the pod at its deadline, {overdue:.0f} s ago"
    if pod is not None and seen.terminating is not None:
        grace = float(_at(pod, "metadata", "deletionGracePeriodSeconds") or 0)
        # A pod that the taint manager deletes was on a silent node for `unreachable_seconds` already: that is its toleration.
        patience = SLACK_SECONDS if (disrupted or "").startswith("DeletionByTaintManager") else unreachable_seconds
        if seen.terminating > grace + patience:
            return EndReason.NODE_LOST, f"node {where} is silent: the pod should have ended {seen.terminating - grace:.0f} s ago ({disrupted or 'deleted'})"
    return None


def _overdue(pod: Object, now: float) -> float:
    """Seconds since the node should have ended a pod that runs past its deadline. Nobody else does: a node that is silent in a cluster that evicts nothing
    (most of its nodes are silent, or the pod tolerates it for ever) would hold it without an end."""
    start, deadline = seconds(_at(pod, "status", "startTime")), _at(pod, "spec", "activeDeadlineSeconds")
    if _phase(pod) not in ("Pending", "Running") or start is None or not isinstance(deadline, int):
        return 0.0
    return max(0.0, now - start - deadline - float(_at(pod, "spec", "terminationGracePeriodSeconds") or 0) - SLACK_SECONDS)


def _of_pod(pod: Object | None, code: int | None, message: str) -> tuple[EndReason | None, str]:
    """Why a Job failed whose own condition only says that its pod did."""
    if pod is None:
        return EndReason.GONE, f"its pod was deleted ({message})" if message else "its pod was deleted"
    reason, told = _text(pod, "status", "reason"), _text(pod, "status", "message")
    worker = _worker(pod)
    started = "running" in (_at(worker, "state") or {}) or bool(_at(worker, "state", "terminated", "startedAt"))
    if reason == "DeadlineExceeded" and started:
        return EndReason.DEADLINE, told or "the pod ran longer than its deadline"
    if _text(worker, "state", "terminated", "reason") == "OOMKilled":
        return EndReason.MEMORY, "the container used more memory than its limit (OOMKilled)"
    if reason == "Evicted":  # without the condition DisruptionTarget, which every other eviction sets: it was over a limit of its own
        return EndReason.MACHINE, told
    if reason in _TAKEN:
        return EndReason.DISRUPTED, f"{reason}: {told}"
    if reason and not started:
        return EndReason.NOT_STARTED, f"{reason}: {told}"  # its node refused it, or its image did not come
    if _text(worker, "state", "terminated", "reason") in _BROKEN:
        return EndReason.MACHINE, _text(worker, "state", "terminated", "message") or "the node could not start the container"
    if code in _TOLD_TO_END and _text(pod, "metadata", "deletionTimestamp"):
        return EndReason.GONE, told or "its pod was deleted, by somebody else than the controller"
    if code is None or code == 0:
        return EndReason.KILLED, told or message
    return None, ""


def _disruption(pod: Object | None) -> str | None:
    """What the pod's condition DisruptionTarget says; None if it has none."""
    for one in _list(pod, "status", "conditions"):
        if one.get("type") == "DisruptionTarget" and one.get("status") == "True":
            return f"{one.get('reason')}: {one.get('message')}"
    return None


def _exit(pod: Object | None) -> tuple[int | None, str]:
    """Exit code and last lines of the worker, if it has ended."""
    ended = _at(_worker(pod), "state", "terminated")
    if isinstance(ended, dict) and isinstance(ended.get("exitCode"), int):
        return ended["exitCode"], str(ended.get("message") or "")
    return None, ""


def _waits(found: Object, pod: Object | None, refusals: Sequence[str]) -> tuple[Waiting, str]:
    """Why a job does not run yet, and what the platform says of it."""
    if _at(found, "spec", "suspend") is True:
        return Waiting.SUSPENDED, "the Job is suspended"
    if pod is None:
        if refusals:
            return (Waiting.QUOTA if "exceeded quota" in refusals[-1] else Waiting.ADMISSION), refusals[-1]
        return Waiting.STARTING, "its pod is not created yet"
    for one in [*_list(pod, "status", "initContainerStatuses"), *_containers(pod)]:
        waiting = _at(one, "state", "waiting")
        reason = str((waiting or {}).get("reason") or "")
        if reason in _IMAGE:
            return Waiting.IMAGE, f"{one.get('image')}: {(waiting or {}).get('message') or reason}"
        if reason in _BROKEN:
            return Waiting.POD, f"{reason}: {(waiting or {}).get('message')}"
    for condition in _list(pod, "status", "conditions"):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return Waiting.UNSCHEDULABLE, str(condition.get("message") or condition.get("reason") or "")
    return Waiting.STARTING, "its pod is starting"


# -- reading what may be missing


def _at(found: Any, *path: str) -> Any:
    for key in path:
        if not isinstance(found, dict):
            return None
        found = found.get(key)
    return found


def _text(found: Any, *path: str) -> str:
    return str(_at(found, *path) or "")


def _list(found: Any, *path: str) -> list[Object]:
    value = _at(found, *path)
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _containers(pod: Object | None) -> list[Object]:
    return _list(pod, "status", "containerStatuses")


def _container(pod: Object | None, name: str) -> Object | None:
    return next((one for one in _containers(pod) if one.get("name") == name), None)


def _worker(pod: Object | None) -> Object | None:
    """The container that works; a pod may have others, of the config's or of the cluster's."""
    return _container(pod, labels.WORKER) or next(iter(_containers(pod)), None)


def _phase(pod: Object) -> str:
    return _text(pod, "status", "phase")


def seconds(value: Any) -> float | None:
    """A time as the API server writes it, in seconds since 1970; None where it has none."""
    try:
        return datetime.fromisoformat(str(value)).timestamp() if value else None
    except ValueError:
        return None


def _last(told: str) -> str:
    return next((line for line in reversed(told.splitlines()) if line.strip()), "")


def _cut(message: str) -> str:
    one = re.sub(r"\s+", " ", message).strip()
    return one if len(one) <= MAX_MESSAGE else one[: MAX_MESSAGE - 1] + "…"


def by_job(pods: Sequence[Object]) -> dict[str, list[Object]]:
    """Pods under the UID of the Job that owns each."""
    found: dict[str, list[Object]] = {}
    for pod in pods:
        for uid in _owners(pod):
            found.setdefault(uid, []).append(pod)
    return found


def _owners(pod: Object) -> Iterator[str]:
    for one in _list(pod, "metadata", "ownerReferences"):
        if one.get("kind") == "Job":
            yield str(one.get("uid"))
