"""Keys, certificates and tokens of a test cluster, made anew at every start and thrown away with it.

Components and the admin have tokens; certificates are only where Kubernetes takes nothing else: to serve, and from the API server to the kubelet.
"""

from __future__ import annotations

import json
import secrets
import subprocess
from base64 import b64encode
from pathlib import Path

# The groups are what gives a component its rights: Kubernetes' own RBAC roles name these users and groups.
USERS = {
    "admin": ("admin", "system:masters"),
    "kube-controller-manager": ("system:kube-controller-manager", ""),
    "kube-scheduler": ("system:kube-scheduler", ""),
    "kubelet": ("system:node:{node}", "system:nodes"),
}


def make(folder: Path, *, server: str, node: str, addresses: tuple[str, ...]) -> None:
    """Writes ca.crt, server.{crt,key}, kubelet-client.{crt,key}, service-accounts.{key,pub}, tokens.csv and NAME.kubeconfig for each of USERS."""
    folder.mkdir(mode=0o700)
    _openssl(folder, "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3 -subj /CN=hiernas-cluster -keyout ca.key -out ca.crt")
    names = ",".join([*(f"IP:{address}" for address in addresses), "DNS:kubernetes.default.svc", "DNS:localhost"])
    _certificate(folder, "server", "/CN=kube-apiserver", f"subjectAltName={names}")
    _certificate(folder, "kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client", "extendedKeyUsage=clientAuth")
    _openssl(folder, "genrsa -out service-accounts.key 2048")
    _openssl(folder, "rsa -in service-accounts.key -pubout -out service-accounts.pub")
    lines = []
    for name, (user, groups) in USERS.items():
        token = secrets.token_hex(24)
        lines.append(f'{token},{user.format(node=node)},{name},"{groups}"\n')
        _kubeconfig(folder / f"{name}.kubeconfig", server, (folder / "ca.crt").read_bytes(), token)
    (folder / "tokens.csv").write_text("".join(lines))


def token(kubeconfig: Path) -> str:
    found = json.loads(kubeconfig.read_text())["users"][0]["user"]["token"]
    return str(found)


def _certificate(folder: Path, name: str, subject: str, extension: str) -> None:
    _openssl(folder, f"req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj {subject} -keyout {name}.key -out {name}.csr")
    (folder / f"{name}.ext").write_text(extension + "\n")
    _openssl(folder, f"x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 3 -extfile {name}.ext -out {name}.crt")


def _kubeconfig(path: Path, server: str, ca: bytes, token: str) -> None:
    # JSON is YAML, so no YAML library is needed; the certificate lies inside, so that the file can be copied.
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "hiernas", "cluster": {"server": server, "certificate-authority-data": b64encode(ca).decode()}}],
        "users": [{"name": "hiernas", "user": {"token": token}}],
        "contexts": [{"name": "hiernas", "context": {"cluster": "hiernas", "user": "hiernas"}}],
        "current-context": "hiernas",
    }
    path.write_text(json.dumps(config, indent=2))


def _openssl(folder: Path, arguments: str) -> None:
    subprocess.run(["openssl", *arguments.split()], check=True, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True)
