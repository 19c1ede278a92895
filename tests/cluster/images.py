"""The images of our Dockerfile, built for the tests' cluster and brought into it."""

import os
import subprocess
from pathlib import Path

from cluster import Cluster

ROOT = Path(__file__).parents[2]
TAG = "test"
IMAGES = {name: f"localhost/hiernas-{name}:{TAG}" for name in ("controller", "worker", "store")}
BASE = "localhost/hiernas-base:bookworm"


def settings(tag: str = TAG) -> dict[str, str]:
    """The environment in which images/build.sh works on this machine."""
    there = {name: value for name, value in os.environ.items() if name != "REGISTRY"}
    return there | {"TAG": tag, "ENGINE": "buildah", "BASE_IMAGE": BASE, "IMAGES": " ".join(IMAGES)}


def build() -> None:
    """The images as blobs in the cache; after a change of code alone some seconds."""
    subprocess.run([ROOT / "tests/cluster/base-image.sh"], check=True, stdout=subprocess.DEVNULL)
    for mode in ("build", "layout"):
        done = subprocess.run([ROOT / "images/build.sh", mode], env=settings(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise RuntimeError(f"images/build.sh {mode}: exit {done.returncode}\n{done.stdout[-4000:]}")


def ctr(cluster: Cluster) -> str:
    """The command that speaks to the node's containerd."""
    return f"ctr --address {cluster.state}/containerd.sock --namespace k8s.io"


def load(cluster: Cluster) -> None:
    """Only what containerd lacks is sent."""
    subprocess.run([ROOT / "images/build.sh", "load"], env=settings() | {"CTR": ctr(cluster)}, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    build()
