"""Preparing data: the same bytes everywhere, whole or not at all, and no pickle is read that was not published."""

import os
import pickle
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.numpy import load_file

from pipeline import prepare
from pipeline.errors import ConfigError, HiernasError
from search.data import open_search
from search.dataset import SPLITS, Dataset

CPU = torch.device("cpu")
DIGITS_DIGEST = "f36ac33f93b0612473392bbbfd28363b4e357d90e4201bde56e668b9b354d641"
"""Of the prepared digits, on every machine. Another one is another data set: raise it only on purpose."""


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared once; read only."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    prepare.prepare_digits(folder)
    return folder


def test_digits_are_the_same_bytes_everywhere(digits: Path) -> None:
    dataset = Dataset.from_json((digits / "dataset.json").read_bytes())
    assert dataset.digest == DIGITS_DIGEST
    assert [dataset.splits[part].images for part in SPLITS] == [1000, 400, 397]
    assert (dataset.classes, dataset.channels, dataset.size) == (10, 1, 8)


def test_digits_hold_every_image_once_with_its_label(digits: Path) -> None:
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
    (folder / name).write_bytes((folder / name).read_bytes()[:-3])
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
    parts = {part: load_file(tmp_path / "out" / f"{part}.safetensors") for part in SPLITS}
    for part in ("train", "validation", "test"):
        assert parts[part]["images"].shape[1:] == (3, 32, 32)
        assert (parts[part]["images"][:, 0, 5, 5] % 100 == parts[part]["labels"]).all()
        assert (parts[part]["images"][:, 2, 0, 1] == 255).all()
    chosen = [int(label) for part in ("train", "validation") for label in parts[part]["labels"]]
    assert sorted(chosen) == list(range(50))
    assert chosen != list(range(50))
