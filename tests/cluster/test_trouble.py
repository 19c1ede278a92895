"""A cluster on which attempts fail, a controller that hangs, keys that change: what it costs, and what is told."""

import json
import signal
import time
from typing import Any

import pytest
from conftest import NAMESPACE, Site, until
from s3_server import Exchange, Proxy
from test_storm import Storm

from pipeline import observe
from search.records import Claim, EndReason, OutcomeKind

LIMITS = {"max_evaluations": 3, "workers": 1}
NOWHERE = {
    "worker_pod": {
        "spec": {
            "containers": [{"name": "worker", "env": [{"name": "AWS_ENDPOINT_URL", "value": "http://127.0.0.1:9"}], "resources": {"requests": {"cpu": "100m"}}}]
        }
    }
}
"""Workers that do not reach the store: exit code 5, after some seconds."""


def claims(site: Site, run: str) -> int:
    return sum(isinstance(one, Claim) for one in site.state(run).controllers)


def line(site: Site, run: str, *words: str, seconds: float = 60.0) -> str:
    found: str = until(f"a line of --why with {words}", lambda: next((one for one in site.why(run) if all(word in one for word in words)), None), seconds)
    return found


def test_a_run_whose_every_attempt_fails_halts_and_goes_on_once_mended(site: Site) -> None:
    run = "halts"
    site.submit(run, cluster=NOWHERE, limits=LIMITS | {"workers": 2, "max_failures": 3})
    until("the halt", lambda: site.status(run)["state"] == "halted", 180)
    assert "hiernas resume halts" in line(site, run, "attempts in a row came to nothing", "machine")
    state = site.state(run)
    assert state.history == []
    assert {end.reason for story in state.stories for end in story.ends.values()} <= {EndReason.MACHINE, EndReason.STOPPED}
    assert site.status(run)["failures_in_a_row"] >= 3
    if site.own:  # one node has them all
        (node,) = site.status(run)["suspect_nodes"]
        line(site, run, f"node {node} is avoided while the run works elsewhere", f"kubectl cordon {node}")
    until("the end of its jobs", lambda: not site.objects("jobs", f"hiernas/run={run},app.kubernetes.io/component=worker"), 60)
    site.hiernas("resume", run, "--store", site.store_url(run))
    site.submit(run, limits=LIMITS)
    state = site.finished(run)
    assert {outcome.outcome for outcome in state.history} == {OutcomeKind.EVALUATED}
    assert all(outcome.node for outcome in state.history)


def test_a_controller_that_stopped_for_an_error_looks_again_once_it_is_submitted_again(site: Site) -> None:
    run, secret = "mended", "profiled"
    keys = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": secret, "namespace": NAMESPACE}}
    settings = {"cluster": {"store_secret": secret}, "limits": LIMITS}
    try:
        site.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(keys | {"stringData": site.keys | {"AWS_PROFILE": "absent"}}))
        site.submit(run, **settings)
        line(site, run, "the controller reports", "profile (absent) could not be found", "when the run is submitted again")
        until("a pod that is not ready", lambda: observe.idle(site.objects("pods", f"hiernas/run={run}")[0], time.time()), 90)
        site.cluster.kubectl("replace", "-f", "-", stdin=json.dumps(keys | {"stringData": site.keys}))
        assert "its controller is started again" in site.submit(run, **settings)
        until("its start", lambda: claims(site, run) == 1, 60)
        assert "its controller runs as it is" in site.submit(run, **settings)
        site.finished(run)
    finally:
        site.cluster.kubectl("-n", NAMESPACE, "delete", "secret", secret)


@pytest.mark.own_cluster("a process is stopped on its node")
def test_a_controller_that_hangs_is_restarted_by_its_liveness_probe(site: Site) -> None:
    run = "hangs"
    selector = f"hiernas/run={run},app.kubernetes.io/component=controller"
    probe = {"periodSeconds": 1, "failureThreshold": 3, "timeoutSeconds": 1}
    probes = {"livenessProbe": probe, "startupProbe": probe | {"failureThreshold": 60}}  # liveness is looked at only once it has started
    pod = {"spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "controller"} | probes]}}
    site.submit(run, cluster={"controller_pod": pod}, limits={"max_evaluations": 4, "workers": 1})
    until("an outcome", lambda: site.status(run)["evaluated"] > 0)
    storm = Storm(site)
    name = storm.pod(selector)
    site.cluster.kubectl("-n", NAMESPACE, "wait", f"pod/{name}", "--for=condition=Ready", "--timeout=60s")
    storm.signal(selector, signal.SIGSTOP)
    until("another claim", lambda: claims(site, run) == 2, 120)
    state = site.finished(run)
    assert {claim.owner for claim in state.controllers if isinstance(claim, Claim)} == {state.controllers[0].owner}  # type: ignore[union-attr]
    restarted: list[dict[str, Any]] = [one for one in site.objects("pods", selector) if one["metadata"]["name"] == name]
    assert [status["restartCount"] for one in restarted for status in one["status"]["containerStatuses"]] == [1]  # the same pod


@pytest.mark.own_cluster("the store's keys are changed")
def test_keys_that_are_renewed_reach_the_controller_and_a_worker_that_runs(site: Site) -> None:
    assert site.own is not None
    run, valid = "renewed", ["FIRST"]

    def check(exchange: Exchange) -> None:
        if not any(f"Credential={key}/" in exchange.headers.get("Authorization", "") for key in valid):
            exchange.reach, exchange.answer, exchange.code = False, 403, "InvalidAccessKeyId"

    def secret(key: str) -> str:
        values = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": "-"}
        return json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys", "namespace": NAMESPACE}, "stringData": values})

    proxy = Proxy(site.own.server, check, site.own.cluster.address)
    try:
        site.cluster.kubectl("apply", "-f", "-", stdin=secret("FIRST"))
        site.submit(
            run,
            cluster={"store_secret": "keys", "environment": {"AWS_ENDPOINT_URL": proxy.url}},
            recipe={"extends": "digits-small", "steps": 600, "milestones": [6], "curve_points": 2},
            limits={"max_evaluations": 1, "workers": 1},
        )
        until("a worker that has begun", lambda: site.store(run).list(f"{run}/logs/"), 120)
        time.sleep(10)  # and has its data
        site.cluster.kubectl("apply", "-f", "-", stdin=secret("SECOND"))
        valid[:] = ["SECOND"]  # at once: harsher than anybody should be
        state = site.finished(run)
    finally:
        proxy.close()
        site.cluster.kubectl("-n", NAMESPACE, "delete", "secret", "keys", "--ignore-not-found")
    assert [len(story.attempts) for story in state.stories] == [1]  # nothing was done twice
    assert claims(site, run) == 1


def test_a_run_whose_lease_is_deleted_leaves_the_cluster_and_loses_nothing(site: Site) -> None:
    run = "leaves"
    longer = {"recipe": {"extends": "digits-small", "steps": 60, "milestones": [40], "curve_points": 2}, "limits": {"max_evaluations": 6, "workers": 2}}
    site.submit(run, **longer)
    workers = f"hiernas/run={run},app.kubernetes.io/component=worker"
    until("an outcome, and two workers that run", lambda: site.status(run)["evaluated"] > 0 and len(Storm(site).pods(workers)) == 2, 180)
    store = site.store(run)
    kept = {key: store.read(key) for key in store.list(f"{run}/")}
    site.cluster.kubectl("-n", NAMESPACE, "delete", "lease", run)
    until("the end of all of it", lambda: not site.objects("jobs,pods,configmaps,leases", f"hiernas/run={run}"), 120)
    before = {key: store.read(key) for key in store.list(f"{run}/")}
    assert kept.items() <= before.items()
    new = {key.split("/")[1] for key in before.keys() - kept.keys()}
    assert new <= {"evaluations", "history", "candidates", "attempts", "controllers", "logs"}  # no end: what was removed with the run was not deleted by hand
    assert len(site.state(run).totals.ends) == 0
    site.submit(run, **longer)
    state = site.finished(run)
    assert len(state.history) == 6
