"""`hiernas doctor` on a real cluster: it passes where all is there, and names whatever is taken away. `--smoke` once."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from conftest import NAMESPACE, Site, until

from pipeline.api import Api
from pipeline.config import load_config
from pipeline.doctor import premises, rights
from pipeline.doctor.checks import Check, Verdict
from pipeline.doctor.site import Site as Premises

RUN = "doctored"


def examined(site: Site, **changes: Any) -> list[Check]:
    """The cluster's part of doctor."""
    config = load_config(site.config(RUN, **changes))
    assert config.cluster is not None
    return list(premises.examine(Premises(Api(), config, config.cluster, site.store_url(RUN), None)))


def failures(found: list[Check]) -> dict[str, str]:
    return {one.name: one.found for one in found if one.verdict is Verdict.FAILED}


@contextmanager
def changed(site: Site, kind: str, name: str, change: Callable[[dict[str, Any]], object]) -> Iterator[None]:
    """An object of the namespace with something changed, and as it was afterwards."""
    before = json.loads(site.cluster.kubectl("-n", NAMESPACE, "get", kind, name, "-o", "json"))
    before["metadata"] = {key: before["metadata"][key] for key in ("name", "namespace", "labels") if key in before["metadata"]}
    after = json.loads(json.dumps(before))
    change(after)
    site.cluster.kubectl("replace", "-f", "-", stdin=json.dumps(after))
    try:
        yield
    finally:
        site.cluster.kubectl("replace", "-f", "-", stdin=json.dumps(before))


@contextmanager
def made(site: Site, body: dict[str, Any]) -> Iterator[None]:
    site.cluster.kubectl("-n", NAMESPACE, "create", "-f", "-", stdin=json.dumps(body))
    try:
        yield
    finally:
        site.cluster.kubectl("-n", NAMESPACE, "delete", body["kind"], body["metadata"]["name"])


def test_all_is_well_on_the_site(site: Site) -> None:
    found = json.loads(site.hiernas("doctor", str(site.config(RUN)), "--store", site.store_url(RUN), "--json").stdout)
    # On another's cluster there may be something to warn of; here also that pods and this machine have different names for the store.
    allowed = [] if site.own else [check["name"] for check in found["checks"] if check["verdict"] == "warning"]
    assert [check for check in found["checks"] if check["verdict"] != "ok" and check["name"] not in allowed] == []


@pytest.mark.parametrize("right", [*rights.CONTROLLER, *rights.CONTROLLER_HELPFUL], ids=str)
def test_each_right_that_is_taken_away_is_named_and_no_other(site: Site, right: rights.Right) -> None:
    def without(role: dict[str, Any]) -> None:
        for rule in role["rules"]:
            if right.group in rule["apiGroups"] and right.resource in rule["resources"]:
                rule["verbs"].remove(right.verb)
        role["rules"] = [rule for rule in role["rules"] if rule["verbs"]]

    def lacking() -> list[Check]:
        cluster = load_config(site.config(RUN)).cluster
        assert cluster is not None
        return [one for one in rights.of_controller(Api(), cluster) if one.verdict is not Verdict.OK]

    with changed(site, "role", "hiernas-controller", without):
        (one,) = until(f"no right to {right}", lacking, 20)
    assert one.verdict is (Verdict.FAILED if right in rights.CONTROLLER else Verdict.WARNING)
    assert one.found.partition(";")[0].endswith(f"may not: {right}")
    until(f"the right to {right}", lambda: not lacking(), 20)


def test_somebody_without_rights_is_told_which_and_what_could_not_be_seen(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    token = site.cluster.kubectl("-n", NAMESPACE, "create", "token", "hiernas-worker").strip()
    path = site.folder / "worker.kubeconfig"
    config = json.loads(site.cluster.kubectl("config", "view", "--raw", "--flatten", "-o", "json"))
    config["users"] = [{"name": "worker", "user": {"token": token}}]
    for context in config["contexts"]:
        context["context"]["user"] = "worker"
    path.write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(path))
    found = examined(site)
    assert all(str(right) in failures(found)["your rights"] for right in rights.CALLER)
    unseen = {one.name for one in found if one.verdict is Verdict.UNKNOWN}
    assert {"namespace", "controller's rights", "store secret", "nodes", "quota", "dry run: worker pod"} <= unseen


def test_a_missing_secret_is_named(site: Site) -> None:
    assert "secret 'absent' is not in the namespace" in failures(examined(site, cluster={"store_secret": "absent"}))["store secret"]


def test_a_secrets_values_are_never_shown(site: Site) -> None:
    (one,) = [one for one in examined(site) if one.name == "store secret"]
    assert one.found == f"secret 'bucket' has the keys {', '.join(sorted(site.keys))}"


def test_a_missing_account_is_named(site: Site) -> None:
    found = failures(examined(site, cluster={"worker_account": "absent"}))
    assert "service account 'absent'" in found["accounts"]
    assert "absent" in found["dry run: worker pod"]


def test_an_absent_namespace_is_named_and_nothing_within_it_is_asked_for(site: Site) -> None:
    found = examined(site, cluster={"namespace": "absent"})
    assert list(failures(found)) == ["namespace"]
    assert found[-1].name == "namespace"


def test_a_quota_that_is_too_small_is_named(site: Site) -> None:
    body = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "tight"}, "spec": {"hard": {"limits.memory": "2Gi"}}}
    with made(site, body):
        until("the quota's status", lambda: "hard" in (site.objects("resourcequotas")[0].get("status") or {}), 20)
        found = failures(examined(site))
    assert "not one worker fits: limits.memory" in found["quota tight"]
    assert "exceeded quota: tight" in found["dry run: worker pod"]


def test_a_limit_range_that_is_too_narrow_is_named(site: Site) -> None:
    body = {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "narrow"}, "spec": {"limits": [{"type": "Container", "max": {"memory": "2Gi"}}]}}
    with made(site, body):
        found = failures(examined(site))
    assert "memory; at most 2Gi is allowed" in found["limit range, worker"]
    assert "memory" in found["dry run: worker pod"]


@pytest.mark.own_cluster("its nodes may have GPUs")
def test_gpus_that_no_node_has_are_named(site: Site) -> None:
    assert "no node offers nvidia.com/gpu" in failures(examined(site, executor={"gpus": 1}))["nodes"]


@pytest.mark.own_cluster("Kueue may be there")
def test_a_queue_without_kueue_is_named(site: Site) -> None:
    assert "Kueue is not installed" in failures(examined(site, cluster={"queue": "search"}))["queue"]


def test_objects_that_pods_name_are_looked_for(site: Site) -> None:
    spec = {"priorityClassName": "absent", "volumes": [{"name": "more", "persistentVolumeClaim": {"claimName": "images"}}]}
    found = failures(examined(site, cluster={"worker_pod": {"spec": spec}}))
    assert {"priority class 'absent'", "volume claim 'images'"} <= found.keys()


def test_pod_security_is_asked_now(site: Site) -> None:
    found = examined(site, cluster={"worker_pod": {"spec": {"hostNetwork": True}}})
    assert "violates PodSecurity" in failures(found)["dry run: worker pod"]
    assert any(one.name == "dry run: worker job" and one.verdict is Verdict.WARNING and "would violate PodSecurity" in one.found for one in found)


def test_a_misspelt_field_of_the_pod_is_a_warning(site: Site) -> None:
    found = examined(site, cluster={"worker_pod": {"spec": {"nodeSelectors": {"a": "b"}}}})
    assert any(one.verdict is Verdict.WARNING and 'unknown field "spec.template.spec.nodeSelectors"' in one.found for one in found)


def test_nothing_is_left_in_the_cluster(site: Site) -> None:
    before = [site.objects(kind) for kind in ("jobs", "pods", "leases", "configmaps")]
    examined(site)
    names = [[one["metadata"]["uid"] for one in kind] for kind in before]
    assert [[one["metadata"]["uid"] for one in site.objects(kind)] for kind in ("jobs", "pods", "leases", "configmaps")] == names


def test_smoke_goes_through_everything_and_leaves_only_records(site: Site) -> None:
    found = json.loads(site.hiernas("doctor", str(site.config(RUN)), "--store", site.store_url(RUN), "--smoke", "--json").stdout)
    (one,) = [check for check in found["checks"] if check["name"].startswith("smoke")]
    assert one["verdict"] == "ok", one
    for word in ("controller: queue", "worker: queue", "start", "train", *(["hiernas-node"] if site.own else [])):
        assert word in one["found"]
    run = one["found"].rpartition("/")[2]
    for kind in ("leases", "jobs", "configmaps", "pods"):
        until(f"no {kind} of {run}", lambda kind=kind: not site.objects(kind, f"hiernas/run={run}"), 60)
    assert "is whole" in site.hiernas("verify", run, "--store", f"{site.store_url(RUN)}/_doctor").stdout
