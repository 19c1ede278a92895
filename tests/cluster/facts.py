"""What a cluster is and what it changed on the machine, written down before it changes anything: another process can then use the cluster, or clean up after it."""

from __future__ import annotations

import dataclasses
import json
import socket
from pathlib import Path

# The first address of the service range is that of the service `kubernetes`: pods find the API server here with neither kube-proxy nor DNS.
SERVICE_RANGE, NODE_ADDRESS = "10.96.0.0/24", "10.96.0.1"
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    node: bool
    programs: str
    """Folder of Kubernetes' programs."""
    ports: dict[str, int]
    """On `address`; for the kubelet that of its health check."""
    sysctls: dict[str, str]
    """Values from before, to put back. Empty without a node, as is `made`."""
    made: list[str]
    """Folders made only to be mounted over, to remove again."""
    crowded: bool = False
    """Whether it is for thousands of pods: then the limits that its components keep to by themselves are raised."""

    @property
    def address(self) -> str:
        return NODE_ADDRESS if self.node else "127.0.0.1"

    @property
    def server(self) -> str:
        return f"https://{self.address}:{self.ports['kube-apiserver']}"

    def save(self, state: Path) -> None:
        (state / "facts.new").write_text(json.dumps(dataclasses.asdict(self), indent=2))
        (state / "facts.new").rename(state / "facts.json")

    @staticmethod
    def load(state: Path) -> Facts | None:
        try:
            return Facts(**json.loads((state / "facts.json").read_text()))
        except FileNotFoundError:
            return None

    @staticmethod
    def forget(state: Path) -> None:
        (state / "facts.json").unlink(missing_ok=True)


def choose_ports(*, node: bool) -> dict[str, int]:
    """Free ones. Only the API server of a cluster with a node has a fixed port, that of the service `kubernetes`."""
    names = (*CONTROL_PLANE, "etcd-peers", "kubelet")
    sockets = [socket.socket() for _ in names]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = {name: int(one.getsockname()[1]) for name, one in zip(names, sockets, strict=True)}
    finally:
        for one in sockets:
            one.close()
    return ports | ({"kube-apiserver": 443} if node else {})
