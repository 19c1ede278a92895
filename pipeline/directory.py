"""A store in a folder: one file an object, made whole under another name and linked into place.

`os.link` fails when the name is taken, on every POSIX file system and NFS: that is the create-only primitive.
The first thousand numbered objects of a folder lie in the folder itself, later thousands in folders of their own
('history/000012.json', 'history/001/001234.json'), so that a look at what is new never lists a long run.
"""

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from pipeline.durable import sync_folder, write_new
from pipeline.errors import ConfigError, StoreUnavailable
from pipeline.store import MAX_OBJECT_BYTES, BadObject, check_key, check_size, is_key

_NUMBERED = re.compile(r"(\d{3})\d{3}[.-].*")
_SHARD = re.compile(r"\d{3}")
_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space or ask for more",
    errno.EFBIG: "no file may grow so large here; raise the limit (ulimit -f)",
    errno.EACCES: "permission denied; give this user the right to read and write there",
    errno.EPERM: "not permitted; give this user the right to read and write there",
    errno.EROFS: "the file system is read-only; mount it for writing or choose another store",
    errno.ENOENT: "the store's folder is gone; is its disk still mounted?",
    errno.ESTALE: "the network file system has lost this folder (stale handle); mount it again",
    errno.EIO: "the disk failed (input/output error); look at the system's log",
}
_NO_FOLDER = frozenset({errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG})
"""What opening a store meets where a path cannot be a folder: waiting does not help."""


def explain(path: Path, error: OSError) -> StoreUnavailable:
    """What a person should know of a failed operation: the place, what is wrong, what to do.

    All of it may pass, even a refused permission (a ticket that ran out), so the controller waits. The first write wins
    and a file gets its name only when it is whole: so nothing is half-written, whatever failed.
    """
    advice = _ADVICE.get(error.errno or 0, error.strerror or str(error))
    return StoreUnavailable(f"store: {path}: {advice}. Nothing is lost or half-written")


class DirectoryStore:
    """See Store. `make` creates the folder, and refuses a file system without hard links; without it opening touches nothing."""

    parallel = 1

    def __init__(self, root: Path, make: bool = True) -> None:
        self.root = root.absolute()
        self._temporary = self.root / ".tmp"
        if make:
            self._make()

    def _make(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self._write_temporary(b"probe")
            second = probe.with_suffix(".link")
            try:
                os.link(probe, second)
                os.unlink(second)
            except OSError as error:
                if error.errno in _ADVICE.keys() - {errno.EPERM}:  # which is what a file system without links says
                    raise
                raise ConfigError(f"store {self.root} lies on a file system without hard links, which create-only writes need: choose another place") from error
            finally:
                probe.unlink()
        except OSError as error:
            if error.errno in _NO_FOLDER:
                raise ConfigError(f"store {self.root} cannot be a folder ({error.strerror}: {error.filename}); choose another place") from error
            raise explain(self.root, error) from error

    def _path(self, key: str) -> Path:
        folder, _, name = check_key(key).rpartition("/")
        numbered = _NUMBERED.fullmatch(name)
        shard = f"{numbered[1]}/" if folder and numbered and numbered[1] != "000" else ""
        return self.root / folder / f"{shard}{name}"

    def _write_temporary(self, data: bytes) -> Path:
        path = self._temporary / secrets.token_hex(12)
        try:
            self._temporary.mkdir(exist_ok=True)  # never the store itself: that its disk is not mounted must not go unnoticed
            write_new(path, data)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            self._make_folder(folder.parent)
            folder.mkdir(exist_ok=True)
            sync_folder(folder.parent)

    def create(self, key: str, data: bytes) -> bytes:
        """See Store."""
        path = self._path(key)
        check_size(key, len(data))
        try:
            temporary = self._write_temporary(data)
            try:
                self._make_folder(path.parent)
                os.link(temporary, path)
                stored = data
            except FileExistsError:
                stored = self._read(path, key)  # NFS may report our own landed link as taken: comparing bytes decides
            finally:
                temporary.unlink()
            sync_folder(path.parent)
        except OSError as error:
            raise explain(path, error) from error
        return stored

    def _read(self, path: Path, key: str) -> bytes:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe in its place would keep us waiting for ever
            raise BadObject(f"object {key}: {path} is no plain file; find out what put it there, and restore the file from a backup")
        check_size(key, found.st_size)
        with path.open("rb") as file:
            return file.read(MAX_OBJECT_BYTES)

    def read(self, key: str) -> bytes:
        """See Store."""
        path = self._path(key)
        try:
            return self._read(path, key)
        except FileNotFoundError:
            raise KeyError(key) from None
        except OSError as error:
            raise explain(path, error) from error

    def folders(self) -> list[str]:
        """See Folders."""
        try:
            return sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir() and is_key(entry.name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise explain(self.root, error) from error

    def list(self, prefix: str, after: str | None = None) -> list[str]:
        """See Store."""
        folder, _, start = prefix.rpartition("/")
        try:
            keys = self._keys(self.root / folder, f"{folder}/" if folder else "", start, after)
            # Backup and sync tools leave files beside ours ('000001 (1).json', '000001.json~'): they are no objects of the store.
            return sorted(key for key in keys if key.startswith(prefix) and (after is None or key > after) and is_key(key))
        except OSError as error:
            raise explain(self.root / folder, error) from error

    def _keys(self, path: Path, base: str, start: str, after: str | None) -> Iterator[str]:
        try:
            entries = list(os.scandir(path))
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():
                yield base + entry.name
            elif _SHARD.fullmatch(entry.name) and base:
                # A shard's keys all begin with its number: skip those with other beginnings, or that lie wholly before `after`.
                if start.startswith(entry.name[: len(start)]) and (after is None or f"{base}{entry.name}999~" > after):
                    yield from (base + name for name in os.listdir(entry.path) if not name.startswith("."))
            elif entry.name.startswith(start) or start.startswith(entry.name):
                yield from self._keys(path / entry.name, f"{base}{entry.name}/", "", after)
