"""What is created in a cluster, as plain data: pure functions of config and records (golden files in tests/golden)."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from pipeline import labels
from pipeline.cluster import ClusterConfig
from pipeline.executor import JobSpec
from pipeline.store import KEYS_VARIABLE
from search.records import Resources

Object = dict[str, Any]
DATA_ROOT = "/data"
"""Where workers find the prepared data set: mounted there (`cluster.worker_pod`), else fetched from the store."""
CONFIG_FOLDER = "/etc/hiernas"
KEYS_FOLDER = "/var/run/hiernas/store"
"""Where the store's Secret is mounted: keys that are renewed there reach a running process, unlike those in its environment."""
METRICS_PORT = 9090
LEASE_VARIABLE, POD_VARIABLE = "HIERNAS_LEASE_UID", "HIERNAS_POD_UID"
"""By which a controller learns in which pod it is, and under which Lease."""
GRACE_SECONDS = 30
DAY_SECONDS = 86_400
CONTROLLER_LOST_SECONDS = 30
LOST_NODE = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


@dataclass(frozen=True, slots=True)
class Origin:
    """What every object of a run in a cluster says of itself."""

    run: str
    run_id: str
    store: str
    lease_uid: str
    """UID of the run's Lease: deleting it removes all of the run from the cluster, and nothing from the store."""
    version: str


def overlay(base: Any, patch: Any) -> Any:
    """`patch` laid over `base`: mappings key by key (null removes), lists of named mappings by name, the rest replaced."""
    if isinstance(base, dict) and isinstance(patch, dict):
        merged = {key: value for key, value in base.items() if patch.get(key, 0) is not None}
        return merged | {key: overlay(base.get(key), value) for key, value in patch.items() if value is not None}
    if isinstance(base, list) and isinstance(patch, list) and all(isinstance(one, dict) and "name" in one for one in base + patch):
        given = {one["name"]: one for one in patch}
        kept = [overlay(one, given.pop(one["name"], {})) for one in base]
        return kept + list(given.values())
    return patch


def _metadata(origin: Origin, name: str, namespace: str, component: str) -> Object:
    return {
        "name": name,
        "namespace": namespace,
        "labels": labels.common(origin.run, component, origin.version),
        "annotations": {labels.RUN_ID: origin.run_id, labels.STORE: origin.store},
        "ownerReferences": [owner(origin)],
    }


def owner(origin: Origin) -> Object:
    """A plain reference to the run's Lease; not a controller's: nobody adopts or blocks anything."""
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "name": labels.lease_name(origin.run), "uid": origin.lease_uid}


def lease(run: str, run_id: str, store: str, namespace: str, version: str) -> Object:
    """The owner of everything."""
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": labels.lease_name(run),
            "namespace": namespace,
            "labels": labels.common(run, "run", version),
            "annotations": {labels.RUN_ID: run_id, labels.STORE: store},
        },
        "spec": {},
    }


def _security() -> Object:
    """What Pod Security 'restricted' asks of a container, and a root file system that nobody writes to."""
    return {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def _pod(metadata: Object, component: str, account: str, restart: str, container: Object, volumes: list[Object]) -> Object:
    """A pod of one container, which is called like its component, as Pod Security 'restricted' wants it."""
    return {
        "metadata": {
            "labels": metadata["labels"],
            "annotations": metadata["annotations"] | labels.STAY | {"kubectl.kubernetes.io/default-container": component},
        },
        "spec": {
            "restartPolicy": restart,
            "serviceAccountName": account,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": GRACE_SECONDS,
            "securityContext": {"runAsNonRoot": True, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": component, **container, "securityContext": _security(), "terminationMessagePolicy": "FallbackToLogsOnError"}],
            "volumes": volumes,
        },
    }


def _template(pod: Object, patch: Object, unreachable_seconds: int) -> Object:
    """The pod with what the config lays over it. Tolerations of its own (of GPU taints, say) do not replace that of silent nodes;
    our labels stay as they are, or its controller would not find it."""
    found: Object = overlay(pod, patch)
    found["metadata"]["labels"] = (found["metadata"].get("labels") or {}) | pod["metadata"]["labels"]
    own = found["spec"].get("tolerations") or []
    silent = [{"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": unreachable_seconds} for key in LOST_NODE]
    # Ours first: of those that fit a taint the first counts, and one of everything, for ever, would keep a silent node's pods for ever.
    found["spec"]["tolerations"] = [one for one in silent if one["key"] not in [given.get("key") for given in own]] + own
    return found


def _away(template: Object, never: tuple[str, ...], rather_not: tuple[str, ...]) -> Object:
    """The pod, but on none of some nodes, and rather on none of some others, whatever the config itself asks for."""
    if never:
        required = _within(template, "spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution")
        given = required.get("nodeSelectorTerms") or [{}]  # alternatives: so the condition must be in each
        required["nodeSelectorTerms"] = [one | {"matchExpressions": [*(one.get("matchExpressions") or []), _other_than(never)]} for one in given]
    if rather_not:
        affinity = _within(template, "spec", "affinity", "nodeAffinity")
        preferred = {"weight": 100, "preference": {"matchExpressions": [_other_than(rather_not)]}}
        kind = "preferredDuringSchedulingIgnoredDuringExecution"
        affinity[kind] = [*(affinity.get(kind) or []), preferred]
    return template


def _other_than(nodes: tuple[str, ...]) -> Object:
    return {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": list(nodes)}


def _within(found: Object, *path: str) -> Object:
    """The mapping there, made if it is missing; the config's own are copied, not changed."""
    for key in path:
        found[key] = dict(found.get(key) or {})
        found = found[key]
    return found


def _environment(cluster: ClusterConfig, fixed: dict[str, str], secret: str | None) -> Object:
    keys = {KEYS_VARIABLE: KEYS_FOLDER} if secret is not None else {}
    found: Object = {"env": [{"name": name, "value": value} for name, value in (fixed | keys | cluster.environment).items()]}
    if secret is not None:
        found["envFrom"] = [{"secretRef": {"name": secret}}]
    return found


def _with_keys(container: Object, volumes: list[Object], secret: str | None) -> None:
    """The Secret as files beside the environment, which stays for whatever else is in it."""
    if secret is not None:
        container["volumeMounts"].append({"name": "store-keys", "mountPath": KEYS_FOLDER, "readOnly": True})
        # Optional: one that is absent keeps the container from starting all the same (envFrom), and that tells why; a volume waits without a word.
        volumes.append({"name": "store-keys", "secret": {"secretName": secret, "defaultMode": 0o440, "optional": True}})


def _resources(resources: Resources, cluster: ClusterConfig) -> Object:
    """Processors are asked for, never capped: a cap only makes a training slower. Memory and GPUs are bounds."""
    requests: dict[str, str] = {"cpu": str(resources.threads)}
    limits: dict[str, str] = {}
    if resources.memory_bytes is not None:
        requests["memory"] = limits["memory"] = str(resources.memory_bytes)
    if resources.gpus:
        requests[cluster.gpu_resource] = limits[cluster.gpu_resource] = str(resources.gpus)
    return {"requests": requests} | ({"limits": limits} if limits else {})


def settings_digest(cluster: ClusterConfig) -> str:
    """SHA-256 of what a worker's Job depends on: a Job that was made with other settings, and waits, may wait for what was corrected."""
    own = {name: value for name, value in asdict(cluster).items() if not name.startswith("controller_")}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def worker_job(spec: JobSpec, origin: Origin, cluster: ClusterConfig) -> Object:
    """The Job of one attempt: one pod, tried once, never anything that its record did not decide."""
    metadata = _metadata(origin, spec.name, cluster.namespace, labels.WORKER)
    metadata["labels"] |= {labels.CANDIDATE: str(spec.candidate), labels.ATTEMPT: str(spec.attempt)}
    metadata["annotations"][labels.DIGEST] = spec.digest
    if cluster.queue is not None:
        metadata["labels"][labels.QUEUE] = cluster.queue
    scratch = {"emptyDir": {"sizeLimit": f"{math.ceil(cluster.scratch_gib * 1024)}Mi"}}
    secret = cluster.worker_store_secret or cluster.store_secret
    numbers = ["--run", spec.run, "--candidate", str(spec.candidate), "--attempt", str(spec.attempt)]
    container: Object = {
        "image": cluster.worker_image,
        "args": ["worker", "--store", origin.store, *numbers, "--data-root", DATA_ROOT, "--fetch"],
        **_environment(cluster, {"HOME": "/tmp", "OMP_NUM_THREADS": str(spec.resources.threads)}, secret),  # noqa: S108
        "resources": _resources(spec.resources, cluster),
        "volumeMounts": [{"name": "data", "mountPath": DATA_ROOT}, {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
    }
    volumes: list[Object] = [{"name": "data", **scratch}, {"name": "tmp", **scratch}]
    _with_keys(container, volumes, secret)
    pod = _pod(metadata, labels.WORKER, cluster.worker_account, "Never", container, volumes)
    pod["spec"]["automountServiceAccountToken"] = False
    if spec.resources.time_limit_seconds is not None:
        # On the pod, not on the Job: this clock starts when a node has the pod, so waiting costs a candidate nothing.
        pod["spec"]["activeDeadlineSeconds"] = math.ceil(spec.resources.time_limit_seconds) + cluster.start_seconds
    metadata["annotations"] = metadata["annotations"] | {labels.SETTINGS: settings_digest(cluster)}
    job: Object = {
        "backoffLimit": 0,
        "ttlSecondsAfterFinished": DAY_SECONDS,  # a broom only: the controller deletes what it has recorded
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            # Ends the Job with a reason that says "disrupted" even when the pod is gone.
            "rules": [{"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
        },
        "template": _away(_template(pod, cluster.worker_pod, cluster.unreachable_seconds), spec.avoid, spec.rather_not),
    }
    if cluster.queue is not None:
        job["suspend"] = True  # the queue lets it run
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": job}


def dropped(asked: Any, made: Any, place: str = "") -> list[str]:
    """Fields that were asked for and are not in what the cluster made of it: it is too old for them, a feature gate is off, or a webhook took them out."""
    if isinstance(asked, dict) and isinstance(made, dict):
        return [found for key, value in asked.items() if value not in (None, [], {}, "", False) for found in dropped(value, made.get(key), f"{place}.{key}")]
    if isinstance(asked, list) and isinstance(made, list):
        named = {one["name"]: one for one in made if isinstance(one, dict) and "name" in one}  # others may have been added among them
        return [found for one in asked if isinstance(one, dict) and "name" in one for found in dropped(one, named.get(one["name"]), f"{place}[{one['name']}]")]
    return [place.removeprefix(".")] if made is None else []


def config_map(config: str, origin: Origin, namespace: str) -> Object:
    """The config as it was submitted, for the controller."""
    metadata = _metadata(origin, labels.controller_name(origin.run), namespace, labels.CONTROLLER)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"config.yaml": config}}


def controller_job(origin: Origin, cluster: ClusterConfig, digest: str) -> Object:
    """The controller: a Job, because a search ends. Restarted for ever: what a restart can't cure, the process itself reports and waits."""
    metadata = _metadata(origin, labels.controller_name(origin.run), cluster.namespace, labels.CONTROLLER)
    metadata["annotations"][labels.CONFIG_DIGEST] = digest
    probe = {"httpGet": {"path": "/healthz", "port": "metrics"}, "periodSeconds": 20, "failureThreshold": 6, "timeoutSeconds": 5}
    command = ["run", f"{CONFIG_FOLDER}/config.yaml", "--store", origin.store, "--executor", "kubernetes", "--submitted", "--metrics-port", str(METRICS_PORT)]
    environment = _environment(cluster, {"HOME": "/tmp", LEASE_VARIABLE: origin.lease_uid}, cluster.store_secret)  # noqa: S108
    environment["env"].append({"name": POD_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}})
    container: Object = {
        "image": cluster.controller_image,
        "args": command,
        **environment,
        "ports": [{"name": "metrics", "containerPort": METRICS_PORT}],
        "livenessProbe": probe,
        "startupProbe": probe | {"failureThreshold": 30},
        # Not ready: it has stopped for what a restart can't cure. Whoever submits again starts it anew.
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "metrics"}, "periodSeconds": 5, "failureThreshold": 3, "timeoutSeconds": 5},
        "resources": {"requests": {"cpu": "250m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
        "volumeMounts": [{"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True}, {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
    }
    volumes: list[Object] = [
        {"name": "config", "configMap": {"name": labels.controller_name(origin.run)}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}},
    ]
    _with_keys(container, volumes, cluster.store_secret)
    pod = _pod(metadata, labels.CONTROLLER, cluster.controller_account, "OnFailure", container, volumes)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {"backoffLimit": 1_000_000, "template": _template(pod, cluster.controller_pod, CONTROLLER_LOST_SECONDS)},
    }
