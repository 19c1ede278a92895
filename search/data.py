"""Prepared data on a device. A search sees training and validation images; the test split needs a key that it cannot make."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from search.dataset import DataError, Dataset, Split
from search.records import Run


@dataclass(frozen=True, slots=True)
class Images:
    """Normalised float32 images N × C × H × W and int64 labels N, on one device."""

    images: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True, slots=True)
class SearchData:
    """All that a search may see."""

    train: Images
    validation: Images


@dataclass(frozen=True, slots=True)
class FinalTraining:
    """The key to the test split: only a run of strategy `fixed` gets one."""

    run: Run

    def __post_init__(self) -> None:
        if self.run.strategy.kind != "fixed":
            raise PermissionError(f"run {self.run.name!r} is a search ({self.run.strategy.kind}): the test split is never opened by a search")


def describe(folder: Path, digest: str) -> Dataset:
    """The data set in a folder; DataError unless it is the one with this digest."""
    try:
        dataset = Dataset.from_json((folder / "dataset.json").read_bytes())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}; prepare the data set there") from error
    if dataset.digest != digest:
        raise DataError(f"{folder}: has digest {dataset.digest[:16]}…, the run was begun with {digest[:16]}…: put the same data there")
    return dataset


def open_search(folder: Path, digest: str, device: torch.device) -> SearchData:
    """Training and validation images on the device."""
    dataset = describe(folder, digest)
    return SearchData(*(_load(folder, dataset, dataset.splits[name], device) for name in ("train", "validation")))


def open_test_split(folder: Path, digest: str, device: torch.device, key: FinalTraining) -> Images:
    """The test images, for a final training only."""
    if not isinstance(key, FinalTraining):
        raise PermissionError("the test split is opened by a final training only")
    dataset = describe(folder, digest)
    return _load(folder, dataset, dataset.splits["test"], device)


def _load(folder: Path, dataset: Dataset, split: Split, device: torch.device) -> Images:
    path = folder / split.file
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; prepare the data set again") from error
    found = hashlib.sha256(data).hexdigest()
    if found != split.sha256:
        raise DataError(f"{path}: has SHA-256 {found[:16]}…, dataset.json says {split.sha256[:16]}…: it is damaged; delete the folder and prepare it again")
    try:
        tensors = safetensors.torch.load(data)
        images, labels = tensors["images"], tensors["labels"]
    except (SafetensorError, KeyError) as error:
        raise DataError(f"{path}: is no file of images and labels: {error}") from error
    shape = (split.images, dataset.channels, dataset.size, dataset.size)
    if images.dtype != torch.uint8 or tuple(images.shape) != shape:
        raise DataError(f"{path}: images are {images.dtype} {tuple(images.shape)}, expected uint8 {shape}")
    if labels.dtype != torch.int64 or tuple(labels.shape) != (split.images,):
        raise DataError(f"{path}: labels are {labels.dtype} {tuple(labels.shape)}, expected int64 ({split.images},)")
    if int(labels.min()) < 0 or int(labels.max()) >= dataset.classes:
        raise DataError(f"{path}: labels lie in {int(labels.min())} … {int(labels.max())}, expected 0 … {dataset.classes - 1}")
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (dataset.mean, dataset.std))
    return Images(((images.float() - mean) / std).to(device), labels.to(device))
