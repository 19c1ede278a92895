"""Where records are written: one primitive, create-only (DESIGN: the first write wins).

`create(key, data) -> the bytes stored there`, like dict.setdefault: ours if we won, the winner's if not.
A store knows nothing of records. Nothing in it is ever changed or deleted through this interface.
"""

import re
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable
from urllib.parse import SplitResult, urlsplit

from pipeline.errors import ConfigError, HiernasError

MAX_OBJECT_BYTES = 16 * 1024 * 1024
"""Larger objects are refused, both ways. A record has some kilobytes."""
KEYS_VARIABLE = "HIERNAS_STORE_CREDENTIALS"
"""Variable that names a folder with a store's keys as files: a Secret as a volume. An environment stays as it was when a process began, a volume is renewed."""
MAX_PREFIX_LENGTH = 400
"""Of a store within a bucket: S3's keys have at most 1,024 bytes."""
Item = TypeVar("Item")
Got = TypeVar("Got")
_URLS = "expected a path, file:///path or s3://bucket/prefix"
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")


class Store(Protocol):
    """Anything that keeps bytes under keys, once."""

    parallel: int
    """How many reads at once are worth it; 1: one after the other."""

    def create(self, key: str, data: bytes) -> bytes:
        """Store `data` unless the key is taken; return what is stored there, durably."""
        ...

    def read(self, key: str) -> bytes:
        """The bytes stored there; KeyError when absent."""
        ...

    def list(self, prefix: str, after: str | None = None) -> list[str]:
        """Sorted keys that begin with `prefix`, those past `after` where given. What has no name of a key is no object."""
        ...


@runtime_checkable
class Folders(Protocol):
    """A store that knows its folders without listing what is in them."""

    def folders(self) -> list[str]:
        """Sorted: what stands before the first '/' of the keys that have one. More may be told: an empty folder."""
        ...


def folders(store: Store) -> list[str]:
    """The store's folders: runs among them. Where the store does not know them, all its keys are listed."""
    if isinstance(store, Folders):
        return store.folders()
    return sorted({key.split("/", 1)[0] for key in store.list("") if "/" in key})


def is_key(key: str) -> bool:
    """Whether every store can keep it."""
    return len(key) <= 512 and _KEY.fullmatch(key) is not None


def check_key(key: str) -> str:
    """The key itself if every store can keep it, else ValueError."""
    if not is_key(key):
        raise ValueError(f"key {key!r} is not allowed: at most 512 of letters, digits, '.', '_', '-' between single '/'")
    return key


class BadObject(HiernasError):
    """What lies in the place of an object is none: too large, or no plain file."""

    exit_code = 4


def check_size(key: str, size: int) -> None:
    """Refuse what no record is."""
    if size > MAX_OBJECT_BYTES:
        raise BadObject(f"object {key} has {size} bytes; at most {MAX_OBJECT_BYTES} are read or written. No record is that large: see what wrote it")


def read_many(store: Store, keys: Sequence[str]) -> Iterator[bytes]:
    """What is stored under each key, in their order; KeyError at the first that is absent."""
    return at_once(store.read, keys, store.parallel)


def at_once(act: Callable[[Item], Got], items: Sequence[Item], parallel: int) -> Iterator[Got]:
    """What `act` makes of each, in their order, so many at the same time."""
    if parallel == 1 or len(items) < 2:
        yield from map(act, items)
        return
    with ThreadPoolExecutor(parallel) as pool:
        yield from pool.map(act, items)


class MemoryStore:
    """A store in this process, for tests."""

    parallel = 1

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._keys: list[str] = []

    def create(self, key: str, data: bytes) -> bytes:
        """See Store."""
        check_size(check_key(key), len(data))
        if key not in self._objects:
            self._objects[key] = data
            insort(self._keys, key)
        return self._objects[key]

    def read(self, key: str) -> bytes:
        """See Store."""
        return self._objects[check_key(key)]

    def list(self, prefix: str, after: str | None = None) -> list[str]:
        """See Store."""
        start = bisect_left(self._keys, prefix)
        if after is not None:
            start = max(start, bisect_right(self._keys, after))
        return self._keys[start : bisect_left(self._keys, prefix + "\x7f")]  # no key has a character past '~'


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError(f"store {url!r} is no URL ({error}); {_URLS}") from error
    if "@" in parts.netloc:
        raise ConfigError(f"store {parts.scheme}://…@{parts.netloc.rpartition('@')[2]}: no user or password belongs into a store's URL; {_URLS}")
    return parts


def address(url: str) -> str:
    """The store's URL in the one form in which records name it: a folder's whole path, or s3://bucket/prefix."""
    parts = _split(url)
    if parts.scheme in ("", "file"):
        return str(Path(url if not parts.scheme else parts.path).resolve())
    return f"{parts.scheme}://{parts.netloc}/{parts.path.strip('/')}".rstrip("/")


def open_store(url: str, make: bool = True) -> Store:
    """A store by its URL: a path, file://… or s3://bucket/prefix.

    `make`: a search will write there, so make its folder if there is none, and check that it keeps what is written once.
    Readers and workers open without.
    """
    parts = _split(url)
    if parts.scheme in ("", "file"):
        from pipeline.directory import DirectoryStore

        path = Path(url if not parts.scheme else parts.path)
        if not url or (parts.scheme and parts.netloc not in ("", "localhost")):
            raise ConfigError(f"store {url!r} names no folder; {_URLS}")
        return DirectoryStore(path, make)
    if parts.scheme == "s3":
        prefix = parts.path.strip("/")
        if parts.query or parts.fragment or not parts.netloc or not (prefix == "" or is_key(prefix)) or len(prefix) > MAX_PREFIX_LENGTH:
            raise ConfigError(
                f"store {url!r} is none: of s3://bucket/prefix, the prefix is at most {MAX_PREFIX_LENGTH} of letters, digits, '.', '_', '-' and '/'"
            )
        try:
            from pipeline.s3 import S3Store
        except ModuleNotFoundError as error:
            raise ConfigError(f"store {url!r} needs the package {error.name!r}; install hiernas[s3]") from error
        return S3Store(parts.netloc, prefix, make)
    raise ConfigError(f"store {url!r} has the scheme {parts.scheme!r}; {_URLS}")
