"""The images of our Dockerfile, built for the tests' cluster and brought into it."""

import os
import subprocess
from pathlib import Path

from cluster import Cluster

ROOT = Path(__file__).parents[2]
TAG = "test"
IMAGES = {name: f"localhost/hiernas-{name}:{TAG}" for name in ("controller", "worker")}
BASE = "localhost/hiernas-base:bookworm"


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "REGISTRY"} | {"TAG": TAG, "ENGINE": "buildah"}


def build() -> None:
    """Both images as blobs in the cache; after a change of code alone some seconds."""
    subprocess.run([ROOT / "tests/cluster/base-image.sh"], check=True, stdout=subprocess.DEVNULL)
    for mode in ("build", "layout"):
        done = subprocess.run(
            [ROOT / "images/build.sh", mode], env=_environment() | {"BASE_IMAGE": BASE}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode:
            raise RuntimeError(f"images/build.sh {mode}: exit {done.returncode}\n{done.stdout[-4000:]}")


def load(cluster: Cluster) -> None:
    """Only what containerd lacks is sent."""
    ctr = f"ctr --address {cluster.state}/containerd.sock --namespace k8s.io"
    subprocess.run([ROOT / "images/build.sh", "load"], env=_environment() | {"CTR": ctr}, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    build()
