"""Files of a sealed part, mapped into memory: regular files of the expected size, never links.

Where the store lies elsewhere the files are brought first, one by one, as they are asked for.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from cache.atomic import disk_errors
from cache.errors import StoreError
from cache.manifest import Entry

__all__ = ["ADVICE", "Bring", "map_entry"]

ADVICE = "restore it from where the store came from, or build that part again"

Bring: TypeAlias = Callable[[Path, Entry], Path]
"""bring(a set's folder, entry) -> a file that holds the entry's bytes: how a store that lies elsewhere is read."""

_PATIENCE = 3  # times that a file is brought


def map_entry(
    folder: Path, entry: Entry, bring: Bring | None
) -> tuple[Path, mmap.mmap, tuple[int, ...]]:
    """Where a file of a set lies, a read-only map of it, and what tells it from one that is put in its place.

    Raises:
        StoreError: ``store.missing``, ``store.wrong_size``; what `bring` raises.
    """
    if bring is None:
        path = folder / entry.path
        return path, *_map_file(path, entry.size)
    for left in reversed(range(_PATIENCE)):
        path = bring(folder, entry)
        try:
            return path, *_map_file(path, entry.size)
        except StoreError as error:  # another process may have made room in between
            if error.code != "store.missing" or not left:
                raise
    raise AssertionError("unreachable")


def _map_file(path: Path, size: int) -> tuple[mmap.mmap, tuple[int, ...]]:
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
