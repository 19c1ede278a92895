"""Prepared data: what is damaged or not what was asked for is refused, and a search never opens the test split."""

import dataclasses
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from safetensors.numpy import save

import search.data
from pipeline import prepare
from pipeline.errors import ConfigError, HiernasError
from search.data import FinalTraining, SearchData, open_search, open_test_split
from search.dataset import SPLITS, DataError, Dataset, Split
from search.evolution import Evolution, RandomSearch

CPU = torch.device("cpu")
DIGITS_DIGEST = "f36ac33f93b0612473392bbbfd28363b4e357d90e4201bde56e668b9b354d641"
"""Of the prepared digits, on every machine. Another one is another data set: raise it only on purpose."""


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared once; read only."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    prepare.prepare_digits(folder)
    return folder


def write(folder: Path, change: Callable[[dict[str, dict[str, numpy.ndarray[Any, Any]]]], None] = lambda _: None) -> str:
    """A small data set of 3 classes, 2 channels, 4×4, changed before its digests are taken; its own digest."""
    random = numpy.random.default_rng(1)
    tensors = {
        part: {
            "images": random.integers(0, 256, (count, 2, 4, 4), dtype="uint8"),
            "labels": numpy.arange(count, dtype="int64") % 3,
        }
        for part, count in zip(SPLITS, (12, 6, 5), strict=True)
    }
    change(tensors)
    return write_tensors(folder, tensors)


def write_tensors(folder: Path, tensors: dict[str, dict[str, numpy.ndarray[Any, Any]]]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    splits = {}
    for part, count in zip(SPLITS, (12, 6, 5), strict=True):
        data = save(tensors[part])
        (folder / f"{part}.safetensors").write_bytes(data)
        splits[part] = Split(f"{part}.safetensors", prepare.hashlib.sha256(data).hexdigest(), count)
    dataset = Dataset("small", 3, 2, 4, (100.0, 120.5), (50.0, 70.25), splits)
    (folder / "dataset.json").write_bytes(dataset.to_json())
    return dataset.digest


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
    plain = json.loads((tmp_path / "dataset.json").read_bytes())
    plain["splits"]["test"], plain["splits"]["validation"] = plain["splits"]["validation"], plain["splits"]["test"]
    (tmp_path / "dataset.json").write_text(json.dumps(plain))
    with pytest.raises(DataError, match=f"the run was begun with {digest}"):
        open_search(tmp_path, digest, CPU)


def test_the_bytes_that_are_checked_are_the_bytes_that_are_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One read a file: a file exchanged in between cannot slip in."""
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


Tensors = dict[str, dict[str, numpy.ndarray[Any, Any]]]


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
    dataset = Dataset.from_json((tmp_path / "dataset.json").read_bytes())
    data = pickle.dumps({"images": 1})
    (tmp_path / "train.safetensors").write_bytes(data)
    split = Split("train.safetensors", prepare.hashlib.sha256(data).hexdigest(), 12)
    changed = dataclasses.replace(dataset, splits=dataset.splits | {"train": split})
    (tmp_path / "dataset.json").write_bytes(changed.to_json())
    with pytest.raises(DataError, match="is no safetensors file"):
        open_search(tmp_path, changed.digest, CPU)


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


def description(tmp_path: Path) -> dict[str, Any]:
    write(tmp_path)
    plain: dict[str, Any] = json.loads((tmp_path / "dataset.json").read_bytes())
    return plain


def test_a_description_reads_back(tmp_path: Path) -> None:
    write(tmp_path)
    data = (tmp_path / "dataset.json").read_bytes()
    assert Dataset.from_json(data).to_json() == data
    spaced = json.dumps(json.loads(data), indent=7).encode()
    assert Dataset.from_json(spaced).digest == Dataset.from_json(data).digest


@pytest.mark.parametrize("field", ["name", "classes", "channels", "size", "mean", "std", "splits"])
def test_misspelt_and_missing_keys_are_refused(tmp_path: Path, field: str) -> None:
    plain = description(tmp_path)
    missing = {key: value for key, value in plain.items() if key != field}
    for wrong in (missing, missing | {field + "s": plain[field]}, plain | {field + "s": plain[field]}):
        with pytest.raises(DataError, match=rf"expected the fields .*{field}"):
            Dataset.from_json(json.dumps(wrong).encode())


@pytest.mark.parametrize("field", ["file", "sha256", "images"])
def test_misspelt_and_missing_keys_of_a_split_are_refused(tmp_path: Path, field: str) -> None:
    plain = description(tmp_path)
    split = plain["splits"]["train"]
    split[field + "x"] = split.pop(field)
    with pytest.raises(DataError, match=rf"split 'train' has .*expected the fields .*{field}"):
        Dataset.from_json(json.dumps(plain).encode())


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
    place: Any = plain
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(DataError):
        Dataset.from_json(json.dumps(plain).encode())


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
        Dataset.from_json(json.dumps(plain).encode())


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


def test_a_search_never_touches_the_test_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = write(tmp_path)
    read: list[str] = []
    original = search.data._read
    monkeypatch.setattr(search.data, "_read", lambda path, split: read.append(path.name) or original(path, split))
    open_search(tmp_path, digest, CPU)
    assert read == ["train.safetensors", "validation.safetensors"]


def test_a_final_training_opens_the_test_split_of_its_own_data(tmp_path: Path) -> None:
    digest = write(tmp_path)
    images = open_test_split(tmp_path, FinalTraining(run_of(SimpleNamespace(kind="fixed"), digest)), CPU)
    assert images.images.shape == (5, 2, 4, 4)
    with pytest.raises(DataError, match="the run was begun with 1111"):
        open_test_split(tmp_path, FinalTraining(run_of(SimpleNamespace(kind="fixed"), "1" * 64)), CPU)


def test_digits_are_the_same_bytes_everywhere(digits: Path) -> None:
    dataset = Dataset.from_json((digits / "dataset.json").read_bytes())
    assert dataset.digest == DIGITS_DIGEST
    assert [dataset.splits[part].images for part in SPLITS] == [1000, 400, 397]
    assert (dataset.classes, dataset.channels, dataset.size) == (10, 1, 8)


def test_digits_hold_every_image_once_with_its_label(digits: Path) -> None:
    from safetensors.numpy import load_file
    from sklearn.datasets import load_digits

    parts = [load_file(digits / f"{part}.safetensors") for part in SPLITS]
    found = sorted((part["images"][at].tobytes(), int(part["labels"][at])) for part in parts for at in range(len(part["labels"])))
    bunch = load_digits()
    expected = sorted((image.astype("uint8").tobytes(), int(label)) for image, label in zip(bunch.images, bunch.target, strict=True))
    assert found == expected
    assert max(int(part["images"].max()) for part in parts) == 16


def test_normalised_digits_have_mean_0_and_deviation_1(digits: Path) -> None:
    train = open_search(digits, DIGITS_DIGEST, CPU).train.images.double()
    assert float(train.mean()) == pytest.approx(0, abs=1e-6)
    assert float(train.std(correction=0)) == pytest.approx(1, abs=1e-6)


def test_moments_are_those_of_numpy() -> None:
    values = numpy.random.default_rng(3).integers(0, 256, (40, 6, 6), dtype="uint8")
    assert prepare._moments(values) == pytest.approx((values.mean(), values.std()), rel=1e-12)


def entries(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def test_preparing_again_writes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "a" / "digits"
    first = prepare.prepare_digits(folder)
    before = entries(folder)
    with caplog.at_level("INFO"):
        assert prepare.prepare_digits(folder) == first
    assert "already prepared and whole" in caplog.text
    assert entries(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["digits"]  # no temporary folder stays
    assert folder.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", ["dataset.json", "train.safetensors", "test.safetensors"])
def test_a_damaged_prepared_folder_is_named_and_left_alone(tmp_path: Path, digits: Path, name: str) -> None:
    folder = tmp_path / "digits"
    folder.mkdir()
    for path in digits.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    damage(folder / name, lambda data: data[:-3])
    before = entries(folder)
    with pytest.raises(HiernasError, match=rf"{folder}: is there already, but .* Move it away or delete it, then prepare again"):
        prepare.prepare_digits(folder)
    assert entries(folder) == before


def test_another_data_set_in_the_folder_is_named(digits: Path) -> None:
    with pytest.raises(HiernasError, match="it holds the data set 'digits', not 'cifar10'"):
        prepare.prepare_cifar("cifar10", digits, digits)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "digits").write_text("mine")
    with pytest.raises(HiernasError, match="is there already"):
        prepare.prepare_digits(tmp_path / "digits")


def test_a_failure_on_the_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full at each sync in turn."""
    messages: list[str] = []
    for stop in range(20):
        calls = 0

        def fsync(_handle: int, stop: int = stop) -> None:
            nonlocal calls
            calls += 1
            if calls > stop:
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fsync)
        folder = tmp_path / str(stop) / "digits"
        try:
            prepare.prepare_digits(folder)
        except HiernasError as error:
            messages.append(str(error))
            assert list(folder.parent.iterdir()) == []
        else:
            assert [path.name for path in folder.parent.iterdir()] == ["digits"]
            break
    assert len(messages) == 5
    assert all("No space left on device" in message for message in messages)
    assert calls == 6  # four files, their folder, and the parent once all is whole: a failure there loses nothing


def test_two_at_once_end_with_one_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process finishes just before our rename."""
    folder = tmp_path / "digits"
    original = Path.rename

    def rename(path: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", original)
        prepare.prepare_digits(folder)
        return original(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    assert prepare.prepare_digits(folder).digest == DIGITS_DIGEST
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


def test_an_absent_copy_of_cifar_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no intact copy of cifar100; .*cifar-100-python.*unpack cifar-100-python.tar.gz"):
        prepare.prepare_cifar("cifar100", tmp_path, tmp_path / "cifar100")
    with pytest.raises(ConfigError, match="data set 'mnist' is not known; allowed: cifar10, cifar100"):
        prepare.prepare_cifar("mnist", tmp_path, tmp_path / "mnist")
    assert list(tmp_path.iterdir()) == []


class Hostile:
    """A pickle that writes a file when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.target,)


def test_a_forged_copy_of_cifar_is_never_unpickled(tmp_path: Path) -> None:
    from torchvision.datasets import CIFAR10

    target, source = tmp_path / "ran", tmp_path / "source" / CIFAR10.base_folder
    source.mkdir(parents=True)
    for name in [name for name, _ in CIFAR10.train_list + CIFAR10.test_list] + [CIFAR10.meta["filename"]]:
        (source / name).write_bytes(pickle.dumps(Hostile(target)))
    with pytest.raises(ConfigError, match="holds no intact copy"):
        prepare.prepare_cifar("cifar10", source.parent, tmp_path / "cifar10")
    assert not target.exists()
    pickle.loads((source / "test_batch").read_bytes())
    assert target.exists()  # it would have run


def test_cifar_is_split_four_to_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    class Small:
        """50 training images whose every byte is their number; label = number."""

        base_folder, filename, url = "x", "x", "x/x"

        def __init__(self, root: str, train: bool, download: bool) -> None:
            assert not download
            numbers = numpy.arange(50) if train else numpy.arange(200, 210)
            self.data = numpy.broadcast_to(numbers[:, None, None, None], (len(numbers), 32, 32, 3)).astype("uint8")
            self.data[:, 0, 1, 2] = 255  # row 0, column 1, blue
            self.targets = [int(number) % 100 for number in numbers]

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", Small)
    dataset = prepare.prepare_cifar("cifar100", tmp_path, tmp_path / "out")
    assert [dataset.splits[part].images for part in SPLITS] == [40, 10, 10]
    assert (dataset.classes, dataset.channels, dataset.size) == (100, 3, 32)
    from safetensors.numpy import load_file

    parts = {part: load_file(tmp_path / "out" / f"{part}.safetensors") for part in SPLITS}
    for part in ("train", "validation", "test"):
        assert parts[part]["images"].shape[1:] == (3, 32, 32)
        assert (parts[part]["images"][:, 0, 5, 5] % 100 == parts[part]["labels"]).all()
        assert (parts[part]["images"][:, 2, 0, 1] == 255).all()
    chosen = [int(label) for part in ("train", "validation") for label in parts[part]["labels"]]
    assert sorted(chosen) == list(range(50))
    assert chosen != list(range(50))
