"""What recorded Jobs, pods and events of a real cluster (tests/recorded, made by tests/cluster/record.py) are read as."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import observe
from pipeline.executor import Job, JobStatus, Waiting
from pipeline.kubernetes import messages_of
from search.records import EndReason

RECORDED = Path(__file__).parent / "recorded"
NOW = 1_900_000_000.0
ENDED: dict[str, tuple[EndReason | None, int | None, str]] = {
    "complete": (None, 0, "wrote no evaluation"),
    "exit-1": (None, 1, ""),
    "exit-5": (None, 5, ""),
    "out-of-memory": (EndReason.MEMORY, 137, "OOMKilled"),
    "deadline": (EndReason.DEADLINE, None, "deadline"),
    "pod-deleted": (None, None, ""),
    "pod-deleted-by-force": (None, None, ""),
    "job-being-deleted": (EndReason.GONE, None, "being deleted"),
    "evicted": (None, None, ""),
    "preempted": (None, None, ""),
}
"""Reason, exit code, part of the message. The pause program ends with 0 when it is told to: a worker ends with 143."""
WAITING = {
    "no-image": (Waiting.IMAGE, "localhost/absent:1"),
    "no-secret": (Waiting.POD, "absent"),
    "unschedulable": (Waiting.UNSCHEDULABLE, "Insufficient nvidia.com/gpu"),
    "suspended": (Waiting.SUSPENDED, ""),
    "suspended-after-running": (Waiting.SUSPENDED, ""),
    "root-refused": (Waiting.ADMISSION, "violates PodSecurity"),
    "quota": (Waiting.QUOTA, "exceeded quota"),
}


def recorded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RECORDED / f"{name}.json").read_text())
    return found


def read(found: dict[str, Any], seen: observe.Seen | None = None) -> Job:
    uid = str(found["job"]["metadata"]["uid"])
    refusals = messages_of([one for one in found["events"] if one["reason"] == "FailedCreate"]).get(uid, [])
    return observe.job(found["job"], observe.newest(observe.by_job(found["pods"]).get(uid, [])), NOW, 60.0, seen or observe.Seen(), refusals)


def test_every_recording_is_looked_at() -> None:
    assert {path.stem for path in RECORDED.iterdir()} == {*ENDED, *WAITING, "running", "node-lost"}


@pytest.mark.parametrize("name", ENDED)
def test_an_end_is_read_with_its_reason(name: str) -> None:
    reason, code, words = ENDED[name]
    job = read(recorded(name))
    assert (job.status, job.reason) == (JobStatus.ENDED, reason)
    assert code is None or job.exit_code == code
    assert words in job.message
    assert 0 <= job.held_seconds < 60 or name == "job-being-deleted"  # its pod still runs


@pytest.mark.parametrize("name", WAITING)
def test_a_wait_is_read_with_its_reason(name: str) -> None:
    reason, words = WAITING[name]
    job = read(recorded(name))
    assert (job.status, job.waits, job.reason) == (JobStatus.PENDING, reason, None)
    assert words in job.message


def test_what_runs_is_running_and_holds_its_node() -> None:
    job = read(recorded("running"), observe.Seen(held_before=7.0))
    assert (job.status, job.node) == (JobStatus.RUNNING, "hiernas-node")
    assert job.held_seconds > 7.0 + 1_000_000  # since then: it has not ended


def test_a_silent_node_is_lost_once_its_pod_should_long_have_ended() -> None:
    found = recorded("node-lost")
    assert read(found, observe.Seen(terminating=1.0)).status is JobStatus.RUNNING
    lost = read(found, observe.Seen(terminating=2.0 + observe.SLACK_SECONDS + 1.0))
    assert (lost.status, lost.reason) == (JobStatus.ENDED, EndReason.NODE_LOST)
    assert "hiernas-node" in lost.message
    found["pods"][0]["status"]["conditions"] = []  # deleted by somebody, and nothing is known of its node: only patience tells
    assert read(found, observe.Seen(terminating=40.0)).status is JobStatus.RUNNING
    assert read(found, observe.Seen(terminating=63.0)).reason is EndReason.NODE_LOST


@pytest.mark.parametrize("name", ["evicted", "preempted"])
def test_a_disruption_is_told_by_the_pod_or_by_the_job_alone(name: str) -> None:
    """The worker's exit code 143 makes the Job fail by its pod failure policy, which says so even when the pod is gone."""
    found = recorded(name)
    message = "Container worker for pod hiernas/x failed with exit code 143 matching FailJob rule at index 0"
    found["job"]["status"]["conditions"] = [{"type": "Failed", "status": "True", "reason": "PodFailurePolicy", "message": message}]
    assert read(found).reason is EndReason.DISRUPTED
    found["pods"] = []
    job = read(found)
    assert (job.reason, job.message) == (EndReason.DISRUPTED, message)


def test_a_failed_job_whose_pod_is_gone_was_deleted_by_somebody() -> None:
    found = recorded("exit-1")
    found["pods"] = []
    job = read(found)
    assert (job.reason, job.exit_code) == (EndReason.GONE, None)
    assert "deleted" in job.message


@pytest.mark.parametrize(
    ("code", "deleted", "reason"), [(143, True, EndReason.GONE), (137, True, EndReason.GONE), (5, True, None), (143, False, None), (139, True, None)]
)
def test_a_pod_that_somebody_deleted_is_gone_and_no_fault_of_its_node(code: int, deleted: bool, reason: EndReason | None) -> None:
    found = copy.deepcopy(recorded("exit-1"))
    for pod in found["pods"]:
        pod["status"]["containerStatuses"][0]["state"]["terminated"] |= {"exitCode": code}
        if deleted:
            pod["metadata"]["deletionTimestamp"] = "2026-11-25T12:00:00Z"
    job = read(found)
    assert (job.status, job.reason, job.exit_code) == (JobStatus.ENDED, reason, code)


def test_last_words_become_the_log() -> None:
    found = recorded("exit-5")
    found["pods"][0]["status"]["containerStatuses"][0]["state"]["terminated"]["message"] = "first\n\nthe disk is full\n"
    job = read(found)
    assert job.log == ("first", "", "the disk is full")
    assert job.message == "the disk is full"


def test_a_worker_that_ended_is_not_kept_by_another_container() -> None:
    found = recorded("running")
    (worker,) = found["pods"][0]["status"]["containerStatuses"]
    side = copy.deepcopy(worker) | {"name": "a-sidecar"}
    worker["state"] = {"terminated": {"exitCode": 5, "startedAt": "2026-11-25T14:00:00Z", "finishedAt": "2026-11-25T14:00:09Z", "message": "no disk"}}
    found["pods"][0]["status"]["containerStatuses"] = [side, worker]
    job = read(found)
    assert (job.status, job.reason, job.exit_code, job.message) == (JobStatus.ENDED, None, 5, "no disk")
    worker["state"]["terminated"]["exitCode"] = 0
    assert (read(found).status, read(found).reason) == (JobStatus.ENDED, None)


def test_a_deadline_is_the_candidates_own_only_once_it_has_run() -> None:
    found = recorded("deadline")
    status = found["pods"][0]["status"]
    status["containerStatuses"] = [{"name": "worker", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]
    assert read(found).reason is EndReason.NOT_STARTED


REFUSED = [(reason, EndReason.NOT_STARTED) for reason in ("UnexpectedAdmissionError", "OutOfcpu", "TopologyAffinityError", "NodeAffinity")]


@pytest.mark.parametrize(("reason", "ended"), [("Evicted", EndReason.MACHINE), ("NodeShutdown", EndReason.DISRUPTED), *REFUSED])
def test_a_pod_that_its_node_refused_or_threw_out_holds_nothing_any_more(reason: str, ended: EndReason) -> None:
    found = recorded("exit-1")
    status = found["pods"][0]["status"]
    status |= {"reason": reason, "message": "told by the kubelet", "phase": "Failed"}
    if reason == "Evicted":
        status["containerStatuses"][0]["state"] = {"terminated": {"exitCode": 137, "startedAt": status["startTime"]}}
    else:
        status["containerStatuses"] = []
    job = read(found)
    assert job.reason is ended
    assert "told by the kubelet" in job.message
    assert job.held_seconds < 3600


def test_a_deadline_that_nobody_enforces_is_that_of_a_silent_node() -> None:
    """Where most nodes are silent a cluster evicts nothing, and a pod may tolerate silence for ever."""
    found = recorded("running")
    (pod,) = found["pods"]
    began = observe.seconds(pod["status"]["startTime"])
    assert began is not None
    pod["spec"] |= {"activeDeadlineSeconds": 3600, "terminationGracePeriodSeconds": 30, "nodeName": "n-1"}

    def at(seconds: float) -> Job:
        return observe.job(found["job"], pod, began + seconds, 300.0, observe.Seen())

    assert at(3600.0 + 30.0 + 300.0).status is JobStatus.RUNNING
    ended = at(3600.0 + 30.0 + 300.0 + 10.0)
    assert (ended.status, ended.reason, ended.node) == (JobStatus.ENDED, EndReason.NODE_LOST, "n-1")
    assert "node n-1 is silent" in ended.message
    del pod["spec"]["activeDeadlineSeconds"]
    assert at(1e6).status is JobStatus.RUNNING


def test_a_worker_that_its_queue_took_back_is_no_failure_though_another_container_still_runs() -> None:
    found = recorded("running")
    status = found["pods"][0]["status"]
    (worker,) = status["containerStatuses"]
    side = copy.deepcopy(worker) | {"name": "a-sidecar"}
    status["containerStatuses"] = [worker | {"state": {"terminated": {"exitCode": 143}}}, side]
    found["pods"][0]["metadata"]["deletionTimestamp"] = "2026-11-25T12:00:00Z"
    assert read(found).reason is EndReason.GONE
    found["job"]["spec"]["suspend"] = True
    assert read(found).status is JobStatus.RUNNING  # until its pod is gone
    found["pods"] = []
    assert read(found).waits is Waiting.SUSPENDED


def _places(found: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    return [path, *(place for key, value in below for place in _places(value, (*path, key)))]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_missing_or_odd_field_stops_a_search(data: st.DataObject) -> None:
    """Whatever is left out or has another form below a Job's or pod's status and spec, the answer is a job of that name."""
    name = data.draw(st.sampled_from([*ENDED, *WAITING, "running", "node-lost"]))
    found = copy.deepcopy(recorded(name))
    places = [place for place in _places(found) if len(place) > 1 and not {"metadata"} & set(place)]
    place = data.draw(st.sampled_from(places))
    parent = found
    for key in place[:-1]:
        parent = parent[key]
    odd = data.draw(st.sampled_from([None, "x", 3, [], {}, [None], ["x"], {"x": 1}]))
    if isinstance(parent, dict) and data.draw(st.booleans()):
        del parent[place[-1]]
    else:
        parent[place[-1]] = odd
    if isinstance(found["job"], dict) and all(isinstance(pod, dict) and "metadata" in pod for pod in found["pods"]):
        uid = found["job"]["metadata"]["uid"]
        assert (
            observe.job(found["job"], observe.newest(observe.by_job(found["pods"]).get(uid, [])), NOW, 60.0, observe.Seen()).name
            == found["job"]["metadata"]["name"]
        )
