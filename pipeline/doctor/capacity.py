"""Whether a pod has room: on a node, under a ResourceQuota, within a LimitRange. Pure functions of what the API server answers."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.doctor import checks
from pipeline.doctor.checks import Check

Object = dict[str, Any]
Amounts = Mapping[str, float]
_QUANTITY = re.compile(r"([+-]?[0-9.]+)(?:([numkMGTPE]|[KMGTPE]i)|[eE]([+-]?[0-9]+))?")
_FACTOR = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3} | {letter: 1e3**power for power, letter in enumerate("MGTPE", 2)}
_BINARY = {f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTPE", 1)}
POOLS = ("cloud.google.com/gke-nodepool", "eks.amazonaws.com/nodegroup", "karpenter.sh/nodepool", "kubernetes.azure.com/agentpool")
"""Labels by which the clouds tell which pool a node belongs to."""


def quantity(text: object) -> float:
    """Kubernetes' '250m', '4Gi' or '1e3' as a number."""
    found = _QUANTITY.fullmatch(str(text))
    if found is None:
        raise ValueError(f"{text!r} is no quantity; expected a number with a suffix, for example 250m or 4Gi")
    number, suffix, power = found.groups()
    return float(number) * (_FACTOR | _BINARY).get(suffix or "", 1.0) * 10.0 ** int(power or 0)


def shown(resource: str, amount: float) -> str:
    """An amount as a person writes it."""
    if "memory" in resource or "storage" in resource:
        return f"{amount / 1024**3:.3g}Gi"
    return f"{amount:.6g}"


def with_defaults(spec: Object, ranges: Sequence[Object]) -> list[dict[str, Amounts]]:
    """Requests and limits of each container as admission will have them."""
    given: dict[str, dict[str, float]] = {"limits": {}, "requests": {}}
    for item in _items(ranges, "Container"):
        given["limits"] |= _numbers(item.get("default"))
        given["requests"] |= _numbers(item.get("default")) | _numbers(item.get("defaultRequest"))
    containers: list[dict[str, Amounts]] = []
    for one in spec.get("containers") or []:
        own = one.get("resources") or {}
        limits = given["limits"] | _numbers(own.get("limits"))
        requests = given["requests"] | _numbers(own.get("limits")) | _numbers(own.get("requests"))
        containers.append({"requests": requests, "limits": limits})
    return containers


def of_pod(containers: Sequence[dict[str, Amounts]]) -> dict[str, Amounts]:
    """The containers' sums."""
    total: dict[str, dict[str, float]] = {"requests": {}, "limits": {}}
    for one in containers:
        for kind, amounts in one.items():
            for resource, amount in amounts.items():
                total[kind][resource] = total[kind].get(resource, 0.0) + amount
    return {"requests": total["requests"], "limits": total["limits"]}


def _numbers(given: Mapping[str, object] | None) -> dict[str, float]:
    return {resource: quantity(amount) for resource, amount in (given or {}).items()}


def _items(ranges: Sequence[Object], kind: str) -> Iterator[Object]:
    for one in ranges:
        yield from (item for item in (one.get("spec") or {}).get("limits") or [] if item.get("type") == kind)


# -- ResourceQuota and LimitRange


def counted(pod: Mapping[str, Amounts]) -> dict[str, float]:
    """What a Job of one such pod takes of a quota, by the quota's names."""
    found = {"pods": 1.0, "count/pods": 1.0, "count/jobs.batch": 1.0}
    found |= {f"{kind}.{resource}": amount for kind in ("requests", "limits") for resource, amount in pod[kind].items()}
    return found | {resource: pod["requests"][resource] for resource in ("cpu", "memory", "ephemeral-storage") if resource in pod["requests"]}


_COMPULSORY = ("cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory")
"""A quota on these refuses pods that do not set them."""


def quotas(found: Sequence[Object], worker: Mapping[str, Amounts], controller: Mapping[str, Amounts], workers: int) -> Iterator[Check]:
    """Each ResourceQuota against a controller and its workers; its narrowest bound decides."""
    one, chief = counted(worker), counted(controller)
    for quota in found:
        name = f"quota {quota['metadata']['name']}"
        spec, used = quota.get("spec") or {}, _numbers((quota.get("status") or {}).get("used"))
        if spec.get("scopes") or spec.get("scopeSelector"):
            yield checks.unknown(name, "it is for some pods only (scopes), which are not judged here", "compare its scopes with cluster.worker_pod by hand")
            continue
        hard = _numbers(spec.get("hard"))
        if refused := [key for key in hard if key in _COMPULSORY and (key not in one or key not in chief)]:
            keys = ", ".join(refused)
            yield checks.failed(
                name,
                f"it bounds {keys}, which our pods do not all set: they will be refused",
                f"set {keys} in cluster.worker_pod and cluster.controller_pod, or give a LimitRange with defaults",
            )
            continue
        bounds = [_Bound(key, hard[key], hard[key] - used.get(key, 0.0), one[key], chief.get(key, 0.0)) for key in hard if one.get(key)]
        worst = min(bounds, key=lambda bound: (not bound.hopeless, bound.fits), default=None)
        yield checks.ok(name, "it bounds nothing that a run uses") if worst is None else worst.check(name, workers)


@dataclass(frozen=True, slots=True)
class _Bound:
    """One number of a quota against what a run takes of it."""

    key: str
    hard: float
    free: float
    worker: float
    controller: float

    @property
    def hopeless(self) -> bool:
        """Whether not even one worker fits when nothing else is there."""
        return self.hard < self.worker + self.controller

    @property
    def fits(self) -> int:
        """Workers beside the controller in what is free now."""
        return max(0, int((self.free - self.controller) // self.worker))

    def check(self, name: str, workers: int) -> Check:
        """For so many workers."""
        free, hard, worker, controller = (shown(self.key, max(0.0, amount)) for amount in (self.free, self.hard, self.worker, self.controller))
        told = f"{self.key}: {free} of {hard} free; a worker takes {worker}, the controller {controller}"
        if self.hopeless:
            return checks.failed(name, f"not one worker fits: {told}", "raise the ResourceQuota, or ask for less (executor, cluster.worker_pod)")
        if self.fits < workers:
            do = "raise the ResourceQuota or lower limits.workers; what has no room waits"
            return checks.warning(name, f"{self.fits} of {workers} workers fit: {told}", do)
        return checks.ok(name, f"{workers} workers and the controller fit: {told}")


def limit_ranges(found: Sequence[Object], what: str, containers: Sequence[dict[str, Amounts]]) -> Iterator[Check]:
    """Where containers, or their sum, break a LimitRange."""
    name = f"limit range, {what}"
    do = f"ask for an amount within it (executor, cluster.{what}_pod), or change the LimitRange"
    for kind, judged in (("Container", list(containers)), ("Pod", [of_pod(containers)])):
        for item in _items(found, kind):
            for one in judged:
                for resource, most in _numbers(item.get("max")).items():
                    given = one["limits"].get(resource, one["requests"].get(resource))
                    if given is None or given > most:
                        asked = "sets no limit" if given is None else f"asks for {shown(resource, given)}"
                        yield checks.failed(name, f"{kind.lower()} {asked} of {resource}; at most {shown(resource, most)} is allowed", do)
                for resource, least in _numbers(item.get("min")).items():
                    if one["requests"].get(resource, 0.0) < least:
                        yield checks.failed(
                            name,
                            f"{kind.lower()} asks for {shown(resource, one['requests'].get(resource, 0.0))} of {resource}; at least {shown(resource, least)} is asked for",
                            do,
                        )


# -- nodes


def obstacles(node: Object, spec: Object, requests: Amounts) -> list[str]:
    """Why this node can never take the pod, its other pods aside; empty if it can. Affinities are left to the scheduler."""
    found = []
    labels = node["metadata"].get("labels") or {}
    status, own = node.get("status") or {}, node.get("spec") or {}
    if not any(one.get("type") == "Ready" and one.get("status") == "True" for one in status.get("conditions") or []):
        found.append("not ready")
    if own.get("unschedulable"):
        found.append("cordoned")
    found += [f"its label {key} is {labels.get(key)!r}, not {value!r}" for key, value in (spec.get("nodeSelector") or {}).items() if labels.get(key) != value]
    for taint in own.get("taints") or []:
        if taint.get("effect") in ("NoSchedule", "NoExecute") and not any(_tolerates(one, taint) for one in spec.get("tolerations") or []):
            found.append(f"its taint {taint.get('key')} is not tolerated")
    allocatable = _numbers(status.get("allocatable"))
    found += [f"it has {shown(key, allocatable.get(key, 0.0))} {key}" for key, amount in requests.items() if allocatable.get(key, 0.0) < amount]
    return found


def _tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    if toleration.get("tolerationSeconds") is not None:
        return False  # for a while only
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint.get("key"))
    return toleration.get("key") == taint.get("key") and (toleration.get("value") or "") == (taint.get("value") or "")


def pool(node: Object) -> tuple[str, str] | None:
    """Label and name of the node's pool, where its cloud tells."""
    labels = node["metadata"].get("labels") or {}
    return next(((key, str(labels[key])) for key in POOLS if key in labels), None)


def nodes(found: Sequence[Object], spec: Object, requests: Amounts) -> Check:
    """Whether some node can take one worker."""
    name = "nodes"
    asked = ", ".join(f"{shown(key, amount)} {key}" for key, amount in requests.items()) or "nothing"
    against = {str(node["metadata"]["name"]): obstacles(node, spec, requests) for node in found}
    able = [one for one, reasons in against.items() if not reasons]
    if able:
        return checks.ok(name, f"{len(able)} of {len(found)} can take one worker ({asked}), for example {able[0]}")
    most = {key: max((_numbers((node.get("status") or {}).get("allocatable")).get(key, 0.0) for node in found), default=0.0) for key in requests}
    lacking = [
        f"no node offers {key}" if not most[key] else f"no node has more than {shown(key, most[key])} {key}" for key in requests if most[key] < requests[key]
    ]
    examples = "; ".join(f"{one}: {', '.join(reasons)}" for one, reasons in list(against.items())[:3])
    what = f"none of {len(found)} can take one worker ({asked}): {', '.join(lacking) or examples or 'there are none'}"
    do = "add such nodes, or correct executor (gpus, threads, memory_gib) and cluster (gpu_resource, worker_pod)"
    if not found or any(pool(node) for node in found):
        return checks.warning(name, what, f"if an autoscaler makes them on demand, all is well, and --smoke shows it; else {do}")
    return checks.failed(name, what, do)
