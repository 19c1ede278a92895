"""The command lines of etcd, the API server, the controller manager and the scheduler, as pure functions of where the cluster lies."""

from __future__ import annotations

import ssl
import urllib.request
from pathlib import Path

from facts import SERVICE_RANGE, Facts


def command(name: str, state: Path, facts: Facts) -> list[str]:
    flags = {"etcd": _etcd, "kube-apiserver": _api_server, "kube-controller-manager": _manager, "kube-scheduler": _scheduler}[name]
    return [f"{facts.programs}/{name}", *(f"--{flag}={value}" for flag, value in flags(state, facts).items())]


def answers(name: str, facts: Facts) -> bool:
    """Whether a component, the kubelet included, says of itself that it is ready."""
    url = {
        "etcd": f"{_loopback(facts, 'etcd')}/health",
        "kube-apiserver": f"{facts.server}/readyz",
        "kubelet": f"{_loopback(facts, 'kubelet')}/healthz",
    }.get(name, f"{_loopback(facts, name, 'https')}/healthz")
    # The managers' certificates are of their own making, and nothing secret goes to a health check.
    anybody = urllib.request.HTTPSHandler(context=ssl._create_unverified_context())
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({}), anybody).open(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _loopback(facts: Facts, name: str, scheme: str = "http") -> str:
    return f"{scheme}://127.0.0.1:{facts.ports[name]}"


def _etcd(state: Path, facts: Facts) -> dict[str, object]:
    clients, peers = _loopback(facts, "etcd"), _loopback(facts, "etcd-peers")
    return {
        "data-dir": state / "etcd",
        "listen-client-urls": clients,
        "advertise-client-urls": clients,
        "listen-peer-urls": peers,
        "initial-advertise-peer-urls": peers,
        "initial-cluster": f"default={peers}",
        "unsafe-no-fsync": "true",  # kill -9 loses nothing, and no test cuts the power
    }


def _api_server(state: Path, facts: Facts) -> dict[str, object]:
    folder = state / "credentials"
    return {
        "etcd-servers": _loopback(facts, "etcd"),
        "bind-address": facts.address,
        "advertise-address": facts.address,
        "secure-port": facts.ports["kube-apiserver"],
        "service-cluster-ip-range": SERVICE_RANGE,
        "endpoint-reconciler-type": "none",
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction,OwnerReferencesPermissionEnforcement",  # the second as on OpenShift; besides the default ones, PodSecurity and ResourceQuota among them
        "token-auth-file": folder / "tokens.csv",
        "client-ca-file": folder / "ca.crt",
        "tls-cert-file": folder / "server.crt",
        "tls-private-key-file": folder / "server.key",
        "kubelet-client-certificate": folder / "kubelet-client.crt",
        "kubelet-client-key": folder / "kubelet-client.key",
        "kubelet-preferred-address-types": "InternalIP",  # `kubectl logs` reaches the node by address: no DNS knows its name
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-account-signing-key-file": folder / "service-accounts.key",
        "service-account-key-file": folder / "service-accounts.pub",
    }


def _scheduler(state: Path, facts: Facts) -> dict[str, object]:
    # Stock: 50 and 100, and a Pod costs it two requests.
    return _client("kube-scheduler", state, facts) | ({"kube-api-qps": 300, "kube-api-burst": 600} if facts.crowded else {})


def _manager(state: Path, facts: Facts) -> dict[str, object]:
    return {
        **_client("kube-controller-manager", state, facts),
        "controllers": "*,-node-ipam-controller",
        "use-service-account-credentials": "true",
        "service-account-private-key-file": state / "credentials" / "service-accounts.key",
        "root-ca-file": state / "credentials" / "ca.crt",
        "flex-volume-plugin-dir": state / "volume-plugins",  # it makes the folder, by default in /usr/libexec
        # Stock: 20 and 30. At its start it asks for a token for each of its controllers, which takes 4 s at that rate.
        "kube-api-qps": 300,
        "kube-api-burst": 600,
        **({"concurrent-job-syncs": 50} if facts.crowded else _SOON),  # stock: 5
    }


_SOON = {"node-monitor-grace-period": "16s", "node-monitor-period": "2s"}
"""Stock: 50 s and 5 s. The fault tests wait for a dead node."""


def _client(name: str, state: Path, facts: Facts) -> dict[str, object]:
    kubeconfig = state / "credentials" / f"{name}.kubeconfig"
    return {
        "kubeconfig": kubeconfig,
        "authentication-kubeconfig": kubeconfig,
        "authorization-kubeconfig": kubeconfig,
        "bind-address": "127.0.0.1",
        "secure-port": facts.ports[name],
        "leader-elect": "false",
    }
