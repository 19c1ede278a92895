"""Data sets made ready for workers: one safetensors file a split, and `dataset.json` with their digests.

Nothing is downloaded, and nothing heavy is imported before it is needed. A folder appears whole or not at all, with the same
bytes on every machine; one that is there already is checked and never written to. The split is drawn once and for all.
"""

import hashlib
import logging
import math
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.durable import sync_folder, write_new
from pipeline.errors import ConfigError, HiernasError
from search.dataset import SPLITS, DataError, Dataset, Split
from search.stream import Stream

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, numpy.dtype[Any]]
    Part = tuple[Array, Array]
    """Images, uint8 N × C × H × W, and their labels, int64 N."""

SPLIT_SEED = 2018
"""Seed of every data set's split: it never depends on a run."""
log = logging.getLogger("hiernas.prepare")


def prepare_digits(folder: Path) -> Dataset:
    """scikit-learn's 1,797 real 8×8 grey images of digits (values 0 … 16): 1,000 train, 400 validation, 397 test."""
    there = _already("digits", folder)
    if there is not None:
        return there
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise _missing(error) from error
    bunch: Any = load_digits()
    images = bunch.images.astype("uint8")[:, None]
    labels = bunch.target.astype("int64")
    order = Stream(SPLIT_SEED, "split", "digits").sample(len(labels), len(labels))
    parts = {"train": order[:1000], "validation": order[1000:1400], "test": order[1400:]}
    return _write("digits", 10, {name: (images[at], labels[at]) for name, at in parts.items()}, folder)


def prepare_cifar(name: str, source: Path, folder: Path) -> Dataset:
    """CIFAR-10 or -100 (`name` 'cifar10' or 'cifar100') from a local copy as torchvision keeps it, below `source`.

    40,000 train and 10,000 validation images, a fixed split of the training images (Liu et al. 2018, section 5.1), and the
    10,000 test images.
    """
    if name not in ("cifar10", "cifar100"):
        raise ConfigError(f"data set {name!r} is not known; allowed: cifar10, cifar100")
    there = _already(name, folder)
    if there is not None:
        return there
    (images, labels), test = _read_cifar(name, source)
    order = Stream(SPLIT_SEED, "split", name).sample(len(labels), len(labels))
    cut = len(labels) * 4 // 5
    splits = {"train": (images[order[:cut]], labels[order[:cut]]), "validation": (images[order[cut:]], labels[order[cut:]])}
    return _write(name, 10 if name == "cifar10" else 100, splits | {"test": test}, folder)


def _read_cifar(name: str, source: Path) -> "tuple[Part, Part]":
    """Training and test images.

    CIFAR comes as pickles, which can run code when read. torchvision's constructor compares the MD5 of every batch file with
    the published one before it unpickles the first (CIFAR10._check_integrity; _load_meta does the same for the class names),
    with download=False too. MD5 is weak against collisions, not against a second file for a given sum: what is unpickled is
    what was published.
    """
    try:
        import numpy
        from torchvision.datasets import CIFAR10, CIFAR100
    except ImportError as error:
        raise _missing(error) from error
    kind = CIFAR10 if name == "cifar10" else CIFAR100
    try:
        train, test = (kind(str(source), train=part, download=False) for part in (True, False))
    except (RuntimeError, OSError) as error:
        raise ConfigError(
            f"{source}: holds no intact copy of {name}; expected the published files in {source / kind.base_folder} "
            f"(unpack {kind.filename} from {kind.url.rpartition('/')[0]} there). torchvision says: {error}"
        ) from error
    parts = [(one.data.transpose(0, 3, 1, 2), numpy.asarray(one.targets, dtype="int64")) for one in (train, test)]
    return parts[0], parts[1]


def _missing(error: ImportError) -> ConfigError:
    return ConfigError(f"preparing data needs {error.name or error}, which is not installed: pip install 'hiernas[data,worker]'")


def _already(name: str, folder: Path) -> Dataset | None:
    """The data set of this name when it is prepared there and whole; None when nothing is; HiernasError for anything else."""
    try:
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return None
        dataset = Dataset.from_json((folder / "dataset.json").read_bytes())
        for split in dataset.splits.values():
            if hashlib.sha256((folder / split.file).read_bytes()).hexdigest() != split.sha256:
                raise DataError(f"{split.file} does not have the SHA-256 that dataset.json says")
        if dataset.name != name:
            raise DataError(f"it holds the data set {dataset.name!r}, not {name!r}")
    except (OSError, DataError) as error:
        raise HiernasError(
            f"{folder}: is there already, but is not the whole prepared data set {name!r}: {error}. Move it away or delete it, then prepare again"
        ) from error
    log.info("already prepared and whole data=%s folder=%s", name, folder)
    return dataset


def _write(name: str, classes: int, splits: "dict[str, Part]", folder: Path) -> Dataset:
    """Write everything under another name beside the folder, then rename it into place."""
    work: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
        dataset = _fill(work, name, classes, splits)
        work.chmod(0o755)  # mkdtemp lets only its owner in
        sync_folder(work)
        work.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        there = _already(name, folder)  # another process may have been quicker: renaming onto a full folder fails
        if there is None:
            raise HiernasError(f"{folder}: cannot be written: {error}; make room or choose another folder") from error
        return there
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
    return dataset


def _fill(work: Path, name: str, classes: int, splits: "dict[str, Part]") -> Dataset:
    import numpy
    from safetensors.numpy import save

    described = {}
    for part in SPLITS:
        images, labels = (numpy.ascontiguousarray(array) for array in splits[part])
        data = save({"images": images, "labels": labels})
        write_new(work / f"{part}.safetensors", data)
        described[part] = Split(f"{part}.safetensors", hashlib.sha256(data).hexdigest(), len(labels))
    train = splits["train"][0]
    mean, std = zip(*(_moments(train[:, channel]) for channel in range(train.shape[1])), strict=True)
    dataset = Dataset(name, classes, int(train.shape[1]), int(train.shape[2]), mean, std, described)
    write_new(work / "dataset.json", dataset.to_json())
    return dataset


def _moments(values: "Array") -> tuple[float, float]:
    """Mean and standard deviation of bytes, summed as whole numbers: floating-point sums differ between machines."""
    counts = [int(count) for count in _histogram(values)]
    total = sum(counts)
    first = sum(value * count for value, count in enumerate(counts))
    second = sum(value * value * count for value, count in enumerate(counts))
    return first / total, math.sqrt((second * total - first * first) / (total * total))


def _histogram(values: "Array") -> "Array":
    import numpy

    return numpy.bincount(values.ravel(), minlength=256)
