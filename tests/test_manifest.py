"""What is created in a cluster, compared with golden files: `python tests/test_manifest.py` writes them again; look at the difference."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from small_run import RUN

from pipeline import deploy, labels, manifest
from pipeline.cluster import ClusterConfig
from pipeline.config import parse_config
from pipeline.executor import JobSpec, job_name
from search.records import Resources

GOLDEN = Path(__file__).parent / "golden"
ORIGIN = manifest.Origin("digits", "a" * 32, "s3://search/runs", "11111111-2222-3333-4444-555555555555", "1.2.3")
PLAIN = ClusterConfig("registry.example/hiernas-worker:1", "registry.example/hiernas-controller:1")
FULL = ClusterConfig(
    "registry.example/hiernas-worker:1",
    "registry.example/hiernas-controller:1",
    namespace="team-a",
    store_secret="bucket",
    environment={"AWS_ENDPOINT_URL": "http://minio.storage:9000"},
    queue="search",
    worker_pod={
        "metadata": {"labels": {"cost-centre": "7"}},
        "spec": {
            "nodeSelector": {"pool": "spot"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "volumes": [{"name": "data", "emptyDir": None, "persistentVolumeClaim": {"claimName": "images", "readOnly": True}}],
            "containers": [{"name": "worker", "env": [{"name": "NCCL_DEBUG", "value": "WARN"}]}],
        },
    },
    controller_pod={"spec": {"priorityClassName": "high"}},
)


def spec(resources: Resources) -> JobSpec:
    return JobSpec(job_name("digits", 17, 1), "digits", 17, 1, resources, "b" * 64)


def made() -> dict[str, list[dict[str, Any]]]:
    config = "run: digits\n"
    return {
        "worker.yaml": [manifest.worker_job(spec(Resources()), ORIGIN, PLAIN)],
        "worker-full.yaml": [
            manifest.worker_job(replace(spec(Resources(8, 32 * 1024**3, 3600.5, 1)), avoid=("node-7",), rather_not=("node-7", "node-8")), ORIGIN, FULL)
        ],
        "controller.yaml": [
            manifest.lease("digits", "a" * 32, "s3://search/runs", "hiernas", "1.2.3"),
            manifest.config_map(config, ORIGIN, "hiernas"),
            manifest.controller_job(ORIGIN, PLAIN, "c" * 64),
        ],
        "controller-full.yaml": [manifest.controller_job(ORIGIN, FULL, "c" * 64)],
    }


@pytest.mark.parametrize("name", made())
def test_objects_are_the_golden_ones(name: str) -> None:
    assert list(yaml.safe_load_all((GOLDEN / name).read_text())) == made()[name], "look at the difference; `python tests/test_manifest.py` writes them again"


def test_the_controller_is_replaced_for_another_image_and_not_for_nothing() -> None:
    def digest(cluster: ClusterConfig, config: str = "a: 1") -> str:
        job = deploy.objects(RUN, "s3://b/p", cluster, config, "uid")[1]
        return str(job["metadata"]["annotations"][labels.CONFIG_DIGEST])

    assert digest(PLAIN) == digest(PLAIN) == digest(PLAIN, "limits: {workers: 3}\na: 1")  # limits are asked for by requests
    assert len({digest(PLAIN), digest(PLAIN, "a: 2"), digest(FULL), digest(ClusterConfig("w", "c2"))}) == 4


@pytest.mark.parametrize("own", [None, [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}, {"matchFields": []}]])
def test_an_attempt_keeps_away_from_nodes_besides_what_the_config_asks_for(own: list[dict[str, Any]] | None) -> None:
    affinity = {"podAffinity": {"x": 1}} | ({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": own}}} if own else {})
    cluster = replace(PLAIN, worker_pod={"spec": {"affinity": affinity}})
    before = json.dumps(cluster.worker_pod)
    job = manifest.worker_job(replace(spec(Resources()), avoid=("n1", "n2"), rather_not=("n3",)), ORIGIN, cluster)
    found = job["spec"]["template"]["spec"]["affinity"]
    (preferred,) = found["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preferred["preference"]["matchExpressions"] == [{"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["n3"]}]
    away = {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["n1", "n2"]}
    terms = found["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert terms == (
        [own[0] | {"matchExpressions": [*own[0]["matchExpressions"], away]}, own[1] | {"matchExpressions": [away]}] if own else [{"matchExpressions": [away]}]
    )
    assert found["podAffinity"] == {"x": 1}
    assert json.dumps(cluster.worker_pod) == before


def test_what_is_laid_over_a_pod_never_hides_it_from_its_controller() -> None:
    cluster = ClusterConfig("w", "c", worker_pod={"metadata": {"labels": {labels.RUN: "another", "team": "a"}}})
    found = manifest.worker_job(spec(Resources()), ORIGIN, cluster)["spec"]["template"]["metadata"]["labels"]
    assert (found[labels.RUN], found["team"]) == ("digits", "a")


@pytest.mark.parametrize(("own", "kind", "limit"), [("null", "kubernetes", 600.0), ("50", "kubernetes", 50.0), ("null", "processes", None)])
def test_a_pod_has_a_deadline_if_only_its_recipe_has_one(own: str, kind: str, limit: float | None) -> None:
    """A driver that hangs hears no clock of its own process. Local workers are asked by that clock alone."""
    config = parse_config(
        f"""
run: a
data: digits
space: liu2018-hierarchical
strategy: {{kind: random}}
recipe: {{extends: digits-small, time_limit_seconds: 600}}
limits: {{max_evaluations: 1}}
executor: {{kind: {kind}, time_limit_seconds: {own}}}
cluster: {{worker_image: w, controller_image: c}}
""",
        "test",
    )
    assert config.resources().time_limit_seconds == limit


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
)


@given(st.dictionaries(st.text(max_size=2), JSON, max_size=4))
def test_nothing_laid_over_changes_nothing_and_what_is_laid_over_is_there(base: dict[str, Any]) -> None:
    before = json.dumps(base)
    assert manifest.overlay(base, {}) == base
    assert manifest.overlay(base, {"new": {"a": 1}} | dict.fromkeys(base)) == {"new": {"a": 1}}  # keys of `base` are shorter
    assert json.dumps(base) == before  # pure


def test_what_a_cluster_ignores_is_named() -> None:
    job = manifest.worker_job(spec(Resources(8, 32 * 1024**3, 3600.5, 1)), ORIGIN, FULL)["spec"]
    made = json.loads(json.dumps(job))
    made["template"]["spec"]["containers"].insert(0, {"name": "added"})
    made["completions"] = 1
    assert manifest.dropped(job, made) == []
    del made["podReplacementPolicy"], made["template"]["spec"]["containers"][1]["securityContext"]["readOnlyRootFilesystem"]
    del made["template"]["spec"]["volumes"][0]
    ignored = ["podReplacementPolicy", "template.spec.containers[worker].securityContext.readOnlyRootFilesystem", "template.spec.volumes[data]"]
    assert sorted(manifest.dropped(job, made)) == ignored


def test_lists_of_named_things_go_by_name_and_others_are_replaced() -> None:
    base = {"containers": [{"name": "worker", "image": "a", "args": ["x"]}], "tolerations": [{"key": "a"}]}
    patch = {"containers": [{"name": "side", "image": "b"}, {"name": "worker", "args": ["y", "z"]}], "tolerations": [{"key": "b"}]}
    assert manifest.overlay(base, patch) == {
        "containers": [{"name": "worker", "image": "a", "args": ["y", "z"]}, {"name": "side", "image": "b"}],
        "tolerations": [{"key": "b"}],
    }


@pytest.mark.parametrize("version", ["0.1.0", "0.1.0+g12ab", "", "-", "x" * 100, "1.0+ü"])
def test_a_version_becomes_a_label(version: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", labels.common("r", "worker", version)["app.kubernetes.io/version"])


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, some in made().items():
        (GOLDEN / name).write_text(yaml.safe_dump_all(json.loads(json.dumps(some)), sort_keys=False))
