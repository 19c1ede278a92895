"""Files that are there after a power cut: written to the disk itself, and their names too."""

import os
from pathlib import Path


def write_new(path: Path, data: bytes) -> None:
    """Write a file that does not exist yet and wait until the disk has it; OSError leaves what was written so far."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the disk has the folder's names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
