"""What the test cluster is made of: Kubernetes' programs, the pause image and KWOK, built once and kept outside the work tree by the hash of what they were built from.

Must not remove anything from the cache: a branch with other versions may be using it.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCE = Path(__file__).parent / "binaries"
PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl")
PAUSE_IMAGE = "localhost/hiernas-pause:1"
KWOK, KWOK_VERSION = "sigs.k8s.io/kwok", "v0.8.0"
KWOK_STAGES = ("node/fast/node-initialize", "node/heartbeat/node-heartbeat", "pod/fast/pod-ready", "pod/fast/pod-complete", "pod/fast/pod-delete")


def cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "hiernas-cluster"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def locked(name: str, *, wait: bool = True) -> Iterator[None]:
    """Holds a lock that ends with this process, however it ends. BlockingIOError where another process holds it and `wait` is false."""
    with (cache_dir() / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def programs() -> Path:
    """The folder with Kubernetes' programs: KUBEBUILDER_ASSETS where it has all six (setup-envtest's own has three of them), else built from source."""
    ready = Path(os.environ.get("KUBEBUILDER_ASSETS") or "/nonexistent")
    if all((ready / name).exists() for name in PROGRAMS):
        return ready
    return _kept("kubernetes", ("main.go", "go.mod", "go.sum"), _build_programs, *_go())


def kwok() -> Path:
    """The folder with KWOK's program, which plays nodes and pods that are not there, and the stages that it plays, each named like its file."""
    return _kept("kwok", (), _build_kwok, *_go())


def _go() -> list[str]:
    commands = ["go", "version"], ["go", "env", "GOOS", "GOARCH"]
    return [subprocess.run(command, check=True, capture_output=True, text=True, cwd=SOURCE).stdout for command in commands]


def pause_image() -> Path:
    """The pause image as an archive that `ctr images import` reads."""
    return _kept("pause", ("pause.c",), _build_pause_image) / "pause.tar"


def _kept(name: str, sources: tuple[str, ...], build: Callable[[Path], None], *versions: str) -> Path:
    # This file too is an input: it has the flags.
    inputs = [(SOURCE / source).read_bytes() for source in sources] + [Path(__file__).read_bytes(), *(version.encode() for version in versions)]
    key = hashlib.sha256(b"\0".join(hashlib.sha256(data).digest() for data in inputs)).hexdigest()[:16]
    folder = cache_dir() / f"{name}-{key}"
    with locked(name):
        if not folder.exists():
            # Built beside it and renamed, so that what stands under the key is whole.
            with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=f"{name}-building-") as building:
                result = Path(building) / "result"
                result.mkdir()
                build(result)
                result.rename(folder)
    return folder


def _build_programs(folder: Path) -> None:
    found = re.search(r"k8s\.io/kubernetes v((\d+)\.(\d+)\.\d+)", (SOURCE / "go.mod").read_text())
    if not found:
        raise ValueError(f"{SOURCE / 'go.mod'} names no version of k8s.io/kubernetes: expected a line like 'k8s.io/kubernetes v1.36.3'")
    version, major, minor = found.groups()
    print(f"building Kubernetes {version} (6 minutes on 2 cores, kept in {cache_dir()}) …", flush=True)
    # Without these the API server calls itself v0.0.0, and clients that compare versions refuse it.
    stamps = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor}
    flags = " ".join(["-s -w", *(f"-X k8s.io/component-base/version.{key}={value}" for key, value in stamps.items())])
    command = ["go", "build", "-trimpath", "-ldflags", flags, "-o", str(folder / "kubernetes"), "."]
    subprocess.run(["nice", *command], check=True, cwd=SOURCE, env={**os.environ, "CGO_ENABLED": "0"})
    for name in PROGRAMS:
        (folder / name).symlink_to("kubernetes")


def _build_kwok(folder: Path) -> None:
    print(f"building KWOK {KWOK_VERSION} (2 minutes on 2 cores, kept in {cache_dir()}) …", flush=True)
    module = f"{KWOK}@{KWOK_VERSION}"
    command = ["go", "install", "-trimpath", "-ldflags", "-s -w", f"{KWOK}/cmd/kwok@{KWOK_VERSION}"]
    # Outside of any module: SOURCE is one, and its requirements are none of KWOK's.
    subprocess.run(["nice", *command], check=True, cwd=folder, env={**os.environ, "CGO_ENABLED": "0", "GOBIN": str(folder)})
    told = subprocess.run(["go", "mod", "download", "-json", module], check=True, capture_output=True, text=True, cwd=folder).stdout
    for stage in KWOK_STAGES:
        source = Path(json.loads(told)["Dir"]) / "kustomize" / "stage" / f"{stage}.yaml"
        (folder / source.name).write_bytes(source.read_bytes())


def _build_pause_image(folder: Path) -> None:
    program = folder / "pause"
    subprocess.run(["gcc", "-static", "-O2", "-s", "-o", str(program), str(SOURCE / "pause.c")], check=True)
    layer = _tar({"pause": program.read_bytes()})
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [PAUSE_IMAGE], "Layers": ["layer.tar"]}]
    archive = {"manifest.json": json.dumps(manifest).encode(), "config.json": json.dumps(config).encode(), "layer.tar": layer}
    (folder / "pause.tar").write_bytes(_tar(archive))


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
