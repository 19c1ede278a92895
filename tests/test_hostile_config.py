"""Configs that cannot work, by accident or on purpose: refused at the border, before anything is written."""

import os
import re
import time
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.prepare import prepare_digits

CONFIG = """
run: hostile
seed: 1
data: digits
space: liu2018-hierarchical
strategy: {{kind: evolution, initial: 2, initial_mutations: 10}}
recipe: {{extends: digits-small}}
limits: {{max_evaluations: 2, workers: 1}}
executor: {{kind: inline}}
data_root: {root}
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    prepare_digits(root / "digits")
    return root


class Refused:
    """Runs a config that must be refused; gives the message."""

    def __init__(self, folder: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.root, self.capsys = folder, root, capsys
        self.path, self.store = folder / "config.yaml", folder / "runs"

    def file(self, path: Path) -> str:
        assert main(["run", str(path), "--store", str(self.store)]) == 2
        error = self.capsys.readouterr().err
        assert "Traceback" not in error
        assert len(error) < 1000 + 2 * len(str(path))
        assert not self.store.exists()
        return error

    def text(self, text: str) -> str:
        self.path.write_text(text)
        return self.file(self.path)

    def with_line(self, line: str) -> str:
        """The config with one top-level key set."""
        key = line.partition(":")[0]
        return self.text(re.sub(f"(?m)^{key}:.*\n", "", CONFIG.format(root=self.root)) + line + "\n")


@pytest.fixture
def refused(tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    return Refused(tmp_path, prepared, capsys)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("recipe: {extends: digits-small, crop: 9, padding: 0}", ("recipe.crop is 9", "1 to 8")),
        ("recipe: {extends: digits-small, crop: 13, padding: 2}", ("recipe.crop is 13", "1 to 12")),
        ("recipe: {extends: digits-small, width: 100001}", ("recipe.width is 100001", "1 to 100000")),
        ("recipe: {extends: digits-small, cells: 100001}", ("recipe.cells is 100001", "1 to 100000")),
        ("recipe: {extends: digits-small, repeats: 1001}", ("recipe.repeats is 1001", "at most 1000")),
        ("recipe: {extends: digits-small, curve_points: 10001}", ("recipe.curve_points is 10001", "at most 10000")),
        ("executor: {memory_gib: 0}", ("executor.memory_gib is 0", "0.01 to 100000")),
        ("executor: {memory_gib: 0.001}", ("executor.memory_gib is 0.001", "0.01 to 100000")),
        ("executor: {memory_gib: 1.0e+300}", ("executor.memory_gib is 1e+300", "0.01 to 100000")),
        ("executor: {memory_gib: .inf}", ("executor.memory_gib",)),
        ("executor: {memory_gib: .nan}", ("executor.memory_gib",)),
        ("executor: {time_limit_seconds: 0}", ("executor.time_limit_seconds is 0", "1 to 10000000")),
        ("executor: {time_limit_seconds: 10000001}", ("executor.time_limit_seconds is 10000001", "1 to 10000000")),
        ("executor: {threads: 0}", ("executor.threads is 0", "1 to 1024")),
        ("constraints: {parameters: -1}", ("constraints.parameters is -1",)),
        ("seed: -1", ("field seed is -1", "0 to 9007199254740991")),
        ("seed: 9007199254740992", ("field seed is 9007199254740992", "0 to 9007199254740991")),
        ("seed: " + "9" * 5000, ("number of 5000 characters", "line")),
        ("seed: 0x" + "f" * 5000, ("number of 5002 characters",)),
        ("seed: 1" + ":59" * 300_000, ("number of 900001 characters",)),
        ("seed: 1" + ":59" * 300_000 + ".5", ("number of 900003 characters",)),
        ("seed: 2026-99-99", ("YAML", "month")),
        ("seed: !!int ''", ("YAML",)),
        ("seed: !!bool maybe", ("YAML",)),
        ("seed: !!timestamp never", ("YAML",)),
        ("seed: " + "[" * 5000, ("nested",)),
        ('data: "x\\0y"', ("field data is", "allowed")),
        ('data: "../../etc"', ("field data is '../../etc'", "allowed")),
        ('data: ""', ("field data is ''", "allowed")),
        ('data: "digits\\n"', ("field data is", "allowed")),
        ('data_root: "a\\0b"', ("field data_root is", "NUL")),
        ('data_root: "\\ud800"', ("config.yaml",)),
        ("data_root: " + "x" * 5000, ("field data_root is 'xxx", "…", "at most 4096")),
        ("data_root: " + "x" * 300, ("data set 'digits'", "cannot be read", "too long")),
        ('store: "a\\0b"', ("field store is", "NUL")),
        ("run: Demo", ("field run is 'Demo'", "at most 40")),
        ("run: " + "x" * 5000, ("field run is 'xxx", "…", "at most 40")),
        ("run: " + "x y " * 5000, ("field run is 'x y", "…", "at most 40")),
        ("recipe: " + "x" * 5000, ("recipe", "…", "digits-small")),
        ("space: " + "x" * 5000, ("space", "…", "liu2018-hierarchical")),
        ("strategy: {kind: " + "x" * 5000 + "}", ("strategy", "…")),
        ("x" * 900 + ": 1", ("unknown", "…", "allowed here: run,")),
        ("recipe: {extends: digits-small, milestones: " + str([2] * 5000) + "}", ("recipe.milestones", "…", "rising")),
    ],
    ids=lambda value: value[:50] if isinstance(value, str) else "",
)
def test_what_cannot_work_is_refused_by_name(refused: Refused, line: str, words: tuple[str, ...]) -> None:
    error = refused.with_line(line)
    for word in words:
        assert word in error
    assert "(given {'run'" not in error
    assert "memory_bytes" not in error


@pytest.mark.parametrize("name", ["train", "validation"])
@pytest.mark.parametrize("how", ["altered", "missing", "folder"])
def test_altered_data_is_refused_before_the_run_begins(tmp_path: Path, refused: Refused, name: str, how: str) -> None:
    prepare_digits(tmp_path / "data" / "digits")
    refused.root = tmp_path / "data"
    path = tmp_path / "data" / "digits" / f"{name}.safetensors"
    data = bytearray(path.read_bytes())
    path.unlink()
    if how == "altered":
        data[-1] ^= 1
        path.write_bytes(data)
    elif how == "folder":
        path.mkdir()
    error = refused.with_line("seed: 1")
    assert str(path) in error
    assert "hiernas data prepare digits" in error


def test_an_alias_is_refused_before_it_costs_anything(refused: Refused) -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30))
    began = time.monotonic()
    assert "alias *a0" in refused.text(bomb)
    assert "alias *a" in refused.with_line("seed: &a [*a]")
    assert time.monotonic() - began < 5


def test_only_a_regular_file_of_some_size_is_a_config(tmp_path: Path, refused: Refused) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/zero"), tmp_path / "pipe", tmp_path):
        assert f"{path}: is no regular file" in refused.file(path)
    assert "larger than 1048576 bytes" in refused.text("#" * (1024 * 1024 + 1))
    assert "cannot be read" in refused.file(tmp_path / "absent")
    assert "cannot be read" in refused.file(tmp_path / "a\0b")
    (tmp_path / "bytes").write_bytes(b"\xff")
    assert "cannot be read" in refused.file(tmp_path / "bytes")


def test_a_store_that_is_no_url_is_refused(tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(root=prepared))
    for command in (["run", str(path)], ["ls"]):
        assert main([*command, "--store", "http://[::1"]) == 2
        error = capsys.readouterr().err
        assert "store 'http://[::1'" in error
        assert "Traceback" not in error
    assert os.listdir(tmp_path) == ["config.yaml"]


def test_data_that_is_not_prepared_leaves_no_trace(refused: Refused) -> None:
    assert "hiernas data prepare absent" in refused.with_line("data: absent")
