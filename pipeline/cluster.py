"""Section `cluster` of a config: where a search's objects live, and what its pods are made of."""

import re
from dataclasses import dataclass, field
from typing import Any

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,511}")
_RESOURCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,252}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """What a run needs to know of its cluster. May differ at each start."""

    worker_image: str
    """Image that trains, by `make images` and your registry."""
    controller_image: str
    """Image that decides; it holds no torch."""
    namespace: str = "hiernas"
    """Where everything of the run is created; `k8s/base` makes it ready."""
    store_secret: str | None = None
    """Secret whose keys become environment variables of all pods (of workers: see `worker_store_secret`), for example AWS_ACCESS_KEY_ID; renewed keys reach running pods. Null where pods have a role."""
    worker_store_secret: str | None = None
    """Secret of workers instead, where they have narrower rights (docs/security.md); null: the same."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of all pods, for example AWS_ENDPOINT_URL. No secrets: they belong into `store_secret`."""
    worker_account: str = "hiernas-worker"
    """Service account of workers; they get no token for the Kubernetes API."""
    controller_account: str = "hiernas-controller"
    """Service account of the controller."""
    gpu_resource: str = "nvidia.com/gpu"
    """Name under which nodes offer what `executor.gpus` counts."""
    queue: str | None = None
    """Kueue's LocalQueue of worker Jobs; null: no queue."""
    unreachable_seconds: int = 60
    """How long a node may be silent before its attempts are tried elsewhere."""
    start_seconds: int = 1800
    """Allowance for pulling the image and fetching the data, on top of `executor.time_limit_seconds`."""
    scratch_gib: float = 20.0
    """Most that each of a worker's two volumes may hold: its data set (`/data`), its temporary files (`/tmp`)."""
    worker_pod: dict[str, Any] = field(default_factory=dict)
    """Laid over the worker's pod template (`metadata`, `spec`): node selectors, tolerations, volumes, priority class, anything."""
    controller_pod: dict[str, Any] = field(default_factory=dict)
    """Laid over the controller's pod template."""

    def __post_init__(self) -> None:
        for name, pattern, what in (
            ("worker_image", _IMAGE, "an image's name"),
            ("controller_image", _IMAGE, "an image's name"),
            ("namespace", _LABEL, "a DNS label"),
            ("store_secret", _NAME, "a name of an object"),
            ("worker_store_secret", _NAME, "a name of an object"),
            ("worker_account", _NAME, "a name of an object"),
            ("controller_account", _NAME, "a name of an object"),
            ("gpu_resource", _RESOURCE, "a resource's name, for example nvidia.com/gpu"),
            ("queue", _NAME, "a name of an object"),
        ):
            value = getattr(self, name)
            if value is not None and not pattern.fullmatch(value):
                raise ValueError(f"{name} is {value!r}; allowed: {what}")
        for name, low, high in (("unreachable_seconds", 5, 86_400), ("start_seconds", 10, 86_400), ("scratch_gib", 0.1, 100_000)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; allowed: {low} to {high}")
        for name in self.environment:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"environment has {name!r}; allowed: names of variables, letters, digits and '_'")
            if name in _SECRET_VARIABLES:
                raise ValueError(f"environment has {name}: secrets do not belong into a config; put it into a Secret and name that in store_secret")
        for name in ("worker_pod", "controller_pod"):
            if unknown := getattr(self, name).keys() - {"metadata", "spec"}:
                raise ValueError(f"{name} has {', '.join(sorted(unknown))}; allowed: metadata, spec")
            if any(not isinstance(value, dict) for value in getattr(self, name).values()):
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: metadata and spec as mappings")
        if self.store_secret is not None and self.worker_store_secret is None and _has_secret(self.worker_pod):
            raise ValueError("worker_pod gives the worker a Secret in envFrom: name it in worker_store_secret instead, or workers get that of store_secret too")


def _has_secret(pod: dict[str, Any]) -> bool:
    """Whether what is laid over a worker's pod takes its environment from a Secret."""
    workers = [one for one in _mappings(pod.get("spec", {}).get("containers")) if one.get("name") == "worker"]
    return any("secretRef" in source for one in workers for source in _mappings(one.get("envFrom")))


def _mappings(value: Any) -> list[dict[str, Any]]:
    """Those in a list; whatever else a person wrote there, the API server judges."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
