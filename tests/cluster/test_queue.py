"""A queue (a stand-in for Kueue) lets workers run one after the other, and takes a place back: it costs the candidates nothing."""

import json
import threading

import pytest
from conftest import NAMESPACE, Site, until
from queue_stand_in import Queue

RUN = "queued"
WORKERS = f"hiernas/run={RUN},app.kubernetes.io/component=worker"


@pytest.mark.own_cluster("a stand-in takes the place of Kueue, for the whole cluster")
def test_a_queue_admits_preempts_and_is_explained(site: Site) -> None:
    assert site.own is not None
    queue = Queue(site.own.cluster, NAMESPACE, quota=1)
    most: list[int] = [0]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            pods = json.loads(site.cluster.kubectl("-n", NAMESPACE, "get", "pods", "-l", WORKERS, "-o", "json"))["items"]
            most[0] = max(most[0], sum(pod["status"]["phase"] == "Running" and not pod["metadata"].get("deletionTimestamp") for pod in pods))

    watcher = threading.Thread(target=watch)
    try:
        site.submit(
            RUN,
            recipe={"extends": "digits-small", "steps": 60, "milestones": [40], "curve_points": 2},
            limits={"max_evaluations": 4, "workers": 2},
            cluster={"queue": "search"},
        )
        watcher.start()
        until("what waits for quota is told", lambda: any("insufficient unused quota" in line and "(suspended)" in line for line in site.why(RUN)), 60)
        queue.preempt()
        until("a preempted job", lambda: queue.preempted, 60)
        until("what was preempted is told", lambda: any("Preempted" in line for line in site.why(RUN)), 60)
        state = site.finished(RUN)
        assert not state.totals.ends  # the same Job waited again and ran again
        assert most[0] == 1
        controller = site.objects("jobs", f"hiernas/run={RUN},app.kubernetes.io/component=controller")[0]
        assert "kueue.x-k8s.io/queue-name" not in controller["metadata"]["labels"]
        assert controller["spec"].get("suspend") is not True
        held = {outcome.candidate: outcome.held_seconds for outcome in state.history}
        assert held[int(queue.preempted[0].rpartition("-a")[0].rpartition("-c")[2])] > 0
    finally:
        over.set()
        if watcher.ident is not None:
            watcher.join()
        queue.close()
    site.cluster.kubectl("-n", NAMESPACE, "delete", "lease", RUN)
