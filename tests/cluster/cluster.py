"""A real Kubernetes on this machine, without Docker: brought up for the cluster tests, and taken down leaving nothing behind.

Two sizes: the API alone (etcd, API server, controller manager, scheduler: no root needed, pods stay Pending), and with one node that runs containers (root).
Everything lies in one folder, the state, and goes with it; only the cache of built programs stays.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import artifacts
import control_plane
import credentials
import node
from facts import CONTROL_PLANE, NODE_ADDRESS, Facts, choose_ports
from processes import ClusterError, Processes, kill_cgroup, make_cgroup, wait_until

COMPONENTS = (*CONTROL_PLANE, "containerd", "kubelet")
PACKAGES = (
    "containerd",
    "runc",
    "containernetworking-plugins",
    "iproute2",
    "openssl",
    "gcc",
    "libc6-dev",
    "debootstrap",
    "buildah",
    "skopeo",
    "docker-registry",
)
SERVICES = ("containerd", "docker-registry")
"""Packages that start and enable a service of theirs."""
MARKER = "this-folder-is-removed-by-hiernas-cluster"


class Cluster:
    """One cluster. Any process may call any method, but while one that called `up` lives, no other can call `up` or `down`."""

    def __init__(self, state: Path | None = None) -> None:
        self.state = (state or Path(tempfile.gettempdir()) / "hiernas-cluster").absolute()
        if len(str(self.state)) > 60:
            raise ValueError(f"the state folder {self.state} has a long name: at most 60 characters, since the name of a socket in it ends at 107")
        self.kubeconfig = self.state / "credentials" / "admin.kubeconfig"
        self._processes = Processes(self.state)
        self._held = ExitStack()

    @property
    def address(self) -> str:
        """An address of this machine that pods reach: bind here what they need. The API server is here too."""
        return self._facts().address

    @property
    def server(self) -> str:
        return self._facts().server

    def log(self, component: str) -> Path:
        return self._processes.log(component)

    def up(self, *, node: bool = True, crowded: bool = False) -> None:
        """Removes what an earlier cluster left in this state folder, and starts a new one; `crowded`: one for thousands of pods."""
        programs = artifacts.programs()
        self._hold()
        self._remove()
        try:
            self._prepare(programs, with_node=node, crowded=crowded)
            for name in CONTROL_PLANE:
                self.start(name)
            if node:
                self._up_node()
            # The controller manager's first visible work, without which no pod can be created.
            self._processes.wait_ready("kube-controller-manager", lambda: bool(self.kubectl("get", "serviceaccounts", "-o", "name")))
        except BaseException:
            self._restore_machine()  # the folder stays, for its logs
            self._held.close()
            raise

    def down(self) -> None:
        """Ends the cluster and removes all of it that is outside the cache. Does nothing where there is none."""
        self._hold()
        self._remove()
        self._held.close()

    def kill(self, component: str) -> None:
        """Ends a component by SIGKILL. Pods' containers go on without kubelet or containerd, as on any node."""
        self._processes.kill(component)

    def start(self, component: str) -> None:
        """Starts a component (again), and returns when it answers."""
        self._processes.start(component, self._command(component))
        self._processes.wait_ready(component, lambda: self._answers(component))

    def status(self) -> dict[str, int | None]:
        """The process of each component, None for one that does not run."""
        return {name: self._processes.pid(name) for name in COMPONENTS}

    def load_image(self, archive: Path) -> list[str]:
        """Imports an image archive (OCI or Docker); returns its names for pods. Nothing can be pulled, so their imagePullPolicy must not be Always."""
        output = node.ctr(self._processes, self.state, "images", "import", str(archive))
        return [line.split()[1] for line in output.splitlines() if line.startswith("unpacking ")]

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        command = [f"{self._facts().programs}/kubectl", *arguments]
        return self._processes.run(command, stdin=stdin, KUBECONFIG=str(self.kubeconfig), KUBECACHEDIR=str(self.state / "kubectl-cache"))

    def _command(self, component: str) -> list[str]:
        if component == "containerd":
            return node.containerd_command(self._processes, self.state)
        if component == "kubelet":
            return node.kubelet_command(self._processes, self.state, self._facts())
        if component in CONTROL_PLANE:
            return control_plane.command(component, self.state, self._facts())
        raise ValueError(f"no component {component!r}: expected one of {', '.join(COMPONENTS)}")

    def _answers(self, component: str) -> bool:
        return node.containerd_answers(self._processes, self.state) if component == "containerd" else control_plane.answers(component, self._facts())

    def _prepare(self, programs: Path, *, with_node: bool, crowded: bool) -> None:
        if with_node and os.geteuid() != 0:
            raise ClusterError("a cluster with a node needs root, for mounts, control groups and network namespaces: be root, or bring up the API alone")
        if with_node and node.has_address(NODE_ADDRESS):
            raise ClusterError(f"{NODE_ADDRESS} is on this machine, and not by the cluster of {self.state}: take down the cluster that it belongs to")
        self.state.mkdir(mode=0o711, parents=True)
        (self.state / MARKER).touch()
        made = [hidden for hidden in node.HIDDEN if with_node and not Path(hidden).exists()]
        facts = Facts(with_node, str(programs), choose_ports(node=with_node), node.read_sysctls() if with_node else {}, made, crowded)
        facts.save(self.state)
        credentials.make(self.state / "credentials", server=facts.server, node=node.NAME, addresses=(NODE_ADDRESS, "127.0.0.1"))
        if with_node:
            # Before anything connects to it: the traffic would leave the machine.
            subprocess.run(["ip", "address", "add", f"{NODE_ADDRESS}/32", "dev", "lo"], check=True)
            for hidden in made:
                Path(hidden).mkdir(parents=True)
            make_cgroup(node.CGROUP)

    def _up_node(self) -> None:
        node.write_settings(self.state, self._facts())
        node.start_namespace(self._processes, self.state)
        self.start("containerd")
        self.load_image(artifacts.pause_image())
        self.start("kubelet")
        self.kubectl("create", "-f", "-", stdin=json.dumps(node.witness()))
        self._processes.start(node.WITNESS, node.witness_command(self.state, self._facts(), self.kubeconfig))
        ready = ("get", "nodes", "-o", 'jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}')
        self._processes.wait_ready("kubelet", lambda: self.kubectl(*ready) == "True True")

    def _remove(self) -> None:
        self._restore_machine()
        if self.state.exists():
            if any(self.state.iterdir()) and not (self.state / MARKER).exists():
                raise ClusterError(f"{self.state} is not a folder of this tool, and is left alone: name another with --state")
            for path in self.state.iterdir():
                if path.name != MARKER:  # it goes last, so that a removal that was cut short can be done again
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            shutil.rmtree(self.state)

    def _restore_machine(self) -> None:
        self._processes.kill_all()
        facts = Facts.load(self.state)
        if facts and facts.node:
            kill_cgroup(node.CGROUP)
            wait_until("the end of the pods' network interfaces", lambda: not node.has_address(node.POD_GATEWAY), 180)  # sockets between killed pods keep them
            if node.has_address(NODE_ADDRESS):
                subprocess.run(["ip", "address", "del", f"{NODE_ADDRESS}/32", "dev", "lo"], check=True)
            node.write_sysctls(facts.sysctls)
            for hidden in facts.made:
                with suppress(OSError):  # never made, or another containerd has come to use it
                    os.rmdir(hidden)
        # Done only once: the address might belong to another cluster by the next time.
        Facts.forget(self.state)

    def _hold(self) -> None:
        self._held.close()
        try:
            self._held.enter_context(artifacts.locked("state" + str(self.state).replace("/", "-"), wait=False))
        except BlockingIOError:
            raise ClusterError(f"another process is using the cluster in {self.state}: end it first, or name another folder with --state") from None

    def _facts(self) -> Facts:
        facts = Facts.load(self.state)
        if facts is None:
            raise ClusterError(f"no cluster in {self.state}: bring one up first")
        return facts


def install() -> None:
    """Installs what is missing of PACKAGES, for Debian; needs root."""
    query = subprocess.run(["dpkg-query", "-W", "-f", "${Package} ${Status}\n", *PACKAGES], capture_output=True, text=True).stdout
    missing = [name for name in PACKAGES if f"{name} install ok installed" not in query.splitlines()]
    for name in set(SERVICES) & set(missing):
        # Masked beforehand it can do neither, and ours is another process with its own folders.
        service = Path(f"/etc/systemd/system/{name}.service")
        service.parent.mkdir(parents=True, exist_ok=True)
        if not service.is_symlink():
            service.symlink_to("/dev/null")
    if missing:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
            subprocess.run(["apt-get", "--quiet", "--quiet", "--option", "DPkg::Lock::Timeout=300", *command], check=True, env=environment)
    print(f"installed: {' '.join(missing) or 'nothing, all is there'}")


def main() -> int:
    parser = argparse.ArgumentParser(description="A real Kubernetes on this machine for the cluster tests.")
    parser.add_argument("--state", type=Path, help="the cluster's folder (default: hiernas-cluster in the temporary directory)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("install", help="install the Debian packages that are missing (root)")
    commands.add_parser("build", help="build Kubernetes' programs and the pause image, unless the cache has them")
    commands.add_parser("up", help="start a cluster").add_argument("--no-node", action="store_true", help="the API alone: no root, no containers")
    commands.add_parser("down", help="remove it")
    commands.add_parser("status", help="which components run")
    for name in ("kill", "start"):
        commands.add_parser(name, help=f"{name} one component").add_argument("component", choices=COMPONENTS)
    commands.add_parser("load-image", help="give the node an image").add_argument("archive", type=Path)
    arguments = parser.parse_args()
    began = time.monotonic()
    try:
        _run(arguments, Cluster(arguments.state))
    except (ClusterError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.command != "status":
        print(f"{arguments.command} took {time.monotonic() - began:.1f} s")
    return 0


def _run(arguments: argparse.Namespace, cluster: Cluster) -> None:
    match arguments.command:
        case "install":
            install()
        case "build":
            print(artifacts.programs(), artifacts.pause_image(), sep="\n")
        case "up":
            cluster.up(node=not arguments.no_node)
            print(f"export KUBECONFIG={cluster.kubeconfig} PATH={artifacts.programs()}:$PATH")
        case "down":
            cluster.down()
        case "status":
            for name, pid in cluster.status().items():
                print(f"{name:24} {pid or '-'}")
        case "kill":
            cluster.kill(arguments.component)
        case "start":
            cluster.start(arguments.component)
        case "load-image":
            print(*cluster.load_image(arguments.archive), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
