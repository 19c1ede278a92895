"""Images that `make push` brought to a private registry, pulled by the node with a pull secret."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import NAMESPACE, ROOT, Site, until
from registry import PASSWORD, USER, Registry

from images import settings

RUN, SECRET, TAG = "pulled", "registry", "pushed"
pytestmark = pytest.mark.own_cluster("its nodes would have to trust the registry's authority")


@pytest.fixture
def registry(site: Site, tmp_path: Path) -> Iterator[Registry]:
    assert site.own is not None
    registry = Registry(site.own.cluster, tmp_path)
    try:
        yield registry
    finally:
        registry.close()


def test_pushed_images_are_pulled_with_a_pull_secret_and_its_lack_is_told(site: Site, registry: Registry) -> None:
    repository = f"{registry.name}/team"
    environment = settings(TAG) | registry.login() | {"IMAGES": "controller"}  # the worker's, of 3 GB, goes the same way
    pushed = subprocess.run(["make", "push", f"REGISTRY={repository}"], cwd=ROOT, env=environment, text=True, capture_output=True, timeout=300)
    assert pushed.returncode == 0, pushed.stderr

    image = f"{repository}/hiernas-controller:{TAG}"
    bare: dict[str, Any] = {"controller_image": image}
    private = bare | {"controller_pod": {"spec": {"imagePullSecrets": [{"name": SECRET}]}}}
    kubectl = ["-n", NAMESPACE]
    try:
        site.submit(RUN, cluster=bare)
        told = until("that the image is refused", lambda: next((line for line in site.why(RUN) if image in line), None), 60)
        assert "imagePullSecrets in cluster.controller_pod" in told

        refused = site.hiernas("doctor", str(site.config(RUN, cluster=private)), "--store", site.store_url(RUN), check=False)
        assert f"pull secret {SECRET!r}" in refused.stdout
        login = [f"--docker-server={registry.name}", f"--docker-username={USER}", f"--docker-password={PASSWORD}"]
        site.cluster.kubectl(*kubectl, "create", "secret", "docker-registry", SECRET, *login)
        site.submit(RUN, cluster=private)
        site.finished(RUN, 120)
        pulls = [one["message"] for one in site.objects("events") if one["reason"] == "Pulled" and image in one["message"]]
        assert any(message.startswith("Successfully pulled image") for message in pulls), pulls
    finally:
        site.cluster.kubectl(*kubectl, "delete", "secret", SECRET, "--ignore-not-found")
        site.cluster.kubectl(*kubectl, "delete", "lease", RUN, "--ignore-not-found")
