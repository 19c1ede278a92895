"""A private registry on the cluster's address: TLS by the cluster's authority, and nobody gets anything without a password."""

import os
import socket
import ssl
import subprocess
from pathlib import Path

import yaml
from cluster import Cluster
from processes import wait_until
from s3_server import free_port

USER, PASSWORD = "somebody", "a-password-of-the-tests"
HASH = "$2b$05$abcdefghijklmnopqrstuu6O/jaYCx8zhCexxqCBsInzagwRDBqGq"
"""Of the password, by bcrypt: the registry knows no other way."""
SYSTEM_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")


class Registry:
    """Runs from its making until `close`; its images lie in `folder`, which must be there."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.folder, self._credentials = folder, cluster.state / "credentials"
        self.port = free_port(cluster.address)
        self.name = f"{cluster.address}:{self.port}"
        (folder / "users").write_text(f"{USER}:{HASH}\n")
        settings = {
            "version": "0.1",
            "log": {"accesslog": {"disabled": True}, "level": "warn"},
            "storage": {"filesystem": {"rootdirectory": str(folder / "images")}},
            "http": {"addr": self.name, "tls": {"certificate": str(self._credentials / "server.crt"), "key": str(self._credentials / "server.key")}},
            "auth": {"htpasswd": {"realm": "tests", "path": str(folder / "users")}},
        }
        (folder / "registry.yaml").write_text(yaml.safe_dump(settings))
        place = cluster.state / "registries" / self.name  # containerd looks there at each pull
        place.mkdir(parents=True)
        (place / "hosts.toml").write_text(f'[host."https://{self.name}"]\nca = "{self._credentials / "ca.crt"}"\n')
        with (folder / "registry.log").open("wb") as log:
            self._process = subprocess.Popen(["docker-registry", "serve", str(folder / "registry.yaml")], stdout=log, stderr=log)
        wait_until("the registry", self._answers)

    def _answers(self) -> bool:
        context = ssl.create_default_context(cafile=str(self._credentials / "ca.crt"))
        try:
            with socket.create_connection(tuple(self.name.split(":")), timeout=5) as plain, context.wrap_socket(plain, server_hostname=self.name.split(":")[0]):
                return True
        except ConnectionError:
            return False

    def login(self) -> dict[str, str]:
        """The environment of somebody who has logged in, and whose machine trusts the registry's authority beside those that it trusts anyway."""
        trusted = self.folder / "authorities.crt"
        trusted.write_bytes(Path(os.environ.get("SSL_CERT_FILE", SYSTEM_AUTHORITIES)).read_bytes() + (self._credentials / "ca.crt").read_bytes())
        environment = {"SSL_CERT_FILE": str(trusted), "REGISTRY_AUTH_FILE": str(self.folder / "auth.json")}
        command = ["buildah", "login", "--username", USER, "--password-stdin", self.name]
        subprocess.run(command, input=PASSWORD, text=True, check=True, capture_output=True, env=os.environ | environment)
        return environment

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
