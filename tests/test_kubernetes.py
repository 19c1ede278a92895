"""The Kubernetes executor over an API server that is small, ours, and reached by the real client. tests/cluster asks real servers the same."""

import contextlib
import copy
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import yaml
from s3_server import Listener
from test_manifest import ORIGIN, PLAIN

from pipeline import api as api_module
from pipeline import labels, manifest
from pipeline.api import LONGEST_PAUSE_SECONDS, PAUSE_SECONDS, TRIES, Api, ApiRefusal, path_of
from pipeline.errors import ConfigError, ExecutorUnavailable, HiernasError, Overtaken
from pipeline.executor import JobSpec, JobStatus, Refused, Waiting, job_name
from pipeline.kubernetes import EVENT_SECONDS, KubernetesExecutor
from search.records import Resources

Object = dict[str, Any]
Answer = tuple[int, Object | bytes, dict[str, str]]
"""Status, body, headers."""
PATH = re.compile(r"/(?P<group>.+)/namespaces/hiernas/(?P<kind>[a-z]+)(?:/(?P<name>[^/]+))?")
GROUPS = {"jobs": "apis/batch/v1", "leases": "apis/coordination.k8s.io/v1", "pods": "api/v1", "events": "api/v1"}
TOKEN = "a-token"
BOUND = 5.0
"""Seconds after which whoever waits for another thread gives up: a broken program fails, it does not hang."""


# -- an API server


@dataclass(frozen=True)
class Request:
    """One request; `name` is empty for a list and for what is created."""

    method: str
    kind: str
    name: str
    query: dict[str, str]
    body: Object


Honest = Callable[[], Answer]
Twist = Callable[[Request, Honest], Answer | None]
"""Another answer instead of the honest one; None: the connection is cut."""


def no(code: int, reason: str, message: str, headers: dict[str, str] | None = None) -> Answer:
    return code, {"kind": "Status", "status": "Failure", "reason": reason, "message": message, "code": code}, headers or {}


def has(one: Object, selector: str) -> bool:
    """Whether an object has each of the values, under its labels' names or a path of fields."""
    wanted = dict(pair.split("=") for pair in selector.split(",") if pair)
    fields = {f"{above}.{key}": value for above, some in one.items() if isinstance(some, dict) for key, value in some.items()}
    return wanted.items() <= (one | fields | one["metadata"].get("labels", {})).items() if wanted else True


class Cluster:
    """Keeps objects as an API server does: names are unique, a list's pages are of one moment, what an object owns goes with it."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Object]] = {kind: {} for kind in GROUPS}
        self.requests: list[Request] = []
        self.rests: dict[str, list[Object]] = {}
        """What follows of a list that was begun, under the word that asks for it."""
        self.twist: Twist = lambda request, honest: honest()
        self._made, self._lock = 0, threading.RLock()

    def put(self, kind: str, asked: Object, uid: str = "") -> Object:
        """Make an object, with what a server adds to it."""
        self._made += 1
        one = copy.deepcopy(asked)
        one["metadata"] |= {"uid": uid or f"uid-{self._made}", "creationTimestamp": "2027-01-01T00:00:00Z"}
        if kind == "jobs":
            one["spec"] |= {"completionMode": "NonIndexed", "parallelism": 1}
        self.objects[kind][one["metadata"]["name"]] = one
        return one

    def remove(self, kind: str, name: str, owned: bool = True) -> None:
        """Delete an object, and what it owns unless that is left alone."""
        uid = self.objects[kind].pop(name)["metadata"]["uid"]
        found = [(other, one["metadata"]) for other, some in self.objects.items() for one in some.values()]
        for other, metadata in found if owned else []:
            if uid in [owner["uid"] for owner in metadata.get("ownerReferences", [])]:
                self.remove(other, metadata["name"])

    def asked(self, method: str, kind: str) -> list[Request]:
        return [one for one in self.requests if (one.method, one.kind) == (method, kind)]

    def answer(self, request: Request) -> Answer | None:
        self.requests.append(copy.deepcopy(request))
        return self.twist(request, lambda: self._honest(request))

    def _honest(self, request: Request) -> Answer:
        with self._lock:
            code, body, headers = {"POST": self._create, "GET": self._get, "DELETE": self._delete}[request.method](request)
            return code, copy.deepcopy(body), headers

    def _create(self, request: Request) -> Answer:
        name = request.body["metadata"]["name"]
        if name in self.objects[request.kind]:
            return no(409, "AlreadyExists", f'{request.kind} "{name}" already exists')
        return 201, self.put(request.kind, request.body), {}

    def _get(self, request: Request) -> Answer:
        if request.name:
            one = self.objects[request.kind].get(request.name)
            return (200, one, {}) if one is not None else no(404, "NotFound", f'{request.kind} "{request.name}" not found')
        query = request.query
        if query.get("continue", "") not in ("", *self.rests):
            return no(410, "Expired", "The provided continue parameter is too old to display a consistent list result")
        rest = self.rests.pop(query.get("continue", ""), None)
        if rest is None:
            some = self.objects[request.kind].values()
            rest = [copy.deepcopy(one) for one in some if has(one, query.get("labelSelector", "")) and has(one, query.get("fieldSelector", ""))]
        size = int(query["limit"])
        self._made += 1
        more = f"more-{self._made}" if len(rest) > size else ""
        self.rests |= {more: rest[size:]} if more else {}
        return 200, {"kind": "List", "metadata": {"continue": more}, "items": rest[:size]}, {}

    def _delete(self, request: Request) -> Answer:
        one = self.objects[request.kind].get(request.name)
        if one is None:
            return no(404, "NotFound", f'{request.kind} "{request.name}" not found')
        if request.body.get("preconditions", {}).get("uid", one["metadata"]["uid"]) != one["metadata"]["uid"]:
            return no(409, "Conflict", "Precondition failed: UID in precondition and UID in object meta differ")
        self.remove(request.kind, request.name, request.body.get("propagationPolicy") == "Background")
        return 200, {"kind": "Status", "status": "Success"}, {}


def handler(cluster: Cluster) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        timeout = BOUND

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            url = urlsplit(self.path)
            found = PATH.fullmatch(url.path)
            answer: Answer | None
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                answer = no(401, "Unauthorized", "Unauthorized")
            elif found is None or GROUPS.get(found["kind"]) != found["group"]:
                answer = no(404, "NotFound", "the server could not find the requested resource")
            else:
                answer = cluster.answer(Request(self.command, found["kind"], found["name"] or "", dict(parse_qsl(url.query)), json.loads(body or b"{}")))
            if answer is None:
                self.close_connection = True
                return
            code, what, headers = answer
            data = what if isinstance(what, bytes) else json.dumps(what).encode()
            self.send_response(code)
            for name, value in (headers | {"Content-Length": str(len(data))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = answer

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    return Handler


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return 1_900_000_000.0 + self.seconds

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the program slept, each time; nobody really does."""
    found: list[float] = []
    monkeypatch.setattr("time.sleep", found.append)
    return found


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """An API server with the run's Lease, and a kubeconfig that names it."""
    found = Cluster()
    found.put("leases", manifest.lease(ORIGIN.run, ORIGIN.run_id, ORIGIN.store, PLAIN.namespace, "1"), ORIGIN.lease_uid)
    for name in ("KUBERNETES_SERVICE_HOST", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with contextlib.closing(Listener(ThreadingHTTPServer(("127.0.0.1", 0), handler(found)))) as listener:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": {"server": listener.url}}],
            "users": [{"name": "test", "user": {"token": TOKEN}}],
        }
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        yield found


@pytest.fixture
def api(cluster: Cluster) -> Iterator[Api]:
    found = Api()
    yield found
    found._client.close()  # type: ignore[no-untyped-call]


@pytest.fixture
def executor(api: Api, clock: Clock) -> KubernetesExecutor:
    return KubernetesExecutor(api, ORIGIN, PLAIN, clock)


def spec(candidate: int = 0) -> JobSpec:
    return JobSpec(job_name(ORIGIN.run, candidate, 0), ORIGIN.run, candidate, 0, Resources(), "b" * 64)


def job_of(candidate: int = 0, origin: manifest.Origin = ORIGIN) -> Object:
    return manifest.worker_job(spec(candidate), origin, PLAIN)


def pod_of(job: Object) -> Object:
    """Its pod, on a node."""
    running = {"name": labels.WORKER, "state": {"running": {"startedAt": "2027-01-01T00:00:00Z"}}}
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}
    metadata = {"name": job["metadata"]["name"] + "-x", "labels": job["metadata"]["labels"], "ownerReferences": [owner]}
    return {"kind": "Pod", "metadata": metadata, "spec": {"nodeName": "node-7"}, "status": {"phase": "Running", "containerStatuses": [running]}}


def names(executor: KubernetesExecutor) -> list[str]:
    return sorted(job.name for job in executor.jobs())


def instead(answer: Answer | None, method: str, kind: str, times: int = 10**9) -> Twist:
    """That answer to the first so many of such requests."""
    left = [times]

    def twist(request: Request, honest: Honest) -> Answer | None:
        if (request.method, request.kind) != (method, kind) or not left[0]:
            return honest()
        left[0] -= 1
        return answer

    return twist


# -- start


def test_a_start_makes_the_manifests_job_once_and_may_be_repeated(cluster: Cluster, executor: KubernetesExecutor, api: Api, clock: Clock) -> None:
    executor.start(spec())
    executor.start(spec())
    KubernetesExecutor(api, ORIGIN, PLAIN, clock).start(spec())  # after a restart
    assert [one.body for one in cluster.asked("POST", "jobs")] == [job_of()] * 3
    (made,) = cluster.objects["jobs"].values()
    assert made["metadata"]["annotations"] == job_of()["metadata"]["annotations"]
    assert names(executor) == [spec().name]


def test_a_start_whose_answer_was_lost_makes_no_second_job(cluster: Cluster, executor: KubernetesExecutor) -> None:
    def lost(request: Request, honest: Honest) -> Answer | None:
        answer = honest()
        return None if answer[0] == 201 else answer

    cluster.twist = lost
    executor.start(spec())
    assert len(cluster.asked("POST", "jobs")) == 2
    assert names(executor) == [spec().name]


@pytest.mark.parametrize("annotation", [labels.RUN_ID, labels.STORE, labels.DIGEST])
@pytest.mark.parametrize("found", ["something-else", None])
def test_a_name_that_something_else_has_stops_the_run_and_says_what_it_is(
    cluster: Cluster, executor: KubernetesExecutor, annotation: str, found: str | None
) -> None:
    other = job_of()
    wanted = other["metadata"]["annotations"].pop(annotation)
    if found is not None:
        other["metadata"]["annotations"][annotation] = found
    cluster.put("jobs", other)
    with pytest.raises(HiernasError) as caught:
        executor.start(spec())
    assert type(caught.value) is HiernasError  # not one that is worth trying again
    for word in (f"hiernas/{spec().name}", annotation, repr(found), repr(wanted)):
        assert word in str(caught.value)


def test_a_job_without_annotations_is_something_else(cluster: Cluster, executor: KubernetesExecutor) -> None:
    other = job_of()
    del other["metadata"]["annotations"], other["metadata"]["ownerReferences"]
    cluster.put("jobs", other)
    with pytest.raises(HiernasError, match=labels.RUN_ID):
        executor.start(spec())


def test_a_job_of_an_earlier_lease_of_this_run_is_waited_for(cluster: Cluster, executor: KubernetesExecutor) -> None:
    cluster.put("jobs", job_of(origin=replace(ORIGIN, lease_uid="an-earlier-one")))
    with pytest.raises(ExecutorUnavailable, match="earlier Lease"):
        executor.start(spec())
    cluster.remove("jobs", spec().name)
    executor.start(spec())
    assert names(executor) == [spec().name]


def test_a_name_that_is_taken_and_free_a_moment_later_is_tried_again_later(cluster: Cluster, executor: KubernetesExecutor) -> None:
    cluster.twist = instead(no(409, "AlreadyExists", "object is being deleted"), "POST", "jobs")
    with pytest.raises(ExecutorUnavailable, match="is being deleted"):
        executor.start(spec())


@pytest.mark.parametrize(
    ("code", "reason", "message", "advice"),
    [
        (403, "Forbidden", 'User "x" cannot create resource "jobs" in API group "batch"', "k8s/base"),
        (403, "Forbidden", 'jobs.batch "x" is forbidden: exceeded quota: small, used: count/jobs.batch=9', "raise the ResourceQuota"),
        (403, "Forbidden", "admission webhook says no", "an admission rule of the cluster"),
        (422, "Invalid", "spec.template.spec.containers[0].image: Required value", "cluster.worker_pod"),
        (401, "Unauthorized", "Unauthorized", "credentials"),
        (404, "NotFound", 'namespaces "hiernas" not found', "an administrator makes it"),
    ],
)
def test_a_definite_no_is_a_refusal_with_advice_and_is_not_asked_again(
    cluster: Cluster, executor: KubernetesExecutor, slept: list[float], code: int, reason: str, message: str, advice: str
) -> None:
    cluster.twist = instead(no(code, reason, message), "POST", "jobs", times=1)
    with pytest.raises(Refused) as caught:
        executor.start(spec())
    assert message in str(caught.value)
    assert advice in str(caught.value)
    assert (len(cluster.requests), slept) == (1, [])
    executor.start(spec())  # once the cluster says yes
    assert names(executor) == [spec().name]


def test_a_field_that_the_cluster_drops_is_warned_of_once(cluster: Cluster, executor: KubernetesExecutor, caplog: pytest.LogCaptureFixture) -> None:
    def old(request: Request, honest: Honest) -> Answer:
        if request.method == "POST":
            del request.body["spec"]["podReplacementPolicy"]
            del request.body["spec"]["template"]["spec"]["containers"][0]["securityContext"]
        return honest()

    cluster.twist = old
    with caplog.at_level(logging.WARNING, "hiernas"):
        executor.start(spec(0))
        executor.start(spec(1))
    (record,) = (one for one in caplog.records if one.name == "hiernas.kubernetes")
    assert "podReplacementPolicy, template.spec.containers[worker].securityContext: is it" in record.getMessage()
    assert ORIGIN.run in record.getMessage()


def test_what_a_cluster_adds_is_no_warning(executor: KubernetesExecutor, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hiernas"):
        executor.start(spec())
    assert not [one for one in caplog.records if one.name == "hiernas.kubernetes"]


def test_starts_at_the_same_time_all_arrive(cluster: Cluster, executor: KubernetesExecutor) -> None:
    together = threading.Barrier(executor.parallel)

    def at_once(request: Request, honest: Honest) -> Answer:
        if request.method == "POST":
            together.wait(BOUND)  # none is answered before all of them are here
        return honest()

    cluster.twist = at_once
    specs = [spec(candidate) for candidate in range(5 * executor.parallel)]
    with ThreadPoolExecutor(executor.parallel) as threads:
        list(threads.map(executor.start, specs))
    assert len(cluster.asked("POST", "jobs")) == len(specs)
    assert names(executor) == [one.name for one in specs]


# -- lists


def test_a_list_of_several_pages_is_complete(cluster: Cluster, executor: KubernetesExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "PAGE", 2)
    for candidate in range(5):
        cluster.put("pods", pod_of(cluster.put("jobs", job_of(candidate))))
    found = executor.jobs()
    assert [job.name for job in found] == [spec(candidate).name for candidate in range(5)]
    assert [(job.status, job.node) for job in found] == [(JobStatus.RUNNING, "node-7")] * 5
    for kind in ("jobs", "pods"):
        asked = [one.query for one in cluster.asked("GET", kind)]
        assert [one["limit"] for one in asked] == ["2"] * 3
        assert {one["labelSelector"] for one in asked} == {labels.workers_of(ORIGIN.run)}


def test_a_list_whose_pages_expire_begins_anew(cluster: Cluster, executor: KubernetesExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "PAGE", 2)
    for candidate in range(5):
        cluster.put("jobs", job_of(candidate))

    def late(request: Request, honest: Honest) -> Answer:
        if "continue" in request.query and spec(0).name in cluster.objects["jobs"]:
            cluster.rests.clear()
            cluster.remove("jobs", spec(0).name)
            cluster.put("jobs", job_of(7))
        return honest()

    cluster.twist = late
    assert names(executor) == [spec(candidate).name for candidate in (1, 2, 3, 4, 7)]  # of one moment: neither the old one nor any twice


def test_a_list_whose_pages_always_expire_is_no_answer(cluster: Cluster, executor: KubernetesExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "PAGE", 2)
    for candidate in range(5):
        cluster.put("jobs", job_of(candidate))

    def late(request: Request, honest: Honest) -> Answer:
        cluster.rests.clear()
        return honest()

    cluster.twist = late
    with pytest.raises(ExecutorUnavailable, match="pages expire"):
        executor.jobs()


def test_a_new_controller_finds_the_jobs_of_the_one_before(executor: KubernetesExecutor, api: Api, clock: Clock) -> None:
    executor.start(spec())
    executor.close()
    assert names(KubernetesExecutor(api, ORIGIN, PLAIN, clock)) == [spec().name]


def test_a_job_that_a_list_leaves_out_is_asked_for_before_it_counts_as_gone(cluster: Cluster, executor: KubernetesExecutor) -> None:
    executor.start(spec(0))
    executor.start(spec(1))

    def behind(request: Request, honest: Honest) -> Answer:
        code, body, headers = honest()
        if isinstance(body, dict) and request.kind == "jobs" and "items" in body:
            body["items"] = [one for one in body["items"] if one["metadata"]["name"] != spec(1).name]
        return code, body, headers

    cluster.twist = behind
    for _ in range(2):
        assert names(executor) == [spec(0).name, spec(1).name]
    assert [one.name for one in cluster.asked("GET", "jobs")] == ["", spec(1).name] * 2
    cluster.remove("jobs", spec(1).name)
    cluster.requests.clear()
    for _ in range(2):
        assert names(executor) == [spec(0).name]
    assert [one.name for one in cluster.asked("GET", "jobs")] == ["", spec(1).name, ""]  # gone for good


@pytest.mark.parametrize("answer", [no(500, "InternalError", "etcd"), no(403, "Forbidden", 'User "x" cannot get resource')])
def test_a_job_that_may_be_gone_is_not_while_nobody_says_so(cluster: Cluster, executor: KubernetesExecutor, answer: Answer) -> None:
    executor.start(spec())
    cluster.remove("jobs", spec().name)
    cluster.twist = lambda request, honest: answer if request.name == spec().name else honest()
    with pytest.raises(ExecutorUnavailable):
        executor.jobs()


def test_jobs_of_another_run_or_of_an_earlier_lease_are_not_ours(cluster: Cluster, executor: KubernetesExecutor) -> None:
    executor.start(spec(0))
    cluster.put("jobs", job_of(1, replace(ORIGIN, run_id="f" * 32)))
    cluster.put("jobs", job_of(2, replace(ORIGIN, lease_uid="an-earlier-one")))
    cluster.put("jobs", job_of(3, replace(ORIGIN, run="letters")))
    bare = job_of(4)
    del bare["metadata"]["annotations"], bare["metadata"]["ownerReferences"]
    cluster.put("jobs", bare)
    for _ in range(2):
        assert names(executor) == [spec(0).name]


def test_a_run_whose_lease_is_gone_was_removed(cluster: Cluster, executor: KubernetesExecutor) -> None:
    executor.start(spec())
    cluster.remove("leases", labels.lease_name(ORIGIN.run))
    with pytest.raises(Overtaken, match=f"Lease hiernas/{ORIGIN.run} is gone"):
        executor.jobs()


def test_a_run_whose_lease_is_another_ones_was_removed(cluster: Cluster, executor: KubernetesExecutor) -> None:
    lease = cluster.objects["leases"][labels.lease_name(ORIGIN.run)]
    cluster.put("leases", lease)
    with pytest.raises(Overtaken):
        executor.jobs()


def test_what_goes_with_the_lease_while_it_is_listed_does_not_count_as_deleted_by_hand(cluster: Cluster, executor: KubernetesExecutor) -> None:
    executor.start(spec())

    def removed(request: Request, honest: Honest) -> Answer:
        if request.kind == "jobs" and cluster.objects["leases"]:
            cluster.remove("leases", labels.lease_name(ORIGIN.run))
            assert not cluster.objects["jobs"]
        return honest()

    cluster.twist = removed
    with pytest.raises(Overtaken):
        executor.jobs()


def test_a_lease_that_cannot_be_read_is_no_removed_run(cluster: Cluster, executor: KubernetesExecutor) -> None:
    cluster.twist = instead(no(403, "Forbidden", 'User "x" cannot get resource "leases"'), "GET", "leases")
    with pytest.raises(ExecutorUnavailable, match="k8s/base"):
        executor.jobs()


def test_a_job_made_with_other_settings_is_outdated(executor: KubernetesExecutor, api: Api, clock: Clock) -> None:
    executor.start(spec())
    (same,) = executor.jobs()
    (other,) = KubernetesExecutor(api, ORIGIN, replace(PLAIN, worker_image="registry.example/hiernas-worker:2"), clock).jobs()
    assert (same.outdated, other.outdated) == (False, True)


def test_why_a_job_gets_no_pod_is_read_from_events_now_and_then(cluster: Cluster, executor: KubernetesExecutor, clock: Clock) -> None:
    executor.start(spec())
    involved = {"kind": "Job", "uid": cluster.objects["jobs"][spec().name]["metadata"]["uid"]}
    for at, reason, message in ((1, "FailedCreate", "an earlier one"), (2, "FailedCreate", "exceeded quota: small"), (3, "Suspended", "")):
        event = {"metadata": {"name": f"e{at}"}, "reason": reason, "message": message, "lastTimestamp": f"2027-01-01T00:00:0{at}Z"}
        cluster.put("events", event | {"involvedObject": involved})
    executor.jobs()  # it waits: only then are events asked for
    for _ in range(2):
        (job,) = executor.jobs()
        assert (job.waits, job.message) == (Waiting.QUOTA, "exceeded quota: small")
    assert len(cluster.asked("GET", "events")) == 1
    cluster.twist = instead(no(403, "Forbidden", 'User "x" cannot list resource "events"'), "GET", "events")
    clock.sleep(EVENT_SECONDS)
    executor.jobs()
    (job,) = executor.jobs()
    assert (job.waits, job.status) == (Waiting.STARTING, JobStatus.PENDING)  # the reason is unknown, nothing else


# -- delete


def test_a_delete_takes_the_pods_along_and_may_be_repeated(cluster: Cluster, executor: KubernetesExecutor) -> None:
    executor.start(spec())
    job = cluster.objects["jobs"][spec().name]
    cluster.put("pods", pod_of(job))
    executor.delete(spec().name)
    assert (cluster.objects["jobs"], cluster.objects["pods"]) == ({}, {})
    (asked,) = cluster.asked("DELETE", "jobs")
    assert asked.body["propagationPolicy"] == "Background"
    assert asked.body["preconditions"] == {"uid": job["metadata"]["uid"]}
    executor.delete(spec().name)
    executor.delete("never-heard-of")
    assert names(executor) == []


def test_another_job_of_that_name_is_not_deleted(cluster: Cluster, executor: KubernetesExecutor) -> None:
    executor.start(spec())
    cluster.remove("jobs", spec().name)
    other = cluster.put("jobs", job_of())
    executor.delete(spec().name)
    assert cluster.objects["jobs"] == {spec().name: other}


def test_a_job_that_may_not_be_deleted_is_tried_again_as_the_same_one(cluster: Cluster, executor: KubernetesExecutor) -> None:
    executor.start(spec())
    cluster.twist = instead(no(403, "Forbidden", 'User "x" cannot delete resource "jobs"'), "DELETE", "jobs", times=1)
    with pytest.raises(ExecutorUnavailable, match="k8s/base"):
        executor.delete(spec().name)
    executor.delete(spec().name)
    assert cluster.objects["jobs"] == {}
    first, second = cluster.asked("DELETE", "jobs")
    assert first.body == second.body


# -- what is asked again


@pytest.mark.parametrize(
    ("told", "paused"), [("3", 3.0), ("3600", LONGEST_PAUSE_SECONDS), ("0", PAUSE_SECONDS), ("Wed, 21 Oct 2026 07:28:00 GMT", PAUSE_SECONDS)]
)
def test_a_server_that_asks_for_patience_gets_it(cluster: Cluster, executor: KubernetesExecutor, slept: list[float], told: str, paused: float) -> None:
    cluster.twist = instead(no(429, "TooManyRequests", "too many requests", {"Retry-After": told}), "POST", "jobs", times=1)
    executor.start(spec())
    assert slept == [pytest.approx(paused, rel=0.5)]
    assert slept[0] == paused or paused == PAUSE_SECONDS
    assert names(executor) == [spec().name]


@pytest.mark.parametrize(
    "answer",
    [*[no(code, "InternalError", "etcdserver: leader changed") for code in (408, 500, 503, 504)], (502, b"<html>Bad Gateway", {}), None],
    ids=["408", "500", "503", "504", "a proxy's", "cut"],
)
def test_a_server_in_trouble_is_asked_again_and_then_unavailable(
    cluster: Cluster, executor: KubernetesExecutor, api: Api, slept: list[float], answer: Answer | None
) -> None:
    cluster.twist = instead(answer, "POST", "jobs", times=TRIES - 1)
    executor.start(spec(0))
    assert names(executor) == [spec(0).name]
    for tried, pause in enumerate(slept):
        assert 0.5 <= pause / (PAUSE_SECONDS * 3**tried) <= 1.0
    cluster.requests.clear()
    cluster.twist = instead(answer, "POST", "jobs")
    with pytest.raises(ExecutorUnavailable) as caught:
        executor.start(spec(1))
    assert f"{api.address}: POST {path_of('hiernas', 'jobs')}" in str(caught.value)
    assert len(cluster.requests) == TRIES
    assert len(slept) == 2 * (TRIES - 1)  # nobody waits after the last one
    cluster.twist = instead(answer, "DELETE", "jobs")
    with pytest.raises(ExecutorUnavailable):
        executor.delete(spec(0).name)
    assert len(cluster.asked("DELETE", "jobs")) == TRIES  # the library below does not repeat what it holds for repeatable


def test_a_quota_that_others_use_at_the_same_time_is_asked_again(cluster: Cluster, executor: KubernetesExecutor, slept: list[float]) -> None:
    told = 'Operation cannot be fulfilled on resourcequotas "small": the object has been modified; please apply your changes to the latest version'
    cluster.twist = instead(no(409, "Conflict", told), "POST", "jobs", times=2)
    executor.start(spec())
    assert len(slept) == 2
    assert [job.name for job in executor.jobs()] == [spec().name]


def test_events_that_do_not_answer_hold_nothing_up(cluster: Cluster, executor: KubernetesExecutor, slept: list[float]) -> None:
    executor.start(spec())
    cluster.twist = instead(no(503, "ServiceUnavailable", "not now"), "GET", "events")
    assert [job.status for job in executor.jobs()] == [JobStatus.PENDING]


def test_what_is_no_api_server_is_said_to_be_none(cluster: Cluster, executor: KubernetesExecutor) -> None:
    for body in (b"<html>Please log in", b"[]"):
        cluster.twist = lambda request, honest, body=body: (200, body, {})  # type: ignore[misc]
        with pytest.raises(ExecutorUnavailable, match="is this address an API server's"):
            executor.jobs()


def test_an_api_server_that_does_not_know_us_is_unavailable_with_advice(cluster: Cluster, executor: KubernetesExecutor) -> None:
    cluster.twist = instead(no(401, "Unauthorized", "Unauthorized"), "GET", "jobs")
    with pytest.raises(ExecutorUnavailable, match="renew the kubeconfig"):
        executor.jobs()


def test_one_object_is_got_by_name_or_is_none(cluster: Cluster, api: Api) -> None:
    path = path_of("hiernas", "leases", labels.lease_name(ORIGIN.run))
    assert api.get(path)["metadata"]["uid"] == ORIGIN.lease_uid
    assert api.headers["Date"]
    absent = path_of("hiernas", "leases", "absent")
    assert api.find(absent) is None
    with pytest.raises(ApiRefusal) as caught:
        api.get(absent)
    assert (caught.value.status, caught.value.reason) == (404, "NotFound")


def test_without_a_cluster_it_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match="set KUBECONFIG"):
        Api()


def test_a_wait_counts_from_the_last_list_and_leaves_a_slow_server_a_pause(executor: KubernetesExecutor, clock: Clock, slept: list[float]) -> None:
    executor.jobs()
    for passed in (0.0, 2.0, 100.0):
        clock.sleep(passed)
        executor.wait(5.0)
    assert slept == [5.0, 3.0, 0.5]
