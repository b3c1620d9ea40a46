"""Files of a sealed part, mapped into memory: regular files of the expected size, never links."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

from cache.atomic import disk_errors
from cache.errors import StoreError

__all__ = ["ADVICE", "map_file"]

ADVICE = "restore it from where the store came from, or build that part again"


def map_file(path: Path, size: int) -> tuple[mmap.mmap, tuple[int, ...]]:
    """A read-only map of `path`, and what tells this file from one that is put in its place.

    Raises:
        StoreError: ``store.missing``, ``store.wrong_size``.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError as error:
        cause = error.strerror or type(error).__name__
        raise StoreError(f"{path}: {cause}; {ADVICE}.", code="store.missing") from error
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            raise StoreError(
                f"{path}: {size:,} bytes expected, {status.st_size:,} found; {ADVICE}.",
                code="store.wrong_size",
            )
        with disk_errors(path):
            memory = mmap.mmap(handle, size, access=mmap.ACCESS_READ)
    finally:
        os.close(handle)
    return memory, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
