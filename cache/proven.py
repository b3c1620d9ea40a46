"""The bytes of a file, in the very state that was hashed: what is written to it afterwards has no say.

One pass reads a file through, hashes it and keeps a copy: of up to 8 MiB in memory, of more in a file without a name, in
TMPDIR (/tmp), whose pages are the system's to take back. Refused: another size or sha256 than the manifest says. The copy
belongs to Arrow alone, for an Arrow thread that lets go of a Python object while Python shuts down aborts the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa

from cache.atomic import disk_errors
from cache.errors import StoreError
from cache.manifest import Entry

__all__ = ["proven"]

_BLOCK = 1 << 20
_SMALL = 8 << 20  #: bytes up to which the copy lies in memory


def proven(path: Path, entry: Entry, *, advice: str) -> pa.Buffer:
    """The bytes of `path`, equal to its entry in a manifest.

    Args:
        advice: what to type next when they are others.

    Raises:
        StoreError: ``store.wrong_size``, ``store.wrong_digest``.
        DiskError: the file cannot be read, or its copy not be written.
    """
    if entry.size <= _SMALL:
        kept = pa.BufferOutputStream()
        _copy(path, entry, kept.write, advice)
        return kept.getvalue()
    place = Path(tempfile.gettempdir())
    with disk_errors(place), tempfile.TemporaryFile(dir=place) as unnamed:
        _copy(path, entry, unnamed.write, advice)
        unnamed.flush()
        with pa.memory_map(f"/proc/self/fd/{unnamed.fileno()}") as pages:
            return pages.read_buffer()  # it holds on to the pages when the file is closed


def _copy(path: Path, entry: Entry, keep: Callable[[bytes], object], advice: str) -> None:
    """Hand `keep` what the file holds, and refuse it where that is not what the entry says."""
    whole, found = hashlib.sha256(), 0
    for block in _blocks(path, entry.size + 1):
        whole.update(block)
        found += len(block)
        keep(block)
    if found != entry.size:
        raise StoreError(
            f"{path}: {entry.size:,} bytes expected, others found; {advice}.",
            code="store.wrong_size",
        )
    if (digest := f"sha256:{whole.hexdigest()}") != entry.sha256:
        raise StoreError(
            f"{path}: its bytes have changed ({entry.sha256[:19]} expected, {digest[:19]} found); {advice}.",
            code="store.wrong_digest",
        )


def _blocks(path: Path, most: int) -> Iterator[bytes]:
    """A file in blocks, up to `most` bytes of it."""
    with contextlib.ExitStack() as stack:
        with disk_errors(path):
            file = stack.enter_context(path.open("rb"))
        while most:
            with disk_errors(path):
                block = file.read(min(_BLOCK, most))
            if not block:
                return
            most -= len(block)
            yield block
