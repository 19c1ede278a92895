"""What a prepared data set is, as plain data. The controller reads it too, so it must not reach torch or touch files.

Prepared data is a folder: `dataset.json` (this description) and one safetensors file a split, with the tensors `images`
(uint8, N × channels × size × size) and `labels` (int64, N, from 0). Reading those is search.data's business.
"""

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

SPLITS = ("train", "validation", "test")
SIZE_LIMIT = 1 << 20
"""Largest dataset.json that is read, in bytes. CIFAR-10's has about 800."""
_FIELDS = {"name", "classes", "channels", "size", "mean", "std", "splits"}
_SPLIT_FIELDS = {"file", "sha256", "images"}


class DataError(ValueError):
    """Prepared data is absent, damaged, or not what the run was begun with: this machine's fault, never the candidate's."""


def _text(place: str, value: object, pattern: str, expected: str) -> None:
    if not (isinstance(value, str) and re.fullmatch(pattern, value)):
        raise DataError(f"{place} is {value!r}; expected {expected}")


def _whole(place: str, value: object, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
        raise DataError(f"{place} is {value!r}; expected a whole number of 1 to {high}")


def _numbers(place: str, values: object, count: int) -> None:
    if not isinstance(values, tuple) or len(values) != count:
        raise DataError(f"{place} is {values!r}; expected {count} numbers, one a channel")
    if not all(isinstance(value, float) and math.isfinite(value) for value in values):
        raise DataError(f"{place} is {values!r}; expected finite numbers with a decimal point")


@dataclass(frozen=True, slots=True)
class Split:
    """One file of images: its name, the SHA-256 of its bytes, how many images."""

    file: str
    sha256: str
    images: int

    def __post_init__(self) -> None:
        _text("file", self.file, r"[a-z]+\.safetensors", "a name like 'train.safetensors'")
        _text("sha256", self.sha256, r"[0-9a-f]{64}", "64 hexadecimal digits")
        _whole("images", self.images, 1_000_000_000)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Square images of `channels` × `size` × `size` in `classes` classes."""

    name: str
    classes: int
    channels: int
    size: int
    mean: tuple[float, ...]
    """Of each channel over the training split (U9), in the units of the stored bytes."""
    std: tuple[float, ...]
    """As `mean`: standard deviation, dividing by the number of values."""
    splits: dict[str, Split]

    def __post_init__(self) -> None:
        _text("name", self.name, r"[a-z0-9][a-z0-9-]{0,39}", "at most 40 of a-z, 0-9 and '-'")
        for name in ("classes", "channels", "size"):
            _whole(name, getattr(self, name), 100_000)
        _numbers("mean", self.mean, self.channels)
        _numbers("std", self.std, self.channels)
        if min(self.std) <= 0:
            raise DataError(f"std is {self.std}; expected numbers above 0 (a channel that is constant carries nothing)")
        if set(self.splits) != set(SPLITS):
            raise DataError(f"splits are {sorted(self.splits)}; expected {', '.join(SPLITS)}")
        for name in ("file", "sha256"):
            if len({getattr(split, name) for split in self.splits.values()}) != len(SPLITS):
                raise DataError(f"two splits have the same {name}: a search would see the images that it is judged by")

    def to_json(self) -> bytes:
        """Canonical bytes: the same description has the same ones everywhere."""
        return json.dumps(asdict(self), sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"

    @property
    def digest(self) -> str:
        """SHA-256 of `to_json`, thus over the images' own digests too: names the data set in `run.json`."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @staticmethod
    def from_json(data: bytes) -> "Dataset":
        """Read `to_json`'s form; DataError says what was found and what was expected. Unknown and double keys are refused."""
        plain = _object("dataset.json", _parse(data), _FIELDS)
        splits = plain["splits"]
        if not isinstance(splits, dict):
            raise DataError(f"dataset.json: splits is {splits!r}; expected an object with {', '.join(SPLITS)}")
        try:
            return Dataset(
                plain["name"], plain["classes"], plain["channels"], plain["size"],
                _tuple(plain["mean"]), _tuple(plain["std"]),
                {name: Split(**_object(f"split {name!r}", split, _SPLIT_FIELDS)) for name, split in splits.items()},
            )  # fmt: skip
        except DataError as error:
            raise DataError(f"dataset.json: {error}; prepare the data set again") from error


def _parse(data: bytes) -> object:
    if len(data) > SIZE_LIMIT:
        raise DataError(f"dataset.json has {len(data)} bytes; at most {SIZE_LIMIT} are read")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise DataError(f"dataset.json cannot be read: {error}; prepare the data set again") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"a key stands twice among {[key for key, _ in pairs]}")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _object(place: str, value: object, fields: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != fields:
        found = sorted(value) if isinstance(value, dict) else value
        raise DataError(f"{place} has {found!r}; expected the fields {', '.join(sorted(fields))}")
    return value


def _tuple(value: object) -> Any:
    return tuple(value) if isinstance(value, list) else value
