"""The images of our Dockerfile, for the cluster of the tests."""

TAG = "test"
IMAGES = {name: f"localhost/hiernas-{name}:{TAG}" for name in ("controller", "worker")}
