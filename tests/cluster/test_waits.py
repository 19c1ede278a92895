"""What keeps a search from running is told by `status --why`, within a minute and with what to do."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import NAMESPACE, Site, until

from search.records import EndReason

ONE: dict[str, Any] = {"limits": {"max_evaluations": 1, "workers": 1}}
TOLD_SECONDS = 60.0


def told(site: Site, run: str, *words: str) -> str:
    """The line that has all these words, which must come within a minute."""
    lines: list[str] = []

    def found() -> str | None:
        lines[:] = site.why(run)
        return next((line for line in lines if all(word in line for word in words)), None)

    try:
        line: str = until(f"a line with {words}", found, TOLD_SECONDS)
    except AssertionError as error:
        raise AssertionError(f"{error}; the lines are {lines}") from error
    return line


def worker(**container: Any) -> dict[str, Any]:
    """A section `cluster` whose worker differs so."""
    return {"worker_pod": {"spec": {"terminationGracePeriodSeconds": 2, "containers": [{"name": "worker"} | container]}}}


def remove(site: Site, run: str) -> None:
    site.cluster.kubectl("-n", NAMESPACE, "delete", "lease", run)


def test_an_image_that_cannot_be_pulled(site: Site) -> None:
    site.submit("no-image", cluster={"worker_image": "localhost/absent:1"}, **ONE)
    assert "cluster.worker_image" in told(site, "no-image", "(image)", "localhost/absent:1")
    site.submit("no-image", **ONE)  # as it was advised: with the image corrected
    state = site.finished("no-image")
    assert [end.reason for end in state.stories[0].ends.values()] == [EndReason.STOPPED]  # free
    remove(site, "no-image")


@pytest.mark.own_cluster("its nodes may have GPUs")
def test_gpus_that_no_node_has(site: Site) -> None:
    site.submit("no-gpu", executor={"gpus": 1}, **ONE)
    assert "executor.gpus" in told(site, "no-gpu", "(unschedulable)", "Insufficient nvidia.com/gpu")
    remove(site, "no-gpu")


def test_a_pod_that_cannot_start(site: Site) -> None:
    site.submit("no-secret", cluster=worker(resources={"requests": {"cpu": "100m"}}) | {"worker_store_secret": "absent"}, **ONE)
    assert "cluster.store_secret" in told(site, "no-secret", "(pod)", "absent")
    remove(site, "no-secret")


def test_volumes_that_the_node_cannot_have(site: Site) -> None:
    """Their pods say of themselves only that they are being made."""

    def lacking(container: str) -> dict[str, Any]:
        mount = {"name": "more", "mountPath": "/more"}  # what no container mounts is not looked for
        volume = {"name": "more", "secret": {"secretName": "absent"}}
        return {f"{container}_pod": {"spec": {"volumes": [volume], "containers": [{"name": container, "volumeMounts": [mount]}]}}}

    site.submit("no-volume", cluster=lacking("controller"), **ONE)
    assert "cluster.controller_pod" in told(site, "no-volume", "the controller waits (pod)", 'volume "more"', 'secret "absent" not found')
    site.submit("no-volume", cluster=lacking("worker"), **ONE)  # the controller's is mended, the worker's lacks it now
    assert "cluster.worker_pod" in told(site, "no-volume", "1 job waits (pod)", 'volume "more"', 'secret "absent" not found')
    remove(site, "no-volume")


@pytest.fixture
def no_quota(site: Site) -> Iterator[None]:
    """However the test ends, no quota stays for the next one."""
    yield
    site.cluster.kubectl("-n", NAMESPACE, "delete", "resourcequota", "small", "--ignore-not-found")


def test_a_quota_of_pods_and_one_of_jobs(site: Site, no_quota: None) -> None:
    # Controllers of earlier tests stay for a scrape after the end of their runs; they would take the one place that there is.
    ended = ("Succeeded", "Failed")
    until("the end of earlier pods", lambda: all(pod["status"]["phase"] in ended for pod in site.objects("pods", "hiernas/run")), 120)
    quota: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small", "namespace": NAMESPACE},
        "spec": {"hard": {"pods": str(len(site.objects("pods", "app.kubernetes.io/name=hiernas-store")) + 1)}},  # room for a controller, and no more
    }
    site.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(quota))
    site.submit("no-quota", **ONE)
    assert "workers=N" in told(site, "no-quota", "(quota)", "exceeded quota")
    remove(site, "no-quota")
    until("its objects are gone", lambda: not site.objects("jobs,pods", "hiernas/run=no-quota"), 60)
    quota["spec"] = {"hard": {"count/jobs.batch": str(len(site.objects("jobs")) + 1)}}  # room for a controller, and no more
    site.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(quota))
    site.submit("no-jobs", **ONE)
    assert "ResourceQuota" in told(site, "no-jobs", "(Refused)", "exceeded quota")
    site.cluster.kubectl("-n", NAMESPACE, "delete", "resourcequota", "small")
    site.finished("no-jobs")  # it had only waited
    remove(site, "no-jobs")


def test_a_suspended_job(site: Site) -> None:
    site.submit("suspended", recipe={"extends": "digits-small", "steps": 60, "milestones": [40], "curve_points": 2}, **ONE)
    until("its worker", lambda: site.objects("jobs", "hiernas/run=suspended,app.kubernetes.io/component=worker"), 60)
    site.cluster.kubectl("-n", NAMESPACE, "patch", "job", "suspended-c000000-a0", "-p", '{"spec":{"suspend":true}}')
    assert "kubectl patch job suspended-c000000-a0" in told(site, "suspended", "(suspended)")
    site.cluster.kubectl("-n", NAMESPACE, "patch", "job", "suspended-c000000-a0", "-p", '{"spec":{"suspend":false}}')
    state = site.finished("suspended")
    assert not state.stories[0].ends  # to be suspended costs a candidate nothing
    remove(site, "suspended")


@pytest.fixture
def role(site: Site) -> Iterator[dict[str, Any]]:
    """The controller's Role, put back at the end."""
    before = site.cluster.kubectl("-n", NAMESPACE, "get", "role", "hiernas-controller", "-o", "json")
    yield json.loads(before)
    rules = json.dumps({"rules": json.loads(before)["rules"]})
    site.cluster.kubectl("-n", NAMESPACE, "patch", "role", "hiernas-controller", "--type=merge", "-p", rules)


@pytest.mark.parametrize(("resource", "verb"), [("jobs", "create"), ("jobs", "list"), ("pods", "list"), ("leases", "get")])
def test_a_right_that_the_controller_lacks(site: Site, role: dict[str, Any], resource: str, verb: str) -> None:
    run = f"no-{verb}-{resource}"
    rules = [rule | {"verbs": [one for one in rule["verbs"] if rule["resources"] != [resource] or one != verb]} for rule in role["rules"]]
    left = json.dumps({"rules": [rule for rule in rules if rule["verbs"]]})
    site.cluster.kubectl("-n", NAMESPACE, "patch", "role", "hiernas-controller", "--type=merge", "-p", left)
    time.sleep(1)  # the API server's authorizer follows
    site.submit(run, **ONE)
    assert "k8s/base" in told(site, run, f"cannot {verb} resource", f'"{resource}"')
    remove(site, run)


def test_a_controller_that_cannot_start(site: Site) -> None:
    site.submit("no-controller", cluster={"controller_image": "localhost/absent:1"}, **ONE)
    assert "cluster.controller_image" in told(site, "no-controller", "the controller waits (image)", "localhost/absent:1")
    remove(site, "no-controller")


def test_a_controller_that_was_replaced_by_one_that_cannot_start(site: Site) -> None:
    run = "no-successor"
    site.submit(run, limits={"max_evaluations": 50, "workers": 1})
    until("a controller at work", lambda: site.status(run)["proposed"])
    site.submit(run, cluster={"controller_image": "localhost/absent:1"}, limits={"max_evaluations": 50, "workers": 1})
    told(site, run, "the controller waits (image)", "localhost/absent:1")
    remove(site, run)
