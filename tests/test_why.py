"""`hiernas status --why` over answers of an API server; on a real one: tests/cluster/test_waits.py."""

from datetime import UTC, datetime
from typing import Any

import pytest
from small_run import NAME, controller

from pipeline import labels
from pipeline.api import Api, ApiRefusal
from pipeline.store import MemoryStore
from pipeline.why import why
from search.state import State

NOW = 1_900_000_000.0
Object = dict[str, Any]


def at(seconds_ago: float) -> str:
    return datetime.fromtimestamp(NOW - seconds_ago, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Answers(Api):
    """A cluster with a controller's Job and a worker's, a pod each."""

    def __init__(self) -> None:
        self.events: list[Object] = []
        self.workloads: list[Object] | None = None
        self.worker_job: Object = {"metadata": {"name": f"{NAME}-c000000-a0", "uid": "job"}, "spec": {}, "status": {}}
        self.worker = self._pod("worker", {"waiting": {"reason": "ContainerCreating"}})
        self.controller = self._pod("controller", {"running": {"startedAt": at(400)}})

    @staticmethod
    def _pod(name: str, state: Object) -> Object:
        status = {"phase": "Pending" if "waiting" in state else "Running", "startTime": at(600), "containerStatuses": [{"name": name, "state": state}]}
        owner = {"kind": "Job", "uid": "job"}
        return {"metadata": {"name": name, "uid": name, "creationTimestamp": at(600), "ownerReferences": [owner]}, "spec": {"nodeName": "n"}, "status": status}

    def get(self, path: str) -> Object:
        """See Api."""
        assert path.endswith(f"/jobs/{NAME}-controller")
        return {"metadata": {"name": f"{NAME}-controller", "uid": "controller-job"}, "spec": {}, "status": {}}

    def list(self, path: str, labelSelector: str = "", fieldSelector: str = "") -> list[Object]:
        """See Api."""
        if "kueue" in path:
            if self.workloads is None:
                raise ApiRefusal(404, "NotFound", "no such kind")
            return self.workloads
        if path.endswith("/events"):
            kind = dict(pair.split("=") for pair in fieldSelector.split(","))["involvedObject.kind"]
            return [one for one in self.events if one["involvedObject"]["kind"] == kind]
        if labels.CONTROLLER in labelSelector:
            return [self.controller]
        return [self.worker_job] if path.endswith("/jobs") else [self.worker]


def event(kind: str, uid: str, reason: str, message: str, seconds_ago: float) -> Object:
    return {"involvedObject": {"kind": kind, "uid": uid}, "reason": reason, "message": message, "type": "Warning", "lastTimestamp": at(seconds_ago)}


@pytest.fixture
def state() -> State:
    one = controller(MemoryStore())
    assert one.claim()
    return one.state


def test_a_pod_that_its_node_cannot_set_up_is_told_by_the_nodes_words_until_it_can(state: State) -> None:
    answers = Answers()
    (line,) = why(state, "ours", answers, NOW)
    assert "(starting)" in line
    answers.events = [
        event("Pod", "worker", "FailedMount", 'secret "old" not found', 60),
        event("Pod", "worker", "FailedMount", 'secret "absent" not found', 5),
        event("Pod", "worker", "BackOff", "something else", 1),
        event("Pod", "another", "FailedMount", "of another pod", 1),
    ]
    (line,) = why(state, "ours", answers, NOW)
    assert "1 job waits (pod)" in line
    assert 'secret "absent" not found — correct cluster.worker_pod' in line
    answers.worker["status"]["conditions"] = [{"type": "PodReadyToStartContainers", "status": "True"}]  # now its image is pulled
    (line,) = why(state, "ours", answers, NOW)
    assert "(starting)" in line


@pytest.mark.parametrize(
    ("reason", "seconds_ago", "told"),
    [
        ("Unavailable", 90, True),
        ("Unavailable", 301, False),  # it would have said so again
        ("Refused", 301, False),
        ("DamagedRun", 301, True),
        ("DamagedRun", 500, False),  # before its container was started again
        ("DamagedRun", 700, False),  # of the pod before
    ],
)
def test_what_a_controller_reported_is_told_as_long_as_it_holds(state: State, reason: str, seconds_ago: float, told: bool) -> None:
    answers = Answers()
    answers.events = [event("Lease", "lease", reason, "some words", seconds_ago)]
    found = [line for line in why(state, "ours", answers, NOW) if "reports" in line]
    assert found == ([f"the controller reports ({reason}), {seconds_ago / 60:.0f} min ago: some words"] if told else [])


def test_a_job_that_its_queue_has_given_up_is_not_told_to_wait_for_quota(state: State) -> None:
    answers = Answers()
    answers.worker_job["spec"]["suspend"] = True
    condition = {"type": "Deactivated", "status": "True", "reason": "DeactivatedDueToRequeuingLimitExceeded", "message": "too often"}
    waits = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": "insufficient unused quota"}
    answers.workloads = [{"metadata": {"labels": {labels.QUEUED_JOB: "job"}}, "status": {"conditions": [waits]}}]
    (line,) = why(state, "ours", answers, NOW)
    assert "insufficient unused quota" in line
    assert "lets it run when there is quota" in line
    answers.workloads[0]["status"]["conditions"].append(condition)
    answers.workloads[0]["spec"] = {"active": False}
    (line,) = why(state, "ours", answers, NOW)
    assert "1 job never runs again" in line
    assert "DeactivatedDueToRequeuingLimitExceeded: too often" in line
    assert "active: true" in line
    answers.workloads[0]["spec"]["active"] = True  # as it was advised; the condition stays until there is quota
    (line,) = why(state, "ours", answers, NOW)
    assert "insufficient unused quota" in line
    assert "lets it run when there is quota" in line
