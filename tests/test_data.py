"""Prepared data: what is damaged or not what was asked for is refused, and a search never opens the test split."""

import dataclasses
import functools
import hashlib
import json
import operator
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from safetensors.numpy import save

from search.data import FinalTraining, SearchData, open_search, open_test_split
from search.dataset import SPLITS, DataError, Dataset, Split
from search.evolution import Evolution, RandomSearch

CPU = torch.device("cpu")
Tensors = dict[str, dict[str, numpy.ndarray[Any, Any]]]


def write(folder: Path, change: Callable[[Tensors], object] = lambda _: None) -> str:
    """A small data set of 3 classes, 2 channels, 4×4, changed before its digests are taken; its own digest."""
    random = numpy.random.default_rng(1)
    counts = dict(zip(SPLITS, (12, 6, 5), strict=True))
    tensors: Tensors = {
        part: {"images": random.integers(0, 256, (count, 2, 4, 4), dtype="uint8"), "labels": numpy.arange(count, dtype="int64") % 3}
        for part, count in counts.items()
    }
    change(tensors)
    splits = {part: write_split(folder / f"{part}.safetensors", save(tensors[part]), count) for part, count in counts.items()}
    return describe(folder, Dataset("small", 3, 2, 4, (100.0, 120.5), (50.0, 70.25), splits))


def write_split(path: Path, data: bytes, count: int) -> Split:
    path.write_bytes(data)
    return Split(path.name, hashlib.sha256(data).hexdigest(), count)


def describe(folder: Path, dataset: Dataset) -> str:
    (folder / "dataset.json").write_bytes(dataset.to_json())
    return dataset.digest


def described(folder: Path) -> Dataset:
    return Dataset.from_json((folder / "dataset.json").read_bytes())


def description(folder: Path) -> dict[str, Any]:
    """The description of a small data set, to be changed."""
    write(folder)
    plain: dict[str, Any] = json.loads((folder / "dataset.json").read_bytes())
    return plain


def inside(plain: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """The object that holds the last key of a path."""
    return functools.reduce(operator.getitem, path[:-1], plain)


def read(plain: object) -> Dataset:
    return Dataset.from_json(json.dumps(plain).encode())


def test_a_search_reads_normalised_images(tmp_path: Path) -> None:
    digest = write(tmp_path)
    data = open_search(tmp_path, digest, CPU)
    assert (data.train.images.shape, data.validation.images.shape) == ((12, 2, 4, 4), (6, 2, 4, 4))
    assert (data.train.images.dtype, data.train.labels.dtype) == (torch.float32, torch.int64)
    raw = numpy.random.default_rng(1).integers(0, 256, (12, 2, 4, 4), dtype="uint8")
    expected = (raw.astype("float32") - numpy.float32([100, 120.5])[None, :, None, None]) / numpy.float32([50, 70.25])[None, :, None, None]
    numpy.testing.assert_array_equal(data.train.images.numpy(), expected)
    assert data.train.labels.tolist() == [0, 1, 2] * 4


def damage(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("part", ["train", "validation"])
@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: data + b"\0",
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: data[:40] + bytes([data[40] ^ 128]) + data[41:],
    ],
    ids=["truncated", "empty", "longer", "bit of the last label", "bit of the header's length", "bit of the header"],
)
def test_a_damaged_file_is_refused(tmp_path: Path, part: str, change: Callable[[bytes], bytes]) -> None:
    digest = write(tmp_path)
    damage(tmp_path / f"{part}.safetensors", change)
    with pytest.raises(DataError, match=rf"{part}\.safetensors: has SHA-256 .* dataset\.json says .* prepare it again"):
        open_search(tmp_path, digest, CPU)


def test_swapped_files_are_refused(tmp_path: Path) -> None:
    digest = write(tmp_path)
    test, validation = (tmp_path / f"{part}.safetensors" for part in ("test", "validation"))
    test.rename(tmp_path / "other")
    validation.rename(test)
    (tmp_path / "other").rename(validation)
    with pytest.raises(DataError, match=r"validation\.safetensors: has SHA-256"):
        open_search(tmp_path, digest, CPU)


def test_splits_swapped_in_the_description_are_another_data_set(tmp_path: Path) -> None:
    digest = write(tmp_path)
    dataset = described(tmp_path)
    describe(tmp_path, dataclasses.replace(dataset, splits=dict(zip(SPLITS, (dataset.splits[part] for part in ("train", "test", "validation")), strict=True))))
    with pytest.raises(DataError, match=f"the run was begun with {digest}"):
        open_search(tmp_path, digest, CPU)


def test_the_bytes_that_are_checked_are_the_bytes_that_are_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One read a file: a file exchanged in between cannot slip in. And a search never touches the test file."""
    digest = write(tmp_path)
    reads: list[str] = []
    original = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        reads.append(path.name)
        data = original(path)
        path.unlink()
        return data

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    open_search(tmp_path, digest, CPU)
    assert reads == ["dataset.json", "train.safetensors", "validation.safetensors"]


def _set(part: str, tensor: str, change: Callable[[numpy.ndarray[Any, Any]], numpy.ndarray[Any, Any]]) -> Callable[[Tensors], None]:
    def apply(tensors: Tensors) -> None:
        tensors[part][tensor] = change(tensors[part][tensor])

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("train", "images", lambda x: x.astype("float32")), r"images are torch.float32 .* expected uint8 \(12, 2, 4, 4\)"),
        (_set("train", "images", lambda x: x[:-1]), r"images are torch.uint8 \(11, .* expected uint8 \(12, 2, 4, 4\)"),
        (_set("train", "images", lambda x: numpy.ascontiguousarray(x[:, :, :, :3])), r"\(12, 2, 4, 3\), expected"),
        (_set("validation", "labels", lambda x: x.astype("int32")), r"labels are torch.int32 \(6,\), expected int64 \(6,\)"),
        (_set("validation", "labels", lambda x: x[:5]), r"labels are torch.int64 \(5,\), expected int64 \(6,\)"),
        (_set("validation", "labels", lambda x: x + 1), r"labels lie in 1 … 3, expected 0 … 2"),
        (_set("train", "labels", lambda x: x - 1), r"labels lie in -1 … 1, expected 0 … 2"),
        (lambda t: t["train"].pop("labels"), r"holds the tensors \['images'\], expected images and labels"),
        (lambda t: t["train"].update(more=t["train"]["labels"]), r"holds the tensors .*'more'"),
    ],
)
def test_what_a_file_holds_is_checked(tmp_path: Path, change: Callable[[Tensors], None], message: str) -> None:
    digest = write(tmp_path, change)
    with pytest.raises(DataError, match=message):
        open_search(tmp_path, digest, CPU)


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    dataset = described(tmp_path)
    split = write_split(tmp_path / "train.safetensors", pickle.dumps({"images": 1}), 12)
    digest = describe(tmp_path, dataclasses.replace(dataset, splits=dataset.splits | {"train": split}))
    with pytest.raises(DataError, match="is no safetensors file"):
        open_search(tmp_path, digest, CPU)


def test_absent_data_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.json: cannot be read .* prepare the data set there"):
        open_search(tmp_path, "0" * 64, CPU)
    digest = write(tmp_path)
    (tmp_path / "train.safetensors").unlink()
    with pytest.raises(DataError, match=r"train\.safetensors: cannot be read .* prepare it again"):
        open_search(tmp_path, digest, CPU)


def test_images_that_do_not_fit_are_the_machines_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = write(tmp_path)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.Tensor, "to", full)
    with pytest.raises(DataError, match="12 images do not fit on cpu"):
        open_search(tmp_path, digest, CPU)


def test_a_description_reads_back(tmp_path: Path) -> None:
    write(tmp_path)
    data = (tmp_path / "dataset.json").read_bytes()
    assert Dataset.from_json(data).to_json() == data
    spaced = json.dumps(json.loads(data), indent=7).encode()
    assert Dataset.from_json(spaced).digest == Dataset.from_json(data).digest


FIELDS = [("name",), ("classes",), ("channels",), ("size",), ("mean",), ("std",), ("splits",)]
FIELDS_OF_A_SPLIT = [("splits", "train", field) for field in ("file", "sha256", "images")]


@pytest.mark.parametrize("path", [*FIELDS, *FIELDS_OF_A_SPLIT], ids=".".join)
@pytest.mark.parametrize("also", [(), ("x",), ("", "x")], ids=["missing", "misspelt", "twice"])
def test_misspelt_and_missing_keys_are_refused(tmp_path: Path, path: tuple[str, ...], also: tuple[str, ...]) -> None:
    plain = description(tmp_path)
    place, field = inside(plain, path), path[-1]
    value = place.pop(field)
    place.update({field + ending: value for ending in also})
    where = "split 'train'" if path in FIELDS_OF_A_SPLIT else "dataset.json"
    with pytest.raises(DataError, match=rf"{where} has .*expected the fields .*{field}"):
        read(plain)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("name",), "Digits/.."), (("name",), 7), (("classes",), 0), (("classes",), True), (("classes",), 10.0), (("size",), "8"),
        (("channels",), 1), (("mean",), [1.0]), (("mean",), "12"), (("mean",), ["1", "2"]), (("mean",), [1, 2]), (("mean",), None),
        (("std",), [1.0, 0.0]), (("std",), [1.0, -1.0]), (("std",), [1.0, True]), (("splits",), []), (("splits",), {}),
        (("splits", "train"), None), (("splits", "train", "file"), "../train.safetensors"), (("splits", "train", "file"), 3),
        (("splits", "train", "file"), "test.safetensors"), (("splits", "train", "sha256"), "0" * 63),
        (("splits", "train", "sha256"), "A" * 64), (("splits", "train", "images"), 0), (("splits", "train", "images"), True),
        (("splits", "train", "images"), 1.5),
    ],
)  # fmt: skip
def test_wrong_values_of_a_description_are_refused(tmp_path: Path, path: tuple[str, ...], value: object) -> None:
    plain = description(tmp_path)
    inside(plain, path)[path[-1]] = value
    with pytest.raises(DataError):
        read(plain)


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"null", b"{", b"\xff", b"[" * 100_000, b" " * 2_000_000, b'{"name": 1, "name": 1}', b'{"mean": NaN}', b'{"mean": -Infinity}'],
    ids=["nothing", "list", "null", "open", "not UTF-8", "deep", "large", "double key", "NaN", "Infinity"],
)  # fmt: skip
def test_hostile_bytes_are_a_data_error(data: bytes) -> None:
    with pytest.raises(DataError, match=r"dataset\.json"):
        Dataset.from_json(data)


def test_a_double_key_is_refused_where_all_else_is_right(tmp_path: Path) -> None:
    write(tmp_path)
    data = (tmp_path / "dataset.json").read_bytes()
    with pytest.raises(DataError, match="a key stands twice"):
        Dataset.from_json(data.replace(b'"classes": 3,', b'"classes": 3, "classes": 3,'))


def test_two_splits_of_the_same_bytes_are_refused(tmp_path: Path) -> None:
    """The test images under another file name, as validation images."""
    plain = description(tmp_path)
    plain["splits"]["validation"]["sha256"] = plain["splits"]["test"]["sha256"]
    with pytest.raises(DataError, match="the same sha256"):
        read(plain)


def run_of(strategy: object, digest: str = "0" * 64) -> Any:
    """The part of a run that the key looks at."""
    return SimpleNamespace(name="demo", strategy=strategy, data=SimpleNamespace(name="small", digest=digest))


def test_a_search_cannot_open_the_test_split(tmp_path: Path) -> None:
    digest = write(tmp_path)
    for strategy in (Evolution(), RandomSearch()):
        with pytest.raises(ValueError, match=r"run 'demo' is a search .* never opened by a search"):
            FinalTraining(run_of(strategy, digest))
    for key in (None, digest, run_of(SimpleNamespace(kind="fixed"), digest)):
        with pytest.raises(TypeError, match="opened with a FinalTraining"):
            open_test_split(tmp_path, key, CPU)
    (tmp_path / "test.safetensors").unlink()  # nor does a search need it
    data = open_search(tmp_path, digest, CPU)
    assert {field.name for field in dataclasses.fields(SearchData)} == {"train", "validation"}
    assert not hasattr(data, "__dict__")


def test_a_final_training_opens_the_test_split_of_its_own_data(tmp_path: Path) -> None:
    digest = write(tmp_path)
    images = open_test_split(tmp_path, FinalTraining(run_of(SimpleNamespace(kind="fixed"), digest)), CPU)
    assert images.images.shape == (5, 2, 4, 4)
    with pytest.raises(DataError, match="the run was begun with 1111"):
        open_test_split(tmp_path, FinalTraining(run_of(SimpleNamespace(kind="fixed"), "1" * 64)), CPU)
