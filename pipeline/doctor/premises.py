"""`hiernas doctor` on a cluster: all that a run's objects need there. Reads, reviews and dry runs; nothing is changed or stored."""

import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from pipeline import labels
from pipeline.api import Api, ApiRefusal, path_of
from pipeline.doctor import capacity, checks, rights
from pipeline.doctor.checks import Check, Verdict
from pipeline.doctor.site import Site
from pipeline.errors import ExecutorUnavailable, HiernasError
from pipeline.kubernetes import explain_refusal
from pipeline.manifest import dropped

Object = dict[str, Any]
OLDEST = (1, 31)
_MUTABLE = frozenset({"latest", "main", "master", "dev", "edge", "nightly", "stable"})
_REFERENCE = re.compile(
    r"(?:[A-Za-z0-9][A-Za-z0-9.-]*(?::\d+)?/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(?P<digest>@sha256:[0-9a-f]{64})?"
)
_WARNING = re.compile(r'\d{3} \S+ "((?:\\.|[^"\\])*)"')
_ROLES = ("eks.amazonaws.com/role-arn", "iam.gke.io/gcp-service-account", "azure.workload.identity/client-id")
"""Annotations by which a service account gets a cloud's identity."""
_LEVEL = "pod-security.kubernetes.io/enforce"
_LOOPBACK = re.compile(r"https?://(localhost|127\.|\[::1\])")


def examine(site: Site) -> Iterator[Check]:
    """Every check, the widest first. Where the API or the namespace is missing, nothing within it is asked for."""
    for name, look in _FIRST.items():
        found = list(_guarded(name, look, site))
        yield from found
        if any(one.verdict is Verdict.FAILED for one in found):
            return
    for name, look in _CHECKS.items():
        yield from _guarded(name, look, site)


def _guarded(name: str, look: Callable[[Site], Iterator[Check]], site: Site) -> Iterator[Check]:
    """What the caller may not read is unknown, and no reason to stop."""
    try:
        yield from look(site)
    except ApiRefusal as refusal:
        if refusal.status == 403:
            yield checks.unknown(name, refusal.message, "let somebody look who has the right, or ask for it")
        else:
            yield checks.failed(
                name, refusal.message, "the credentials are not valid: renew the kubeconfig" if refusal.status == 401 else "ask an administrator"
            )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        yield checks.failed(
            name, f"cluster.worker_pod or controller_pod is laid over a pod template and makes none ({error})", "compare it with kubectl explain pod.spec"
        )
    except HiernasError as error:
        yield checks.failed(name, str(error), "is the API server up, and does KUBECONFIG name the right one?")


# -- the cluster itself


def _server(site: Site) -> Iterator[Check]:
    before = time.time()
    found = site.api.get("/version")
    after = time.time()
    numbers = tuple(int(re.sub(r"\D.*", "", str(found.get(part))) or 0) for part in ("major", "minor"))
    told = f"Kubernetes {found.get('gitVersion')} at {site.api.address}"
    if numbers < OLDEST:
        yield checks.failed(
            "cluster", told, f"use {OLDEST[0]}.{OLDEST[1]} or newer: Jobs need podFailurePolicy and podReplacementPolicy as they are since then"
        )
    else:
        yield checks.ok("cluster", f"{told}; has all features that are used (podFailurePolicy, podReplacementPolicy, suspend)")
    yield checks.clock("cluster: clock", str(site.api.headers.get("Date") or ""), before, after)


def _namespace(site: Site) -> Iterator[Check]:
    namespace = site.cluster.namespace
    found = site.api.find(site.core)
    if found is None:
        yield checks.failed(
            "namespace", f"{namespace!r} is not there", "an administrator makes it with k8s/base, or correct cluster.namespace; the rest was not looked at"
        )
    elif (found.get("status") or {}).get("phase") == "Terminating":
        yield checks.failed("namespace", f"{namespace!r} is being deleted", "wait until it is gone, then apply k8s/base; the rest was not looked at")
    else:
        level = (found["metadata"].get("labels") or {}).get(_LEVEL)
        if level is None:
            yield checks.warning(
                "namespace",
                f"{namespace!r} is there; Pod Security: no level is set on it, so unless the cluster has another rule pods may do anything to their node",
                f"kubectl label namespace {namespace} {_LEVEL}=restricted, as k8s/base does",
            )
        else:
            yield checks.ok("namespace", f"{namespace!r} is there; Pod Security: enforces {level}")


def _images(site: Site) -> Iterator[Check]:
    for what, image in (("worker", site.cluster.worker_image), ("controller", site.cluster.controller_image)):
        name = f"{what} image"
        parts = _REFERENCE.fullmatch(image)
        if parts is None:
            yield checks.failed(name, f"{image!r} is no image's name", f"correct cluster.{what}_image: registry/name:tag, in lower case")
        elif parts["digest"] is None and (parts["tag"] or "latest") in _MUTABLE:
            yield checks.warning(
                name, f"{image!r} may be another image tomorrow", f"name a version's tag or a digest in cluster.{what}_image: a search should run on one image"
            )
        else:
            yield checks.ok(name, f"{image}; whether nodes can pull it, --smoke shows")


# -- what must be in the namespace


def _accounts(site: Site) -> Iterator[Check]:
    roles = True
    for account in dict.fromkeys((site.cluster.controller_account, site.cluster.worker_account)):
        found = site.api.find(f"{site.core}/serviceaccounts/{account}")
        if found is None:
            yield checks.failed(
                "accounts", f"service account {account!r} is not in the namespace", "apply k8s/base, or correct cluster.controller_account and worker_account"
            )
            continue
        roles = roles and any(key in (found["metadata"].get("annotations") or {}) for key in _ROLES)
        yield checks.ok("accounts", f"service account {account!r} is there")
    if site.cluster.store_secret is None and not roles:
        yield checks.warning(
            "store secret",
            "none is named, and the service accounts carry no cloud's role",
            "unless the cluster gives pods an identity otherwise (Pod Identity, node roles), name a Secret in cluster.store_secret",
        )


def _secrets(site: Site) -> Iterator[Check]:
    for name in dict.fromkeys((site.cluster.store_secret, site.cluster.worker_store_secret)):
        if name is not None:
            yield _secret(site, name)


def _secret(site: Site, name: str) -> Check:
    found = site.api.find(f"{site.core}/secrets/{name}")
    if found is None:
        return checks.failed(
            "store secret",
            f"secret {name!r} is not in the namespace",
            f"kubectl -n {site.cluster.namespace} create secret generic {name} --from-literal=AWS_ACCESS_KEY_ID=… --from-literal=AWS_SECRET_ACCESS_KEY=…",
        )
    keys = sorted(found.get("data") or {})
    missing = [key for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") if key not in keys and key not in site.cluster.environment]
    told = f"secret {name!r} has the keys {', '.join(keys) or '(none)'}"
    if missing:
        return checks.warning(
            "store secret",
            f"{told}, not {' and '.join(missing)}",
            "each key becomes an environment variable of all pods; add these, unless pods get credentials otherwise",
        )
    return checks.ok("store secret", told)


def _endpoint(site: Site) -> Iterator[Check]:
    theirs, ours = site.cluster.environment.get("AWS_ENDPOINT_URL"), os.environ.get("AWS_ENDPOINT_URL")
    if not site.store.startswith("s3://"):
        yield checks.failed("store for pods", f"{site.store!r} is no place that pods reach", "give --store s3://bucket/prefix")
    elif theirs is not None and _LOOPBACK.match(theirs):
        yield checks.failed(
            "store for pods", f"their AWS_ENDPOINT_URL is {theirs!r}: a pod's own loopback", "give an address in cluster.environment that pods reach"
        )
    elif theirs is not None and ours is not None and _LOOPBACK.match(ours):
        yield checks.unknown(
            "store for pods",
            f"pods use the endpoint {theirs}, this machine {ours}, as with kubectl port-forward",
            "--smoke shows whether both are the same store",
        )
    elif theirs != ours:
        yield checks.warning(
            "store for pods",
            f"pods use the endpoint {theirs or 'of AWS'}, this machine {ours or 'that of AWS'}",
            "see that both are the same store (cluster.environment, AWS_ENDPOINT_URL)",
        )
    else:
        yield checks.ok("store for pods", f"pods use the endpoint that this machine uses ({theirs or 'AWS'})")


def _lease(site: Site) -> Iterator[Check]:
    name = labels.lease_name(site.config.run)
    found = site.api.find(path_of(site.cluster.namespace, "leases", name))
    if found is None:
        yield checks.ok("run in the cluster", f"no run {name!r} is in the namespace")
        return
    given = found["metadata"].get("annotations") or {}
    if (given.get(labels.RUN_ID), given.get(labels.STORE)) == (site.run_id, site.store):
        yield checks.ok("run in the cluster", f"run {name!r} is there already; `hiernas submit` brings it up to date")
    else:
        yield checks.failed(
            "run in the cluster",
            f"another run {name!r} is there, in store {given.get(labels.STORE)!r} with id {given.get(labels.RUN_ID)!r}",
            f"use another name, or remove that one: kubectl -n {site.cluster.namespace} delete lease {name}",
        )


def _references(site: Site) -> Iterator[Check]:
    """Objects that the pods name: classes, claims, secrets and configs of volumes and variables."""
    wanted: dict[str, str] = {}
    for job in (site.worker(), site.controller()):
        wanted |= dict(_named(job["spec"]["template"]["spec"], site.core))
    wanted.pop(f"config map {labels.controller_name(site.config.run)!r}", None)  # submit makes it
    for name in (site.cluster.store_secret, site.cluster.worker_store_secret):
        wanted.pop(f"secret {name!r}", None)  # has a check of its own
    for what, path in wanted.items():
        try:
            there = site.api.find(path)
        except ApiRefusal as refusal:
            yield checks.unknown(what, refusal.message, "let somebody look who has the right, or ask for it")
            continue
        if there is None:
            yield checks.failed(what, "it is not there", "make it, or correct cluster.worker_pod and cluster.controller_pod")
        elif (there.get("status") or {}).get("phase") == "Lost":
            yield checks.failed(what, "its volume is lost", "restore the volume, or name another claim in cluster.worker_pod")
        else:
            yield checks.ok(what, "it is there")


def _named(pod: Object, core: str) -> Iterator[tuple[str, str]]:
    if name := pod.get("priorityClassName"):
        yield f"priority class {name!r}", f"/apis/scheduling.k8s.io/v1/priorityclasses/{name}"
    if name := pod.get("runtimeClassName"):
        yield f"runtime class {name!r}", f"/apis/node.k8s.io/v1/runtimeclasses/{name}"
    for one in pod.get("imagePullSecrets") or []:
        yield f"pull secret {one['name']!r}", f"{core}/secrets/{one['name']}"
    volumes = pod.get("volumes") or []
    sources = [*volumes, *(source for volume in volumes for source in (volume.get("projected") or {}).get("sources") or [])]
    for source in sources:
        yield from _referred(source, core, ("persistentVolumeClaim", "claimName", "volume claim"), ("configMap", "name", "config map"))
        yield from _referred(source, core, ("secret", "secretName", "secret"), ("secret", "name", "secret"))
    for container in [*(pod.get("initContainers") or []), *(pod.get("containers") or [])]:
        for variable in container.get("env") or []:
            given = variable.get("valueFrom") or {}
            yield from _referred(given, core, ("configMapKeyRef", "name", "config map"), ("secretKeyRef", "name", "secret"))
        for given in container.get("envFrom") or []:
            yield from _referred(given, core, ("configMapRef", "name", "config map"), ("secretRef", "name", "secret"))


_PATHS = {"volume claim": "persistentvolumeclaims", "config map": "configmaps", "secret": "secrets"}


def _referred(source: Object, core: str, *known: tuple[str, str, str]) -> Iterator[tuple[str, str]]:
    for kind, key, what in known:
        one = source.get(kind) or {}
        if one.get(key) and not one.get("optional"):
            yield f"{what} {one[key]!r}", f"{core}/{_PATHS[what]}/{one[key]}"


# -- room


def _room(site: Site) -> Iterator[Check]:
    ranges = site.api.list(f"{site.core}/limitranges")
    worker, controller = (capacity.with_defaults(job["spec"]["template"]["spec"], ranges) for job in (site.worker(), site.controller()))
    for what, containers in (("worker", worker), ("controller", controller)):
        yield from capacity.limit_ranges(ranges, what, containers)
    quotas = site.api.list(f"{site.core}/resourcequotas")
    if not quotas:
        yield checks.ok("quota", "the namespace has no ResourceQuota")
    yield from capacity.quotas(quotas, capacity.of_pod(worker), capacity.of_pod(controller), site.config.limits.workers)


def _nodes(site: Site) -> Iterator[Check]:
    pod = site.worker()["spec"]["template"]["spec"]
    yield capacity.nodes(site.api.list("/api/v1/nodes"), pod, capacity.of_pod(capacity.with_defaults(pod, []))["requests"])


def _queue(site: Site) -> Iterator[Check]:
    name = site.cluster.queue
    if name is None:
        return
    group = site.api.find("/apis/kueue.x-k8s.io")
    if group is None:
        yield checks.failed(
            "queue", f"cluster.queue is {name!r}, but Kueue is not installed: Jobs would stay suspended for ever", "install Kueue, or leave cluster.queue out"
        )
        return
    served = (group.get("preferredVersion") or {}).get("groupVersion") or "kueue.x-k8s.io/v1beta1"
    found = site.api.find(f"/apis/{served}/namespaces/{site.cluster.namespace}/localqueues/{name}")
    if found is None:
        yield checks.failed("queue", f"LocalQueue {name!r} is not in the namespace", "make it, or correct cluster.queue")
        return
    active: Object = next((one for one in (found.get("status") or {}).get("conditions") or [] if one.get("type") == "Active"), {})
    if active.get("status") == "True":
        yield checks.ok("queue", f"LocalQueue {name!r} is there and active")
    elif active.get("status") == "False":
        yield checks.failed(
            "queue", f"LocalQueue {name!r} is not active: {active.get('message')}", "see its ClusterQueue: Jobs stay suspended until it is active"
        )
    else:
        yield checks.warning(
            "queue",
            f"LocalQueue {name!r} is there, but not known to be active{': ' + str(active['message']) if active.get('message') else ''}",
            "is Kueue's controller running, and is its ClusterQueue there? Jobs stay suspended until the queue is active",
        )


# -- dry runs: admission answers now instead of in the middle of a search


def _dry_runs(site: Site) -> Iterator[Check]:
    for what, job in (("worker", site.worker()), ("controller", site.controller())):
        template = job["spec"]["template"]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"] | {"name": job["metadata"]["name"]}, "spec": template["spec"]}
        yield from _dry_run(site, f"dry run: {what} job", path_of(site.cluster.namespace, "jobs"), job)
        yield from _dry_run(site, f"dry run: {what} pod", f"{site.core}/pods", pod)


def _dry_run(site: Site, name: str, path: str, body: Object) -> Iterator[Check]:
    try:
        made = site.api.create(path, body, dryRun="All")
    except ExecutorUnavailable as error:
        yield checks.failed(name, str(error), "an admission webhook that does not answer is the usual cause: ask an administrator")
        return
    except ApiRefusal as refusal:
        if "cannot create resource" in refusal.message or "does not support dry run" in refusal.message:
            yield checks.unknown(name, f"it cannot be tried: {refusal.message}", "--smoke tries it for real")
        else:
            message, _, do = explain_refusal(refusal, site.cluster).rpartition(" — ")
            yield checks.failed(name, message, do)
        return
    told = [re.sub(r"\\(.)", r"\1", text) for header in _headers(site.api, "Warning") for text in _WARNING.findall(header)]
    if ignored := dropped(body["spec"], made.get("spec")):
        told.append(f"the cluster ignores {', '.join(ignored)}: a version before 1.31, a feature that is off, or an admission webhook")
    yield from (checks.warning(name, one, "correct cluster.worker_pod or controller_pod") for one in told)
    if not told:
        yield checks.ok(name, "every admission rule takes it")


def _headers(api: Api, name: str) -> list[str]:
    found = api.headers.getlist(name) if hasattr(api.headers, "getlist") else []
    return [str(one) for one in found]


_FIRST: dict[str, Callable[[Site], Iterator[Check]]] = {"cluster": _server, "namespace": _namespace}
_CHECKS: dict[str, Callable[[Site], Iterator[Check]]] = {
    "your rights": lambda site: rights.of_caller(site.api, site.cluster),
    "controller's rights": lambda site: rights.of_controller(site.api, site.cluster),
    "accounts": _accounts,
    "store secret": _secrets,
    "store for pods": _endpoint,
    "images": _images,
    "run in the cluster": _lease,
    "objects that pods name": _references,
    "quota": _room,
    "queue": _queue,
    "nodes": _nodes,
    "dry run": _dry_runs,
}
