"""One search on a real cluster to which everything happens, one after the other; at its end nothing is lost or counted twice.

On a cluster that is not made by these tests, only what a person with rights in the namespace can do happens to it.
"""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import NAMESPACE, Own, Site, left_out, until

from images import ctr
from search.records import Claim, EndReason, Release, ReleaseReason
from search.state import State

RUN = "storm"
WORKERS = f"hiernas/run={RUN},app.kubernetes.io/component=worker"
CONTROLLERS = f"hiernas/run={RUN},app.kubernetes.io/component=controller"
Object = dict[str, Any]


class Storm:
    """The search, and what can be done to it."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.memory_gib = 3.0
        self.note = "first"

    def submit(self) -> str:
        return self.site.submit(
            RUN,
            recipe={"extends": "digits-small", "steps": 100, "milestones": [60], "curve_points": 2},
            limits={"max_evaluations": 200, "workers": 2, "max_attempts": 6},
            executor={"kind": "kubernetes", "threads": 1, "memory_gib": self.memory_gib},
            cluster={
                "worker_pod": {"spec": {"terminationGracePeriodSeconds": 2, "containers": [{"name": "worker", "resources": {"requests": {"cpu": "100m"}}}]}},
                "controller_pod": {"metadata": {"annotations": {"note": self.note}}, "spec": {"terminationGracePeriodSeconds": 5}},
            },
        )

    def state(self) -> State:
        return self.site.state(RUN)

    def ends(self, *reasons: EndReason) -> int:
        ends = self.state().totals.ends
        return sum(ends.get(reason, 0) for reason in reasons)

    def claims(self) -> list[Claim]:
        return [one for one in self.state().controllers if isinstance(one, Claim)]

    def released(self) -> int:
        """How often a controller has left in good order while its workers went on."""
        return sum(isinstance(one, Release) and one.reason is ReleaseReason.INTERRUPTED for one in self.state().controllers)

    def hiernas(self, *arguments: str) -> None:
        self.site.hiernas(*arguments, "--store", self.site.store_url(RUN))

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        return self.site.cluster.kubectl("-n", NAMESPACE, *arguments, stdin=stdin)

    def pods(self, selector: str) -> list[Object]:
        """Pods whose container runs and that nobody has deleted."""
        return [
            pod
            for pod in self.site.objects("pods", selector)
            if not pod["metadata"].get("deletionTimestamp") and any("running" in one["state"] for one in pod["status"].get("containerStatuses", []))
        ]

    def pod(self, selector: str) -> str:
        found: list[Object] = until(f"a running pod of {selector}", lambda: self.pods(selector), 120)
        return str(found[0]["metadata"]["name"])

    def provoke(self, act: Callable[[], object], *reasons: EndReason) -> None:
        """Do it, again if the candidate was quicker, until an attempt ended for one of these reasons."""
        before = self.ends(*reasons)
        for _ in range(5):
            act()
            try:
                until(f"an attempt that ended {reasons}", lambda: self.ends(*reasons) > before, 20)
            except AssertionError:
                continue
            return
        raise AssertionError(f"no attempt ended {reasons}: {self.state().totals.ends}")

    def goes_on(self) -> None:
        """There are more outcomes than there were."""
        before = len(self.state().history)
        until("more outcomes", lambda: len(self.state().history) > before, 120)

    def replaced(self, leave: Callable[[], object]) -> None:
        """The controller leaves in some way, and another one claims the run and goes on."""
        claims = len(self.claims())
        leave()
        until("a new claim", lambda: len(self.claims()) > claims, 120)
        self.goes_on()

    def lose_the_node(self, own: Own) -> None:
        """The node falls silent with workers on it, and comes back."""
        lost = self.ends(EndReason.NODE_LOST)
        self.signal(WORKERS, signal.SIGSTOP)  # with their node: else they would write their evaluations all the same
        own.cluster.kill("kubelet")

        def attempted_again() -> bool:
            """An attempt was lost with its node, and its candidate has a later one, though that node is still silent."""
            return any(
                end.reason is EndReason.NODE_LOST and len(story.attempts) > number + 1 for story in self.state().stories for number, end in story.ends.items()
            )

        until("the candidate is tried again without its node", attempted_again, 150)
        assert self.ends(EndReason.NODE_LOST) > lost
        own.cluster.start("kubelet")
        self.goes_on()

    def _sent(self, pod: str, number: signal.Signals) -> bool:
        assert self.site.own is not None
        node = ctr(self.site.own.cluster).split()
        label = f'labels."io.kubernetes.pod.name"=={pod}'
        ids = subprocess.run([*node, "containers", "ls", "--quiet", label], check=True, capture_output=True, text=True).stdout.split()
        tasks = subprocess.run([*node, "tasks", "ls"], check=True, capture_output=True, text=True).stdout.splitlines()[1:]
        pids = [int(pid) for task, pid, _ in (line.split() for line in tasks) if task in ids]
        try:
            for pid in pids:
                if b"hiernas" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, number)
                    return True
        except (FileNotFoundError, ProcessLookupError):
            pass
        return False

    def signal(self, selector: str, number: signal.Signals) -> None:
        """Send a signal to the processes in these pods, one at least, as their node's kernel does: from outside of the container."""

        def sent() -> bool:
            """Whether there was one: a worker may have ended since its pod was listed."""
            return sum(self._sent(str(pod["metadata"]["name"]), number) for pod in self.pods(selector)) > 0

        until(f"a process in a pod of {selector}", sent, 60)

    def evict(self) -> None:
        name = self.pod(WORKERS)
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": NAMESPACE}}
        self.kubectl("create", "--raw", f"/api/v1/namespaces/{NAMESPACE}/pods/{name}/eviction", "-f", "-", stdin=json.dumps(body))

    def delete_job(self) -> None:
        name = self.pod(WORKERS)
        self.kubectl("delete", "job", name.rpartition("-")[0])


@pytest.fixture
def storm(site: Site) -> Iterator[Storm]:
    """However it ends, nothing of it is in the way of the next test."""
    yield Storm(site)
    site.cluster.kubectl("-n", NAMESPACE, "delete", "lease", RUN, "--ignore-not-found")


def test_everything_happens_to_one_search(site: Site, storm: Storm) -> None:
    storm.submit()
    storm.goes_on()

    # A person or a program deletes what is ours.
    storm.provoke(lambda: storm.kubectl("delete", "pod", storm.pod(WORKERS), "--wait=false"), EndReason.KILLED, EndReason.GONE)
    storm.provoke(storm.delete_job, EndReason.GONE)
    storm.provoke(storm.evict, EndReason.DISRUPTED)

    # The controller dies, and is replaced: killed; as by a failed liveness probe, and by a drained node, where it leaves in good order.
    if site.own:
        storm.replaced(lambda: storm.signal(CONTROLLERS, signal.SIGKILL))
        storm.replaced(lambda: storm.signal(CONTROLLERS, signal.SIGTERM))
        assert storm.released() == 1
    else:
        left_out("storm: the controller's process is killed on its node")
    released = storm.released()
    storm.replaced(lambda: storm.kubectl("delete", "pod", storm.pod(CONTROLLERS), "--wait=false"))
    assert storm.released() == released + 1
    claims, workers = len(storm.claims()), {pod["metadata"]["name"] for pod in storm.pods(WORKERS)}
    storm.note = "second"
    assert "replaced" in storm.submit()
    assert workers & {pod["metadata"]["name"] for pod in site.objects("pods", WORKERS)} == workers  # running workers are left alone
    until("the claim of the new controller", lambda: len(storm.claims()) > claims, 120)
    assert len({claim.owner for claim in storm.claims()}) == 1
    assert "runs as it is" in storm.submit()
    storm.goes_on()

    # The API server and the store go away for a while.
    if site.own:
        site.own.cluster.kill("kube-apiserver")
        site.own.cluster.start("kube-apiserver")
        storm.goes_on()
    else:
        left_out("storm: the API server goes away for a while")
    site.restart_store()
    storm.goes_on()

    # People.
    storm.hiernas("set", RUN, "workers=1")
    until("one attempt at most", lambda: storm.state().open_attempts <= 1, 60)
    storm.hiernas("set", RUN, "workers=3")
    until("three attempts", lambda: storm.state().open_attempts == 3, 60)
    storm.hiernas("pause", RUN)
    until("nothing runs", lambda: storm.state().open_attempts == 0, 90)
    assert storm.site.status(RUN)["state"] == "paused"
    storm.hiernas("resume", RUN)
    storm.hiernas("set", RUN, "workers=2")
    storm.goes_on()

    # A worker that needs more memory than it may have.
    storm.memory_gib = 0.25
    storm.submit()
    until("an attempt over its memory", lambda: storm.ends(EndReason.MEMORY) > 0, 120)
    storm.memory_gib = 3.0
    storm.submit()
    storm.goes_on()

    if site.own:
        storm.lose_the_node(site.own)
    else:
        left_out("storm: a node falls silent and comes back")

    # The end.
    storm.hiernas("set", RUN, f"max_evaluations={len(storm.state().stories)}")
    state = site.finished(RUN, 300)
    candidates = [outcome.candidate for outcome in state.history]
    assert sorted(candidates) == list(range(len(state.stories)))
    assert {EndReason.GONE, EndReason.DISRUPTED, EndReason.MEMORY, *([EndReason.NODE_LOST] if site.own else [])} <= set(state.totals.ends)
    assert all(end.message for story in state.stories for end in story.ends.values()), [story.ends for story in state.stories if story.ends]
