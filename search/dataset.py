"""What a prepared data set is, as plain data: read by the controller too, so without torch."""

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass
from typing import Any

SPLITS = ("train", "validation", "test")
_FIELDS = {"name", "classes", "channels", "size", "mean", "std", "splits"}


class DataError(ValueError):
    """Prepared data is absent, damaged, or not what the run was begun with."""


@dataclass(frozen=True, slots=True)
class Split:
    """One file of images: its name, the SHA-256 of its bytes, how many images."""

    file: str
    sha256: str
    images: int

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z]+\.safetensors", self.file):
            raise DataError(f"file is {self.file!r}; expected a name like 'train.safetensors'")
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise DataError(f"sha256 is {self.sha256!r}; expected 64 hexadecimal digits")
        if not (isinstance(self.images, int) and self.images >= 1):
            raise DataError(f"images is {self.images!r}; expected 1 or more")


@dataclass(frozen=True, slots=True)
class Dataset:
    """`dataset.json`: square images of `channels` × `size` × `size` in `classes` classes; mean and standard deviation
    a channel of the training split (U9), in the units of the stored bytes."""

    name: str
    classes: int
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: dict[str, Split]

    def __post_init__(self) -> None:
        for name in ("classes", "channels", "size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 100_000:
                raise DataError(f"{name} is {value!r}; expected a whole number of 1 to 100000")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise DataError(f"mean and std have {len(self.mean)} and {len(self.std)} entries; expected one a channel ({self.channels})")
        if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in (*self.mean, *self.std)) or not all(value > 0 for value in self.std):
            raise DataError("mean and std must be finite numbers, std above 0")
        if set(self.splits) != set(SPLITS):
            raise DataError(f"splits are {sorted(self.splits)}; expected {', '.join(SPLITS)}")

    def to_json(self) -> bytes:
        """Canonical bytes."""
        return json.dumps(asdict(self), sort_keys=True, indent=1).encode() + b"\n"

    @property
    def digest(self) -> str:
        """SHA-256 over everything above, the images' own digests included."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @staticmethod
    def from_json(data: bytes) -> "Dataset":
        """Read `to_json`'s form; DataError says what is wrong."""
        try:
            plain: Any = json.loads(data)
        except ValueError as error:
            raise DataError(f"dataset.json is not readable as JSON: {error}") from error
        if not isinstance(plain, dict) or set(plain) != _FIELDS:
            found = sorted(plain) if isinstance(plain, dict) else type(plain).__name__
            raise DataError(f"dataset.json has the fields {found}; expected {', '.join(sorted(_FIELDS))}")
        try:
            splits = {str(name): Split(**split) for name, split in plain.pop("splits").items()}
            return Dataset(splits=splits, mean=tuple(plain.pop("mean")), std=tuple(plain.pop("std")), **plain)
        except (TypeError, AttributeError) as error:
            raise DataError(f"dataset.json: {error}") from error
