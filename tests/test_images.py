"""The images' definition, without building them: what each may hold is in its requirements, and suffices for what it runs there."""

import json
import os
import re
import subprocess
import sys
import tomllib
from hashlib import sha256
from pathlib import Path
from urllib.request import urlopen

import pytest
from s3_server import S3Server

ROOT = Path(__file__).parent.parent
EXTRAS = {"controller": ("s3", "cluster"), "worker": ("s3", "worker")}
ABSENT = {
    "controller": {"torch", "numpy", "safetensors", "scikit-learn", "matplotlib", "jinja2", "triton", "pip", "uv"},
    "worker": {"kubernetes", "prometheus-client", "scikit-learn", "matplotlib", "torchvision", "pip", "uv"},
}
# Report, drawing and preparation of data run where somebody sits; training runs in workers.
NOT_FOR_CONTROLLERS = {"drawing", "explain", "page", "prepare", "report", "trainer"}
MODULES = {
    "controller": sorted({path.stem for path in (ROOT / "pipeline").glob("[a-z]*.py")} - NOT_FOR_CONTROLLERS),
    "worker": ["cli", "worker", "trainer", "s3"],
}
IMAGES = sorted(EXTRAS)
"""With our code. The third, `store`, has none of it."""

READY = "/docker-entrypoint-initaws.d/ready.d/bucket.py"
"""Where the store's server looks for what it runs once it answers; found in its source, and tried on the cluster."""

# A stand-in for the image's virtual environment: what the requirements don't name can't be imported.
IMPORTS = """
import importlib, importlib.machinery, importlib.metadata, json, re, sys
names, modules = json.loads(sys.argv[1])
there = importlib.metadata.packages_distributions()
class Only(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        of = {re.sub("[-_.]+", "-", one).lower() for one in there.get(name.partition(".")[0], ())}
        return super().find_spec(name, path, target) if not of or of & {*names, "hiernas"} else None
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Only
for module in modules:
    importlib.import_module(f"pipeline.{module}")
"""


def pins(image: str) -> dict[str, str]:
    """Names in an image's requirements, each with its whole entry."""
    text = (ROOT / "images" / f"requirements-{image}.txt").read_text()
    entries = re.split(r"\n(?=[a-z])", "\n".join(line for line in text.splitlines() if not line.startswith("#")).strip())
    return {entry.partition("==")[0]: entry for entry in entries}


def stages() -> dict[str, list[str]]:
    """Instructions of each stage of the Dockerfile, continued lines joined."""
    found: dict[str, list[str]] = {}
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.startswith("FROM "):
            found[line.rpartition(" AS ")[2]] = []
        if line and found:
            list(found.values())[-1].append(line)
    return found


def build(*arguments: str, **settings: str) -> str:
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "ENGINE": "echo", "TAG": "7", **settings}
    return subprocess.run([ROOT / "images" / "build.sh", *arguments], env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("image", [*IMAGES, "store"])
def test_every_requirement_of_an_image_is_pinned_with_hashes(image: str) -> None:
    assert [entry for entry in pins(image).values() if "==" not in entry or "--hash=sha256:" not in entry] == []


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_holds_what_its_extras_name_and_nothing_of_the_other_image(image: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *(one for extra in EXTRAS[image] for one in project["optional-dependencies"][extra])]
    assert {re.split(r"[<>=!~\[ ]", one)[0] for one in named} <= set(pins(image))
    assert ABSENT[image] & set(pins(image)) == set()


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_can_import_all_that_it_runs(image: str) -> None:
    program = [sys.executable, "-c", IMPORTS, json.dumps([list(pins(image)), MODULES[image]])]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_controller_that_needed_torch_would_be_found_out() -> None:
    program = [sys.executable, "-c", IMPORTS, json.dumps([list(pins("controller")), ["trainer"]])]
    assert "No module named 'torch'" in subprocess.run(program, cwd=ROOT, capture_output=True, text=True).stderr


@pytest.mark.parametrize("image", [*IMAGES, "store"])
def test_an_image_ends_with_the_code_as_a_numeric_user_who_is_not_root(image: str) -> None:
    instructions = stages()[image]
    assert instructions[0] == f"FROM {image}-dependencies AS {image}"
    layers = [line for line in instructions if line.startswith(("COPY", "ADD", "RUN"))]
    code = f"COPY images/bucket.py {READY}" if image == "store" else "COPY --from=code /opt/hiernas /opt/hiernas"
    assert layers == [code], "another layer would be made again at each change of code"
    users = [line.split()[1] for line in instructions if line.startswith("USER")]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]), "Kubernetes' runAsNonRoot refuses names"


def test_all_that_the_dockerfile_copies_is_there_and_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [line.split()[1] for lines in stages().values() for line in lines if line.startswith("COPY") and "--from" not in line]
    copied = [source.replace("${WORKER_REQUIREMENTS}", "images/requirements-worker.txt") for source in copied]
    assert [source for source in copied if not (ROOT / source).exists()] == []
    assert [source for source in copied if not any(Path(source).match(one) for one in kept)] == []


def test_no_certificate_index_or_secret_is_an_argument_or_variable_of_the_image() -> None:
    lines = [line for lines in stages().values() for line in lines if line.startswith(("ARG", "ENV"))]
    assert [line for line in lines if re.search("CERT|INDEX|PROXY|TOKEN|PASSWORD|SECRET", line, re.IGNORECASE)] == []


def test_the_build_passes_settings_as_secrets_and_never_as_arguments() -> None:
    said = build(SSL_CERT_FILE="/etc/ca.crt", UV_DEFAULT_INDEX="https://me:hunter2@index.example.org/", BASE_IMAGE="base:1", REGISTRY="r.example.org/t")
    assert "hunter2" not in said
    for image in IMAGES:
        [line] = [line for line in said.splitlines() if f"--target {image} " in line]
        assert f"--tag r.example.org/t/hiernas-{image}:7 " in line
        assert "--secret id=ca,src=/etc/ca.crt" in line
        assert "--build-arg BASE_IMAGE=base:1" in line


def test_the_version_that_the_scripts_read_is_the_projects() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"--build-arg VERSION={version} " in build()
    assert re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE) == [version]


def test_push_sends_both_images_and_the_store_only_when_it_is_named() -> None:
    assert build("push", REGISTRY="r.example.org").splitlines() == ["push r.example.org/hiernas-controller:7", "push r.example.org/hiernas-worker:7"]
    assert build("push", IMAGES="store").splitlines() == ["push localhost/hiernas-store:7"]
    with pytest.raises(subprocess.CalledProcessError) as error:
        build("push", IMAGES="stores")
    assert "known: controller, worker, store" in error.value.stderr


@pytest.mark.parametrize("before", [[], ["searches"]], ids=["new", "there"])
def test_the_store_makes_its_bucket_unless_it_is_there(before: list[str], tmp_path: Path) -> None:
    server = S3Server(tmp_path / "bucket")
    server.start()
    try:
        for _ in range(len(before) + 1):
            environment = {"AWS_ENDPOINT_URL": server.url, "BUCKET": "searches"}
            done = subprocess.run([sys.executable, "-S", ROOT / "images" / "bucket.py"], env=environment, capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (0, "")
        with urlopen(f"{server.url}/searches", timeout=10) as answer:
            assert b"<Name>searches</Name>" in answer.read()
        done = subprocess.run([sys.executable, ROOT / "images" / "bucket.py"], env=environment | {"BUCKET": "No"}, capture_output=True, text=True)
        assert (done.returncode, "could not be made: 400" in done.stderr) == (1, True)
    finally:
        server.kill()


def test_the_store_is_the_server_of_the_tests_and_lets_only_s3_in() -> None:
    (version,) = re.findall(r"^ministack==(\S+)", (ROOT / "tests" / "requirements-servers.txt").read_text(), re.MULTILINE)
    assert pins("store")["ministack"].startswith(f"ministack=={version} ")
    (line,) = [line for line in stages()["store"] if line.startswith("ENV")]
    assert {"SERVICES=s3", "S3_PERSIST=1", "SFTP_ENABLED=0", "IOT_MTLS_ENABLED=0"} <= set(line.split())
    assert 'ENTRYPOINT ["ministack"]' in stages()["store"]


def test_load_keeps_the_old_image_and_sends_only_the_blobs_that_containerd_lacks(tmp_path: Path) -> None:
    layout, sent = tmp_path / "layout", tmp_path / "sent"
    there, lacking = (sha256(text).hexdigest() for text in (b"torch", b"code"))
    (layout / "blobs" / "sha256").mkdir(parents=True)
    for file in ("lock", "oci-layout", "index.json", f"blobs/sha256/{there}", f"blobs/sha256/{lacking}"):
        (layout / file).touch()
    ctr = tmp_path / "ctr"
    ctr.write_text(f"""#!/bin/sh
case "$1 $2" in
  "images ls") echo "$4" | sed 's/name==//' ;;
  "content ls") echo sha256:{there} ;;
  "images tag") echo "tag $4 $5" >> {sent} ;;
  "images import") tar --list >> {sent} ;;
esac
""")
    ctr.chmod(0o755)
    build("load", str(layout), CTR=str(ctr))
    tags = [f"tag localhost/hiernas-{image}:7 localhost/hiernas-{image}:previous" for image in IMAGES]
    assert sent.read_text().splitlines() == [*tags, "oci-layout", "index.json", f"blobs/sha256/{lacking}"]
