"""A run as `hiernas submit` would bring it to a cluster: its objects, to be judged or tried without being made."""

import secrets
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from pipeline import manifest
from pipeline.api import Api
from pipeline.cluster import ClusterConfig
from pipeline.config import Config
from pipeline.executor import JobSpec

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Site:
    """A run as it would be submitted."""

    api: Api
    config: Config
    cluster: ClusterConfig
    store: str
    run_id: str | None
    """Of the run in the store; None: it would be a new one."""

    @property
    def core(self) -> str:
        """Path of the namespace."""
        return f"/api/v1/namespaces/{self.cluster.namespace}"

    def origin(self) -> manifest.Origin:
        """Of objects that are only tried."""
        return manifest.Origin(self.config.run, self.run_id or "0" * 32, self.store, "00000000-0000-0000-0000-000000000000", version("hiernas"))

    def worker(self) -> Object:
        """The Job of a worker, as the first attempt would have it."""
        spec = JobSpec(self._name(), self.config.run, 0, 0, self.config.resources(), "0" * 64)
        return _tried(manifest.worker_job(spec, self.origin(), self.cluster), spec.name)

    def controller(self) -> Object:
        """The Job of the controller."""
        return _tried(manifest.controller_job(self.origin(), self.cluster, "0" * 64), self._name())

    def _name(self) -> str:
        return f"{self.config.run}-doctor-{secrets.token_hex(3)}"


def _tried(job: Object, name: str) -> Object:
    """Under a name that is free; without its owner, which may not be there yet."""
    job["metadata"] = {key: value for key, value in job["metadata"].items() if key != "ownerReferences"} | {"name": name}
    return job
