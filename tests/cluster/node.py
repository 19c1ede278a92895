"""The node's side of a test cluster: containerd and the kubelet's settings, in a mount namespace of their own.

In that namespace the folders that they insist on (see HIDDEN) are folders of the cluster's state, and every mount of a pod is made there: the machine's own
folders are never written, and no mount is left behind however the cluster ends, for the kernel drops them with the namespace's last process.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

from artifacts import PAUSE_IMAGE
from facts import Facts
from processes import ClusterError, Processes

NAME = "hiernas-node"
CGROUP = "hiernas-cluster"
POD_NETWORK, POD_GATEWAY = "10.244.0.0/24", "10.244.0.1"
# Runtime sockets and runc's state; results of network plugins; the kubelet's device plugins; links to pods' logs. No setting moves these.
HIDDEN = ("/run/containerd", "/var/lib/cni", "/var/lib/kubelet", "/var/log/containers")
# What the kubelet and the network plugin set on the machine; put back when the cluster goes.
SYSCTLS = (
    *("net/ipv4/ip_forward", "vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops"),
    *("kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"),
)

# A second node that only says that it is alive. Where no node at all is ready, the controller manager takes itself for the one that is cut off, and evicts
# nothing: on a cluster of one node, pods of a dead one would never be marked for deletion, as they are on every real cluster.
WITNESS = "hiernas-witness"
WITNESS_SCRIPT = """\
while true; do
  ready='{"type": "Ready", "status": "True", "reason": "Witness", "lastHeartbeatTime": "'$(date --utc +%FT%TZ)'"}'
  "$1" --kubeconfig "$2" --cache-dir "$3" patch node hiernas-witness --subresource status --patch '{"status": {"conditions": ['"$ready"']}}'
  sleep 3
done
"""

CONTAINERD = """\
version = 2
root = "{state}/containerd"
state = "{state}/containerd-state"
disabled_plugins = ["io.containerd.internal.v1.opt"]  # it would make /opt/containerd
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true  # without it runc fails where CAP_SYS_RESOURCE is missing
  disable_tcp_service = true
  netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "{state}/registries"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"  # Debian's place
  conf_dir = "{state}/cni-config"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
"""


def socket(state: Path) -> Path:
    return state / "containerd.sock"


def write_settings(state: Path, facts: Facts) -> None:
    (state / "containerd.toml").write_text(CONTAINERD.format(state=state, socket=socket(state), pause=PAUSE_IMAGE))
    addresses: dict[str, object] = {"type": "host-local", "dataDir": f"{state}/cni-addresses", "ranges": [[{"subnet": POD_NETWORK}]]}
    # One route and no default route: a pod reaches this address and nothing else.
    addresses["routes"] = [{"dst": f"{facts.address}/32"}]
    network = {"cniVersion": "0.4.0", "name": "hiernas", "plugins": [{"type": "ptp", "ipMasq": False, "ipam": addresses}]}
    (state / "cni-config").mkdir()
    (state / "cni-config" / "hiernas.conflist").write_text(json.dumps(network))
    (state / "kubelet.json").write_text(json.dumps(_kubelet_settings(state, facts), indent=2))


def _kubelet_settings(state: Path, facts: Facts) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": facts.address,
        "healthzPort": facts.ports["kubelet"],
        "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": True}, "x509": {"clientCAFile": f"{state}/credentials/ca.crt"}},
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{socket(state)}",
        "clusterDNS": [facts.address],  # nobody answers there, at once; without one each pod gets a warning
        "clusterDomain": "cluster.local",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "oomScoreAdj": 0,  # the default, -999, needs CAP_SYS_RESOURCE
        # A machine with little disk left is no reason to evict pods or to remove images that can't be pulled again.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        # Or an image that one test pulls by a Secret would be lost to those which have it under another name since it was loaded.
        "imagePullCredentialsVerificationPolicy": "NeverVerify",
        # Four tries within the grace period that the controller manager is given.
        "nodeStatusUpdateFrequency": "3s",
        "nodeLeaseDurationSeconds": 12,
        "makeIPTablesUtilChains": False,
        "podLogsDir": f"{state}/pod-logs",
        "volumePluginDir": f"{state}/volume-plugins",
    }


def start_namespace(processes: Processes, state: Path) -> None:
    """Starts a process that does nothing but keep the mount namespace: containerd and the kubelet may then come and go."""
    lines = []
    for hidden in HIDDEN:
        folder = state / "hidden" / hidden.replace("/", "-").strip("-")
        folder.mkdir(parents=True)
        lines.append(f"mount --bind {shlex.quote(str(folder))} {hidden}")
    script = "\n".join(["set -e", *lines, f"exec -a {NAME} sleep infinity"])
    processes.start(NAME, ["unshare", "--mount", "--propagation", "private", "bash", "-c", script])
    processes.wait_ready(NAME, lambda: processes.pid(NAME) is not None)


def inside(processes: Processes, command: list[str]) -> list[str]:
    if (pid := processes.pid(NAME)) is None:
        raise ClusterError("this cluster has no node: bring it up with one")
    return ["nsenter", f"--mount=/proc/{pid}/ns/mnt", "--", *command]


def witness() -> dict[str, object]:
    taint = {"key": "hiernas/witness", "effect": "NoSchedule"}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": WITNESS}, "spec": {"unschedulable": True, "taints": [taint]}}


def witness_command(state: Path, facts: Facts, kubeconfig: Path) -> list[str]:
    return [
        "bash",
        "-c",
        f'exec -a {WITNESS} bash -c "$0" "$@"',
        WITNESS_SCRIPT,
        WITNESS,
        f"{facts.programs}/kubectl",
        str(kubeconfig),
        f"{state}/kubectl-cache",
    ]


def containerd_command(processes: Processes, state: Path) -> list[str]:
    return inside(processes, ["/usr/bin/containerd", "--config", str(state / "containerd.toml")])


def kubelet_command(processes: Processes, state: Path, facts: Facts) -> list[str]:
    flags = {
        "config": state / "kubelet.json",
        "kubeconfig": state / "credentials" / "kubelet.kubeconfig",
        "root-dir": state / "kubelet",
        "cert-dir": state / "kubelet" / "pki",
        "hostname-override": NAME,
        "node-ip": facts.address,  # not a 127 address: those are refused
    }
    return inside(processes, [f"{facts.programs}/kubelet", *(f"--{name}={value}" for name, value in flags.items())])


def ctr(processes: Processes, state: Path, *arguments: str) -> str:
    return processes.run(["ctr", "--address", str(socket(state)), "--namespace", "k8s.io", *arguments])


def containerd_answers(processes: Processes, state: Path) -> bool:
    try:
        ctr(processes, state, "version")
    except ClusterError:
        return False
    return True


def read_sysctls() -> dict[str, str]:
    return {name: (Path("/proc/sys") / name).read_text().strip() for name in SYSCTLS}


def write_sysctls(values: dict[str, str]) -> None:
    for name, value in values.items():
        path = Path("/proc/sys") / name
        if path.read_text().strip() != value:
            path.write_text(value)


def has_address(address: str) -> bool:
    """Whether an interface of this machine has it. The pods' gateway is at this machine's end of each pod's network, and goes with the pod's namespace."""
    return f" {address}/" in subprocess.run(["ip", "-4", "-oneline", "address"], capture_output=True, text=True, check=True).stdout
