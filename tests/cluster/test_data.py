"""Data sets that a volume brings: nothing is fetched then. (That they are fetched where nothing is mounted, every other search shows.)"""

import json
from typing import Any

import pytest
from conftest import NAMESPACE, Site
from s3_server import Exchange, Proxy

CLAIM = "mounted-images"


@pytest.mark.own_cluster("a folder of its node is the volume")
def test_a_mounted_data_set_is_read_where_it_is(site: Site) -> None:
    assert site.own is not None
    fetched: list[str] = []

    def watch(exchange: Exchange) -> None:
        if exchange.method == "GET" and "/_datasets/" in exchange.path:
            fetched.append(exchange.path)

    access: dict[str, Any] = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
    place = {"capacity": {"storage": "1Gi"}, "hostPath": {"path": str(site.folder / "data")}, "claimRef": {"namespace": NAMESPACE, "name": CLAIM}}
    volume = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": CLAIM}, "spec": access | place}
    wanted = {"volumeName": CLAIM, "resources": {"requests": {"storage": "1Gi"}}}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": CLAIM, "namespace": NAMESPACE}, "spec": access | wanted}
    proxy = Proxy(site.own.server, watch, site.own.cluster.address)
    try:
        for one in (volume, claim):
            site.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(one))
        mounted = {"name": "data", "emptyDir": None, "persistentVolumeClaim": {"claimName": CLAIM, "readOnly": True}}
        worker = {"name": "worker", "resources": {"requests": {"cpu": "100m"}}}
        section = {"environment": {"AWS_ENDPOINT_URL": proxy.url}, "worker_pod": {"spec": {"volumes": [mounted], "containers": [worker]}}}
        site.submit("mounted", cluster=section, limits={"max_evaluations": 2, "workers": 1})
        state = site.finished("mounted")
    finally:
        proxy.close()
        site.cluster.kubectl("-n", NAMESPACE, "delete", "persistentvolumeclaim", CLAIM, "--ignore-not-found")
        site.cluster.kubectl("delete", "persistentvolume", CLAIM, "--ignore-not-found")
    assert all(outcome.fitness is not None for outcome in state.history)
    assert proxy.seen > 20
    assert fetched == []
