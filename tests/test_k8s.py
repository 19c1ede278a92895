"""What an administrator applies, judged without a cluster: each folder of k8s/ renders, fits Kubernetes' schemas, and gives no right too many."""

import functools
import os
import re
import shutil
import subprocess
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from readme_commands import ROOT
from test_manifest import GOLDEN, ORIGIN, PLAIN, spec

from pipeline.cluster import ClusterConfig
from pipeline.config import load_config
from pipeline.doctor import rights
from pipeline.doctor.rights import Right
from pipeline.manifest import controller_job, worker_job
from search.records import Resources

K8S = ROOT / "k8s"
FOLDERS = sorted(path.parent.name for path in K8S.glob("*/kustomization.yaml"))
VERSIONS = ["1.31", kubernetes_validate.latest_version()]
"""The oldest that is supported, and the newest whose schemas are there."""
OTHERS = {"monitoring.coreos.com", "kueue.x-k8s.io"}
"""Groups that are not Kubernetes' own: no schema of theirs is here. tests/cluster/test_manifests.py tries the first on a server."""
TO_LOOK_WITH = [
    *[Right("get", "", one) for one in ("pods", "pods/log", "namespaces", "serviceaccounts")],
    *[Right("list", "", one) for one in ("resourcequotas", "limitranges")],
    *[Right("list", "rbac.authorization.k8s.io", "rolebindings"), Right("get", "rbac.authorization.k8s.io", "roles")],
    *[Right("list", "kueue.x-k8s.io", "workloads"), Right("get", "kueue.x-k8s.io", "localqueues")],
]
"""Of people who submit, beside what `hiernas submit` and `status --why` do: kubectl logs, and what `hiernas doctor` reads."""
METADATA = {"169.254.169.254", "fd00:ec2::254"}
"""Where a pod would get the rights of its node."""
Object = dict[str, Any]


@functools.cache
def rendered(folder: str) -> list[Object]:
    """The objects of a folder of k8s/."""
    return kustomize(K8S / folder)


def kustomize(folder: Path) -> list[Object]:
    if not shutil.which("kubectl"):
        assert not os.environ.get("CI"), "kubectl is missing"
        pytest.skip("there is no kubectl")
    text = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True).stdout
    return list(yaml.safe_load_all(text))


def golden(path: Path) -> list[Object]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def of_kind(kind: str, folder: str = "base") -> dict[str, Object]:
    """Objects of a kind, by name."""
    return {one["metadata"]["name"]: one for one in rendered(folder) if one["kind"] == kind}


def group(one: Object) -> str:
    return str(one["apiVersion"].rpartition("/")[0])


def pods(objects: list[Object]) -> list[Object]:
    """Pod templates of all objects that have one."""
    return [one["spec"]["template"] for one in objects if "template" in (one.get("spec") or {})]


# -- schemas


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_renders_to_objects_of_one_namespace(folder: str) -> None:
    for one in rendered(folder):
        assert one["metadata"].get("namespace", "hiernas") == "hiernas"
        assert one["metadata"]["labels"]["app.kubernetes.io/part-of"] == "hiernas"
        assert (group(one) in OTHERS) == (folder in ("monitoring", "kueue") and one["kind"] != "ConfigMap")


def test_a_team_may_have_it_all_in_a_namespace_of_its_own(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    (tmp_path / "team").mkdir()
    (tmp_path / "team" / "kustomization.yaml").write_text("namespace: team-a\nresources: [../k8s/base, ../k8s/identity, ../k8s/store]\n")
    for one in kustomize(tmp_path / "team"):
        assert one["metadata"]["name" if one["kind"] == "Namespace" else "namespace"] == "team-a"
        assert {subject["namespace"] for subject in one.get("subjects", [])} <= {"team-a"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("source", [*FOLDERS, *sorted(GOLDEN.glob("*.yaml"))], ids=lambda source: Path(source).name)
def test_objects_are_such_as_the_oldest_and_the_newest_kubernetes_take(source: str | Path, version: str) -> None:
    for one in golden(source) if isinstance(source, Path) else rendered(source):
        if group(one) not in OTHERS:
            kubernetes_validate.validate(one, version, strict=True)


def mounts() -> list[dict[str, Any]]:
    """The pods' changes by which docs/deploy.md mounts a data set."""
    blocks = re.findall(r"```yaml\n(cluster:.*?)```", (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8"), re.DOTALL)
    found = [yaml.safe_load(block)["cluster"].get("worker_pod") for block in blocks]
    return [pod for pod in found if pod is not None and "volumes" in pod["spec"]]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["persistentVolumeClaim", "csi", "image"])
def test_data_sets_may_be_mounted_as_the_docs_say(kind: str, version: str) -> None:
    (pod,) = [pod for pod in mounts() if kind in pod["spec"]["volumes"][0]]
    job = worker_job(spec(Resources()), ORIGIN, replace(PLAIN, worker_pod=pod))
    kubernetes_validate.validate(job, version, strict=True)
    volumes = job["spec"]["template"]["spec"]["volumes"]
    assert [sorted(volume) for volume in volumes if volume["name"] == "data"] == [sorted(["name", kind])]  # and no emptyDir beside it


def test_a_misspelt_field_is_found() -> None:
    (job,) = golden(GOLDEN / "worker.yaml")
    job["spec"]["podFailurPolicy"] = job["spec"].pop("podFailurePolicy")
    with pytest.raises(kubernetes_validate.ValidationError, match="podFailurPolicy"):
        kubernetes_validate.validate(job, VERSIONS[0], strict=True)


# -- rights


def granted(role: str) -> list[Right]:
    return [
        Right(verb, group, resource)
        for rule in of_kind("Role")[role]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    ]


def test_the_controller_may_do_what_it_does_and_nothing_else() -> None:
    assert sorted(map(str, granted("hiernas-controller"))) == sorted(map(str, [*rights.CONTROLLER, *rights.CONTROLLER_HELPFUL]))


def test_who_submits_may_do_what_the_commands_do_and_nothing_else() -> None:
    assert sorted(map(str, granted("hiernas-submitter"))) == sorted(map(str, [*rights.CALLER, *rights.CALLER_HELPFUL, *TO_LOOK_WITH]))


def test_the_controller_alone_has_a_right_and_none_reaches_beyond_the_namespace() -> None:
    everything = [one for folder in FOLDERS for one in rendered(folder)]
    assert not [one for one in everything if one["kind"] in ("ClusterRole", "ClusterRoleBinding")]
    (binding,) = of_kind("RoleBinding").values()
    assert binding["roleRef"]["name"] == "hiernas-controller"
    assert [one["name"] for one in binding["subjects"]] == ["hiernas-controller"]
    assert of_kind("ServiceAccount")["hiernas-worker"]["automountServiceAccountToken"] is False


# -- what must be nowhere


def test_the_namespace_enforces_the_strictest_pod_security() -> None:
    labels = of_kind("Namespace")["hiernas"]["metadata"]["labels"]
    assert {labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "audit", "warn")} == {"restricted"}


@pytest.mark.parametrize("source", ["local", *sorted(GOLDEN.glob("*.yaml"))], ids=lambda source: Path(source).name)
def test_our_pods_are_restricted_ones(source: str | Path) -> None:
    for pod in pods(golden(source) if isinstance(source, Path) else rendered(source)):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for one in spec["containers"] + spec.get("initContainers", []):
            assert one["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        assert {kind for volume in spec["volumes"] for kind in volume} <= {"name", "emptyDir", "configMap", "persistentVolumeClaim", "secret"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()


def test_no_secret_no_container_and_no_floating_image_is_in_the_folders() -> None:
    for folder in FOLDERS:
        if folder != "local":
            assert not [one for one in rendered(folder) if one["kind"] == "Secret"]
            assert not pods(rendered(folder))
    for path in [*K8S.rglob("*.yaml"), *(ROOT / "configs").glob("*.yaml"), *GOLDEN.glob("*.yaml")]:
        if path == K8S / "local" / "secret.yaml":
            continue  # see test_the_key_of_the_local_store_is_a_secret_to_nobody
        assert not re.search(r":latest\b|hostPath|privileged: *true|SECRET_ACCESS_KEY *[:=]", path.read_text(encoding="utf-8")), path


def test_workers_may_have_a_secret_of_their_own() -> None:
    found = re.search(r"```yaml\n(cluster:.*?)```", (ROOT / "docs" / "security.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    cluster = replace(PLAIN, **yaml.safe_load(found[1])["cluster"])
    for job, name in ((worker_job(spec(Resources()), ORIGIN, cluster), "bucket-worker"), (controller_job(ORIGIN, cluster, "c" * 64), "bucket")):
        pod = job["spec"]["template"]["spec"]
        assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": name}}]
        assert [volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume] == [name]


# -- the local store


def local_config() -> ClusterConfig:
    cluster = load_config(ROOT / "configs" / "local.yaml").cluster
    assert cluster is not None
    return cluster


def test_the_key_of_the_local_store_is_a_secret_to_nobody() -> None:
    (secret,) = of_kind("Secret", "local").values()
    assert secret["stringData"] == {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "not-a-secret"}
    assert (K8S / "local" / "secret.yaml").read_text(encoding="utf-8").startswith("# Not a secret:")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, value in secret["stringData"].items():
        assert f"{name}={value}" in readme


def test_the_local_config_names_what_the_local_folder_has() -> None:
    cluster = local_config()
    config = load_config(ROOT / "configs" / "local.yaml")
    assert cluster.store_secret in of_kind("Secret", "local")
    (service,) = of_kind("Service", "local").values()
    (port,) = service["spec"]["ports"]
    assert cluster.environment["AWS_ENDPOINT_URL"] == f"http://{service['metadata']['name']}.{cluster.namespace}.svc:{port['port']}"
    assert f"port-forward service/{service['metadata']['name']} {port['port']} " in (ROOT / "README.md").read_text(encoding="utf-8")
    bucket = re.search(r"\bBUCKET=(\S+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    assert bucket is not None
    assert config.store == f"s3://{bucket[1]}/runs"


def test_the_local_store_is_one_pod_on_a_folder_that_outlives_it() -> None:
    (workload,) = [one for one in rendered("local") if "template" in (one.get("spec") or {})]
    assert (workload["kind"], workload["spec"]["replicas"]) == ("StatefulSet", 1), "two servers on one folder would both win a create-only write"
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    data = re.search(r"\bS3_DATA_DIR=(\S+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    assert data is not None
    (mounted,) = [one["name"] for one in container["volumeMounts"] if one["mountPath"] == data[1]]
    (volume,) = [one for one in workload["spec"]["template"]["spec"]["volumes"] if one["name"] == mounted]
    assert volume["persistentVolumeClaim"]["claimName"] in of_kind("PersistentVolumeClaim", "local")


def test_the_local_images_are_called_alike_everywhere_and_are_never_pulled_in_vain() -> None:
    (pod,) = pods(rendered("local"))
    (store,) = pod["spec"]["containers"]
    assert store["imagePullPolicy"] == "IfNotPresent"
    cluster = local_config()
    names = [store["image"], cluster.worker_image, cluster.controller_image]
    assert sorted(names) == [f"localhost/hiernas-{one}:local" for one in ("controller", "store", "worker")]
    for job in (worker_job(spec(Resources()), ORIGIN, cluster), controller_job(ORIGIN, cluster, "c" * 64)):
        assert "imagePullPolicy" not in job["spec"]["template"]["spec"]["containers"][0]  # then a tag other than `latest` is pulled only where it lacks


def test_our_pods_reach_the_local_store_and_it_answers_nobody_else_and_asks_nobody() -> None:
    (store,), policies = pods(rendered("local")), of_kind("NetworkPolicy", "local")
    labels = store["metadata"]["labels"]
    port = store["spec"]["containers"][0]["ports"][0]["containerPort"]
    assert [name for name, one in policies.items() if selects(one, labels)] == ["store"]
    assert policies["store"]["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in policies["store"]["spec"]
    (enter,) = policies["store"]["spec"]["ingress"]
    (leave,) = policies["hiernas-local"]["spec"]["egress"]
    assert [one["port"] for one in enter["ports"]] == [one["port"] for one in leave["ports"]] == [port]
    (whence,), (where,) = enter["from"], leave["to"]
    assert where["podSelector"]["matchLabels"].items() <= labels.items()
    for path in ("worker.yaml", "controller.yaml"):
        (pod,) = pods(golden(GOLDEN / path))
        assert whence["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        assert selects(policies["hiernas-local"], pod["metadata"]["labels"])


# -- networks


def egress(name: str, folder: str = "base") -> list[Object]:
    found: list[Object] = of_kind("NetworkPolicy", folder)[name]["spec"]["egress"]
    return found


def covers(block: Object, address: str) -> bool:
    """Whether an ipBlock opens an address."""
    given = ip_address(address)
    return given in ip_network(block["cidr"]) and not any(given in ip_network(one) for one in block.get("except", []))


def selects(policy: Object, labels: dict[str, str]) -> bool:
    return bool(policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items())


def test_policies_select_our_pods_and_that_for_the_api_the_controller_alone() -> None:
    (worker,), (controller,) = pods(golden(GOLDEN / "worker.yaml")), pods(golden(GOLDEN / "controller.yaml"))
    policies = {name: one for folder in ("base", "store", "identity") for name, one in of_kind("NetworkPolicy", folder).items()}
    for name, policy in policies.items():
        assert selects(policy, controller["metadata"]["labels"]), name
        assert selects(policy, worker["metadata"]["labels"]) == (name not in ("hiernas-api", "hiernas-metrics")), name
    assert "ingress" not in policies["hiernas-deny"]["spec"]
    assert "egress" not in policies["hiernas-deny"]["spec"]


def test_the_metrics_port_is_open_and_no_other_comes_in() -> None:
    (controller,) = pods(golden(GOLDEN / "controller.yaml"))
    ports = [one["containerPort"] for one in controller["spec"]["containers"][0]["ports"]]
    policies = of_kind("NetworkPolicy").values()
    assert [one["port"] for policy in policies for rule in policy["spec"].get("ingress", []) for one in rule["ports"]] == ports


def test_the_clouds_metadata_stay_shut_and_the_identity_folder_opens_the_agent_alone() -> None:
    (storage,) = egress("hiernas-storage")
    assert {exception for to in storage["to"] for exception in to.get("ipBlock", {}).get("except", [])} == {"169.254.0.0/16", "fe80::/10", "fd00:ec2::/32"}
    (names,) = egress("hiernas-names")
    (api,) = egress("hiernas-api")
    for anywhere, expected in ((names, {53}), (api, {443, 6443})):
        assert "to" not in anywhere
        assert {one["port"] for one in anywhere["ports"]} == expected  # none of them is the metadata's, 80
    (identity,) = egress("hiernas-identity", "identity")
    assert {to["ipBlock"]["cidr"] for to in identity["to"]} == {"169.254.170.23/32", "fd00:ec2::23/128"}
    for folder in ("base", "store", "identity", "local"):
        for policy in of_kind("NetworkPolicy", folder).values():
            for rule in policy["spec"].get("egress", []):
                assert not any(covers(to["ipBlock"], address) for to in rule.get("to", []) if "ipBlock" in to for address in METADATA), policy


# -- the example configs


@pytest.mark.parametrize("name", ["cluster.yaml", "gpu.yaml", "local.yaml"])
def test_an_example_names_nothing_that_is_not_in_the_folders(name: str) -> None:
    cluster = load_config(ROOT / "configs" / name).cluster
    assert cluster is not None
    plain = ClusterConfig(cluster.worker_image, cluster.controller_image)
    assert (cluster.namespace, cluster.worker_account, cluster.controller_account) == (plain.namespace, plain.worker_account, plain.controller_account)
    assert {plain.worker_account, plain.controller_account} == of_kind("ServiceAccount").keys()
    for pod in (cluster.worker_pod, cluster.controller_pod):
        priority = (pod.get("spec") or {}).get("priorityClassName")
        assert priority is None or priority in of_kind("PriorityClass", "gpu")
    queue = re.search(r"queue: (\S+)", (ROOT / "configs" / name).read_text())
    assert queue is None or queue[1] in of_kind("LocalQueue", "kueue")


def test_workers_give_way_and_an_autoscaler_still_makes_nodes_for_them() -> None:
    (priority,) = of_kind("PriorityClass", "gpu").values()
    assert -10 <= priority["value"] < 0  # below -10 the cluster autoscaler calls a pod expendable
    assert priority["preemptionPolicy"] == "Never"
    assert priority["globalDefault"] is False


def test_a_queue_serves_the_namespace_with_all_that_workers_ask_for() -> None:
    (cluster_queue,), (local,), (flavor,) = (of_kind(kind, "kueue") for kind in ("ClusterQueue", "LocalQueue", "ResourceFlavor"))
    queue = of_kind("ClusterQueue", "kueue")[cluster_queue]["spec"]
    (resources,) = queue["resourceGroups"]
    (worker,) = pods(golden(GOLDEN / "worker-full.yaml"))
    assert worker["spec"]["containers"][0]["resources"]["requests"].keys() <= set(resources["coveredResources"])
    assert [one["name"] for one in resources["flavors"]] == [flavor]
    assert {one["name"] for one in resources["flavors"][0]["resources"]} == set(resources["coveredResources"])
    assert queue["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": of_kind("LocalQueue", "kueue")[local]["metadata"]["namespace"]}
    assert of_kind("LocalQueue", "kueue")[local]["spec"]["clusterQueue"] == cluster_queue
