"""The Kubernetes API as raw JSON: one place for addresses, credentials, and for what is asked again.

Lists of thousands of typed objects are slow, so nothing is typed here; what is read is picked out in `observe`.
"""

import json
import logging
import os
import random
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kubernetes import config as kubernetes_config
from kubernetes.client import ApiClient, Configuration
from urllib3 import Retry
from urllib3.exceptions import HTTPError

from pipeline.errors import ConfigError, ExecutorUnavailable

CONNECT_SECONDS, READ_SECONDS = 5.0, 30.0
TRIES = 4
PAUSE_SECONDS = 0.25
"""Before the second try; three times as long before each one after it. A server's Retry-After is kept."""
LONGEST_PAUSE_SECONDS = 10.0
PAGE = 500
"""Objects a page of a list."""
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
Object = dict[str, Any]
log = logging.getLogger("hiernas.api")


class ApiRefusal(Exception):
    """A definite no of the API server (4xx)."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message


_GROUPS = {"jobs": "apis/batch/v1", "leases": "apis/coordination.k8s.io/v1"}
"""Of kinds that are not of the core group."""


def path_of(namespace: str, kind: str, name: str = "") -> str:
    """Path of a namespace's objects of a kind ("jobs"), or of one of them."""
    return f"/{_GROUPS.get(kind, 'api/v1')}/namespaces/{namespace}/{kind}" + (f"/{name}" if name else "")


def in_cluster() -> bool:
    """Whether this process is in a pod with a service account."""
    return "KUBERNETES_SERVICE_HOST" in os.environ and (ACCOUNT / "token").exists()


class Api:
    """One cluster, reached as the pod's service account or by a kubeconfig (KUBECONFIG, ~/.kube/config)."""

    def __init__(self) -> None:
        configuration = Configuration()
        try:
            if in_cluster():
                kubernetes_config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
            else:
                kubernetes_config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=configuration)  # type: ignore[no-untyped-call]
        except (kubernetes_config.ConfigException, OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"no Kubernetes cluster is known here: {error}; set KUBECONFIG, or run this in a pod with a service account") from error
        configuration.retries = Retry(0)  # what is asked again is decided here
        self.address = configuration.host
        self.headers: Any = {}
        """Of the last answer: its Date, and the Warnings of admission."""
        self._client = ApiClient(configuration)
        self._client.user_agent = "hiernas"

    # -- verbs

    def get(self, path: str, **query: str) -> Object:
        """One object; ApiRefusal 404 if there is none."""
        return self._json("GET", path, query)

    def find(self, path: str) -> Object | None:
        """One object, or None."""
        try:
            return self.get(path)
        except ApiRefusal as refusal:
            if refusal.status == 404:
                return None
            raise

    def text(self, path: str, **query: str) -> str:
        """What is no JSON: a pod's log."""
        return self._ask("GET", path, query, None).decode("utf-8", "replace")

    def list(self, path: str, selector: str = "", **query: str) -> list[Object]:
        """Every object of a list, complete and consistent: all pages are of one moment, or the list begins anew."""
        if selector:
            query["labelSelector"] = selector
        for _ in range(TRIES):
            found: list[Object] = []
            more = ""
            try:
                while True:
                    page = self._json("GET", path, query | {"limit": str(PAGE)} | ({"continue": more} if more else {}))
                    found.extend(page.get("items") or [])
                    more = (page.get("metadata") or {}).get("continue") or ""
                    if not more:
                        return found
            except ApiRefusal as refusal:
                if refusal.status != 410:  # the moment is too long ago
                    raise
        raise ExecutorUnavailable(f"Kubernetes API {self.address}: {path}: its pages expire before they are read")

    def create(self, path: str, body: Object, **query: str) -> Object:
        """Create; ApiRefusal 409 if the name is taken, by an earlier try whose answer was lost too."""
        return self._json("POST", path, query, body)

    def replace(self, path: str, body: Object, **query: str) -> Object:
        """Replace."""
        return self._json("PUT", path, query, body)

    def delete(self, path: str, uid: str | None = None) -> None:
        """Delete with what it owns; nothing happens if it is not there. The default for Jobs would leave pods running."""
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        try:
            self._json("DELETE", path, {}, body)
        except ApiRefusal as refusal:
            if refusal.status != 404:
                raise

    # -- requests

    def _json(self, method: str, path: str, query: dict[str, str], body: Object | None = None) -> Object:
        data = self._ask(method, path, query, body)
        try:
            found = json.loads(data)
        except ValueError as error:
            raise ExecutorUnavailable(
                f"Kubernetes API {self.address}: {method} {path}: the answer is no JSON ({error}); is this address an API server's?"
            ) from error
        if not isinstance(found, dict):
            raise ExecutorUnavailable(f"Kubernetes API {self.address}: {method} {path}: the answer is no object; is this address an API server's?")
        return found

    def _ask(self, method: str, path: str, query: dict[str, str], body: Object | None) -> bytes:
        for left in reversed(range(TRIES)):
            pause = PAUSE_SECONDS * 3 ** (TRIES - 1 - left) * random.uniform(0.5, 1.0)  # noqa: S311  # spreads out retries, nothing else
            try:
                request = self._client.param_serialize(
                    method, quote(path), query_params=list(query.items()), header_params={"Accept": "application/json, */*", "Content-Type": "application/json"},
                    body=body, auth_settings=["BearerToken"],
                )  # fmt: skip
                response = self._client.call_api(*request, _request_timeout=(CONNECT_SECONDS, READ_SECONDS))
                data: bytes = response.read()  # type: ignore[no-untyped-call]
                self.headers = response.headers
            except (HTTPError, OSError, kubernetes_config.ConfigException) as error:
                why = f"it does not answer ({error})"
            else:
                if 200 <= response.status < 300:
                    return data
                reason, message = _told(data)
                # A quota that others use at the same time answers a creation so: nothing was created, and nothing is wrong with it.
                contended = method == "POST" and response.status == 409 and reason == "Conflict"
                if response.status not in (408, 429) and response.status < 500 and not contended:
                    raise ApiRefusal(response.status, reason, message or f"HTTP {response.status}")
                why = f"HTTP {response.status} {message}".rstrip()
                after = response.headers.get("Retry-After", "")
                if after.isdigit():
                    pause = max(pause, min(float(after), LONGEST_PAUSE_SECONDS))
            log.info("no answer method=%s path=%s left=%d why=%s", method, path, left, why)
            if left:
                time.sleep(pause)
        raise ExecutorUnavailable(f"Kubernetes API {self.address}: {method} {path}: {why}")


def _told(data: bytes) -> tuple[str, str]:
    """Reason and message of a Status object, as far as it is one."""
    try:
        status = json.loads(data)
        return str(status.get("reason") or ""), str(status.get("message") or "")
    except (ValueError, AttributeError):
        return "", data[:200].decode("utf-8", "replace")
