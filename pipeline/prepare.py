"""Data sets made ready for workers: one safetensors file a split, and `dataset.json` with their digests. Nothing is downloaded."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, HiernasError
from search.dataset import SPLITS, DataError, Dataset, Split
from search.stream import Stream

if TYPE_CHECKING:
    import numpy

SPLIT_SEED = 2018
"""The split of each data set is drawn once and for all: it never depends on a run."""


def prepare_digits(folder: Path) -> Dataset:
    """scikit-learn's 1,797 real 8×8 grey images of digits (values 0 … 16): 1,000 train, 400 validation, 397 test."""
    there = _there(folder)
    if there is not None:
        return there
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = bunch.images.astype("uint8")[:, None]
    labels = bunch.target.astype("int64")
    order = Stream(SPLIT_SEED, "digits").sample(len(labels), len(labels))
    parts = {"train": order[:1000], "validation": order[1000:1400], "test": order[1400:]}
    return _write(folder, "digits", 10, {name: (images[part], labels[part]) for name, part in parts.items()})


def prepare_cifar(name: str, source: Path, folder: Path) -> Dataset:
    """CIFAR-10 or -100 from a local copy: 40,000 train and 10,000 validation of the training images, 10,000 test.

    torchvision checks the MD5 of every file of the known archive before it reads it, so only the published files are unpickled.
    """
    there = _there(folder)
    if there is not None:
        return there
    import torchvision

    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    try:
        train, test = (kind(str(source), train=part, download=False) for part in (True, False))
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"--source {source}: holds no intact copy of {name} as torchvision keeps it ({error})") from error
    import numpy

    order = Stream(SPLIT_SEED, name).sample(50_000, 50_000)
    images, labels = train.data.transpose(0, 3, 1, 2), numpy.asarray(train.targets, dtype="int64")
    splits = {part: (images[at], labels[at]) for part, at in (("train", order[:40_000]), ("validation", order[40_000:]))}
    splits["test"] = (test.data.transpose(0, 3, 1, 2), numpy.asarray(test.targets, dtype="int64"))
    return _write(folder, name, 10 if name == "cifar10" else 100, splits)


def _there(folder: Path) -> Dataset | None:
    """A data set that is prepared already and whole."""
    if not folder.exists():
        return None
    try:
        dataset = Dataset.from_json((folder / "dataset.json").read_bytes())
        for split in dataset.splits.values():
            if hashlib.sha256((folder / split.file).read_bytes()).hexdigest() != split.sha256:
                raise DataError(f"{split.file} is damaged")
    except (OSError, DataError) as error:
        raise HiernasError(f"{folder}: exists but is no whole prepared data set ({error}); move it away and prepare again") from error
    return dataset


def _write(folder: Path, name: str, classes: int, splits: "dict[str, tuple[numpy.ndarray[Any, Any], numpy.ndarray[Any, Any]]]") -> Dataset:
    """Write everything under another name, then rename it into place: there is never half a data set."""
    import numpy
    from safetensors.numpy import save

    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    try:
        described = {}
        for part in SPLITS:
            images, labels = (numpy.ascontiguousarray(array) for array in splits[part])
            data = save({"images": images, "labels": labels})
            _durable(work / f"{part}.safetensors", data)
            described[part] = Split(f"{part}.safetensors", hashlib.sha256(data).hexdigest(), len(labels))
        train = splits["train"][0].astype("float64")
        mean, std = (tuple(round(float(value), 6) for value in getattr(train, kind)(axis=(0, 2, 3))) for kind in ("mean", "std"))
        dataset = Dataset(name, classes, int(train.shape[1]), int(train.shape[2]), mean, std, described)
        _durable(work / "dataset.json", dataset.to_json())
        work.chmod(0o755)
        work.rename(folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return dataset


def _durable(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
