"""Prepared data on a device. A search sees training and validation images; the test split needs a key that it cannot make.

All of a split lies on the device, normalised once (Liu et al. 2018 name no input scaling: reading U9 of PAPERS). Every byte
is checked against the run's digest before it is parsed; what does not match is a DataError, the machine's fault.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from search.dataset import DataError, Dataset, Split
from search.records import Run

_TENSORS = {"images", "labels"}


@dataclass(frozen=True, slots=True)
class Images:
    """Normalised float32 images N × C × H × W and int64 labels N, on one device."""

    images: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True, slots=True)
class SearchData:
    """All that a search may see. Nothing here leads to the test split, nor to the folder that holds it."""

    train: Images
    validation: Images


@dataclass(frozen=True, slots=True)
class FinalTraining:
    """The key to the test split: only a run of strategy `fixed` (a final training, which names its source run) has one."""

    run: Run

    def __post_init__(self) -> None:
        kind: str = self.run.strategy.kind
        if kind != "fixed":
            raise ValueError(
                f"run {self.run.name!r} is a search (strategy {kind!r}): the test split is never opened by a search; "
                "a final training (strategy 'fixed') is a run of its own"
            )


def describe(folder: Path, digest: str) -> Dataset:
    """The description of the data set in a folder; DataError unless it is the one with this digest."""
    try:
        dataset = Dataset.from_json((folder / "dataset.json").read_bytes())
    except OSError as error:
        raise DataError(f"{folder / 'dataset.json'}: cannot be read ({error.strerror}); prepare the data set there") from error
    except DataError as error:
        raise DataError(f"{folder}: {error}") from error
    if dataset.digest != digest:
        raise DataError(f"{folder}: this data set has digest {dataset.digest}, the run was begun with {digest}; put the same data there")
    return dataset


def open_search(folder: Path, digest: str, device: torch.device) -> SearchData:
    """Training and validation images on the device."""
    dataset = describe(folder, digest)
    return SearchData(_load(folder, dataset, "train", device), _load(folder, dataset, "validation", device))


def open_test_split(folder: Path, key: FinalTraining, device: torch.device) -> Images:
    """The test images of the key's run, for a final training only."""
    if not isinstance(key, FinalTraining):
        raise TypeError(f"the test split is opened with a FinalTraining, not with a {type(key).__name__}")
    return _load(folder, describe(folder, key.run.data.digest), "test", device)


def _load(folder: Path, dataset: Dataset, part: str, device: torch.device) -> Images:
    split = dataset.splits[part]
    path = folder / split.file
    images, labels = _read(path, split)
    shape = (split.images, dataset.channels, dataset.size, dataset.size)
    if images.dtype != torch.uint8 or tuple(images.shape) != shape:
        raise DataError(f"{path}: images are {images.dtype} {tuple(images.shape)}, expected uint8 {shape}; prepare it again")
    if labels.dtype != torch.int64 or tuple(labels.shape) != shape[:1]:
        raise DataError(f"{path}: labels are {labels.dtype} {tuple(labels.shape)}, expected int64 {shape[:1]}; prepare it again")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= dataset.classes:
        raise DataError(f"{path}: labels lie in {low} … {high}, expected 0 … {dataset.classes - 1}; prepare it again")
    mean, std = (torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1) for values in (dataset.mean, dataset.std))
    try:
        # On the CPU, so that every device gets the same numbers.
        return Images(images.float().sub_(mean).div_(std).to(device), labels.to(device))
    except torch.OutOfMemoryError as error:
        raise DataError(f"{path}: {split.images} images do not fit on {device}: is another process using it?") from error


def _read(path: Path, split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    """The file's two tensors, parsed from the very bytes whose SHA-256 was checked."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); delete the folder and prepare it again") from error
    found = hashlib.sha256(data).hexdigest()
    if found != split.sha256:
        raise DataError(f"{path}: has SHA-256 {found}, dataset.json says {split.sha256}: the file is damaged; delete the folder and prepare it again")
    try:
        tensors = safetensors.torch.load(data)
    except SafetensorError as error:
        raise DataError(f"{path}: is no safetensors file ({error}); prepare it again") from error
    if set(tensors) != _TENSORS:
        raise DataError(f"{path}: holds the tensors {sorted(tensors)}, expected images and labels; prepare it again")
    return tensors["images"], tensors["labels"]
