"""The least that keeps N Jobs in flight: plain HTTP, one list a round, no record of anything. What bench/scale.py compares a search with.

It knows no failure: an answer that it does not expect ends it. It creates the same Jobs as the controller does.
"""

import http.client
import json
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from pipeline import labels, manifest
from pipeline.api import path_of
from pipeline.cluster import ClusterConfig
from pipeline.executor import JobSpec, job_name
from search.records import Resources

Object = dict[str, Any]
CONNECTIONS = 8
PAUSE_SECONDS = 0.5
"""Between two rounds."""


class Http:
    """Requests over one kept connection a thread."""

    def __init__(self, kubeconfig: Path) -> None:
        found = json.loads(kubeconfig.read_text())
        self._address = urlsplit(found["clusters"][0]["cluster"]["server"])
        self._token = found["users"][0]["user"]["token"]
        self._context = ssl.create_default_context(cafile=str(kubeconfig.parent / "ca.crt"))
        self._own = threading.local()

    def open(self) -> http.client.HTTPSConnection:
        """A new connection."""
        assert self._address.hostname is not None
        return http.client.HTTPSConnection(self._address.hostname, self._address.port, context=self._context, timeout=60)

    def headers(self) -> dict[str, str]:
        """Who asks."""
        return {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}

    def ask(self, method: str, path: str, body: Object | None = None, **query: str) -> Object:
        """The answer as JSON."""
        if not hasattr(self._own, "connection"):
            self._own.connection = self.open()
        url = f"{path}?{urlencode(query)}" if query else path
        self._own.connection.request(method, url, None if body is None else json.dumps(body), self.headers())
        response = self._own.connection.getresponse()
        data = response.read()
        if response.status >= 300:
            raise RuntimeError(f"{method} {path}: HTTP {response.status} {data[:500]!r}")
        found: Object = json.loads(data)
        return found

    def watch(self, path: str, **query: str) -> Iterator[Object]:
        """Events of what is there and what comes, each with metadata alone."""
        connection = self.open()
        connection.timeout = None
        brief = {"Accept": "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"}
        connection.request("GET", f"{path}?{urlencode(query | {'watch': '1', 'timeoutSeconds': '3600'})}", headers=self.headers() | brief)
        for line in connection.getresponse():
            yield json.loads(line)


@dataclass(frozen=True, slots=True)
class Told:
    """What a run of it came to."""

    ends: list[float]
    """When each Job was seen completed, and had been deleted and replaced; `time.time()`, sorted."""
    cpu_seconds: float


def run(kubeconfig: Path, name: str, cluster: ClusterConfig, resources: Resources, count: int, workers: int) -> Told:
    """Create `count` Jobs, `workers` of them at a time, and delete each when it has completed."""
    asked = Http(kubeconfig)
    jobs, selector = path_of(cluster.namespace, "jobs"), labels.workers_of(name)
    lease = asked.ask("POST", path_of(cluster.namespace, "leases"), manifest.lease(name, "0" * 32, "file:///nowhere", cluster.namespace, "0"))
    origin = manifest.Origin(name, "0" * 32, "file:///nowhere", lease["metadata"]["uid"], "0")
    ends: list[float] = []
    began = time.process_time()

    def create(index: int) -> None:
        spec = JobSpec(job_name(name, index, 0), name, index, 0, resources, "0" * 64)
        asked.ask("POST", jobs, manifest.worker_job(spec, origin, cluster))

    def replace(done: str, index: int) -> None:
        asked.ask("DELETE", f"{jobs}/{done}", propagationPolicy="Background")
        if index < count:
            create(index)
        ends.append(time.time())

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(create, range(min(workers, count))))
        created = min(workers, count)
        while len(ends) < count:
            time.sleep(PAUSE_SECONDS)
            listed = asked.ask("GET", jobs, labelSelector=selector)["items"]
            done = [str(one["metadata"]["name"]) for one in listed if _completed(one)]
            list(pool.map(replace, done, range(created, created + len(done))))
            created = min(count, created + len(done))
    asked.ask("DELETE", path_of(cluster.namespace, "leases", name))
    return Told(sorted(ends), time.process_time() - began)


def _completed(found: Object) -> bool:
    return any(one["type"] == "Complete" and one["status"] == "True" for one in found["status"].get("conditions") or [])
