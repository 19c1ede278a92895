"""Prepared data sets in an object store: put there once by `hiernas submit`, fetched by workers, checked by SHA-256 at both ends.

The test split stays where it is: no search may open it.
"""

import hashlib
import os
from pathlib import Path
from typing import Protocol, cast

from pipeline.errors import ConfigError, MachineFault
from search.dataset import DataError, Dataset
from search.records import DataReference

DESCRIPTION = "dataset.json"


class Files(Protocol):
    """A store that keeps files too large for records."""

    def put_file(self, key: str, path: Path) -> None:
        """Store the file's bytes unless the key is taken."""
        ...

    def get_file(self, key: str, path: Path) -> None:
        """Write what is stored there into a file; KeyError when absent."""
        ...


def key(digest: str, file: str) -> str:
    """Where a file of a data set lies. No run can have that folder's name."""
    return f"_datasets/{digest}/{file}"


def put(store: Files, dataset: Dataset, folder: Path) -> None:
    """Store a prepared data set without its test split; what is there already is left. The description comes last: then all is there."""
    for name, split in dataset.splits.items():
        if name != "test":
            store.put_file(key(dataset.digest, split.file), folder / split.file)
    store.put_file(key(dataset.digest, DESCRIPTION), folder / DESCRIPTION)


def fetch(store: Files, wanted: DataReference, root: Path) -> None:
    """Make the data set of a run ready under `root`, unless something is there already (a mounted volume). MachineFault if that fails."""
    folder = root / wanted.name
    if (folder / DESCRIPTION).exists():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{DESCRIPTION}"
        _get(store, key(wanted.digest, DESCRIPTION), temporary)
        dataset = Dataset.from_json(temporary.read_bytes())
        if dataset.digest != wanted.digest:
            raise MachineFault(f"data set {wanted.name!r}: the store's {DESCRIPTION} has digest {dataset.digest}, expected {wanted.digest}")
        for name, split in dataset.splits.items():
            if name != "test":
                _get(store, key(wanted.digest, split.file), folder / split.file)
                with (folder / split.file).open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != split.sha256:
                    raise MachineFault(f"data set {wanted.name!r}: {split.file} came with SHA-256 {found}, expected {split.sha256}")
        os.replace(temporary, folder / DESCRIPTION)
    except DataError as error:
        raise MachineFault(f"data set {wanted.name!r}: {error}") from error
    except OSError as error:
        raise MachineFault(f"data set {wanted.name!r} cannot be kept in {folder}: {error.strerror or error}") from error


def _get(store: Files, name: str, path: Path) -> None:
    try:
        store.get_file(name, path)
    except KeyError:
        raise MachineFault(f"the store has no {name}: `hiernas submit` puts data sets there; or mount the data set (cluster.worker_pod)") from None


def files_of(store: object, url: str) -> Files:
    """The store, if it keeps files and pods can reach it."""
    if not (hasattr(store, "put_file") and hasattr(store, "get_file")):
        raise ConfigError(f"store {url!r} is no place that the pods of a cluster reach; give s3://bucket/prefix (`hiernas copy` brings a run there)")
    return cast(Files, store)
