"""A file that is read more than once and yet always in the bytes that were hashed.

Opening reads the file through: its size and sha256 against its entry in a manifest, and a sha256 of each block of 1 MiB.
Whoever reads later gets bytes of a block that is hashed again; one that has changed since is refused, so what lies there
a moment after the check has no say. Holds one block and 32 bytes for each, whatever the file's size, and costs two passes; a
file of up to 8 MiB is held whole after one.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

from cache.atomic import disk_errors
from cache.errors import StoreError
from cache.manifest import Entry

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["ProvenFile"]

_BLOCK = 1 << 20
_SMALL = 8 << 20  #: bytes up to which a file is one block, held from the first reading on


class ProvenFile(io.RawIOBase):
    """A readable, seekable file that also is a sequence of its bytes; see the module.

    Args:
        advice: what to type next when it has changed.

    Raises:
        StoreError: ``store.wrong_size``, ``store.wrong_digest``: on opening, and whenever bytes are read.
        DiskError: the file cannot be read.
    """

    def __init__(self, path: Path, entry: Entry, *, advice: str) -> None:
        super().__init__()
        self._path, self._size, self._advice = path, entry.size, advice
        self._at = 0
        self._width = _BLOCK if entry.size > _SMALL else max(entry.size, 1)
        self._digests: list[bytes] = []
        self._held, self._number = b"", -1  # a block and its place
        whole, found = hashlib.sha256(), 0
        with disk_errors(path):
            self._file = path.open("rb")
            while block := self._file.read(min(self._width, entry.size + 1 - found)):
                whole.update(block)
                if self._width < entry.size:
                    self._digests.append(hashlib.sha256(block).digest())
                elif not found:
                    self._held, self._number = block, 0
                found += len(block)
        if found != entry.size:
            self._file.close()
            raise StoreError(
                f"{path}: {entry.size:,} bytes expected, others found; {advice}.",
                code="store.wrong_size",
            )
        if (digest := f"sha256:{whole.hexdigest()}") != entry.sha256:
            self._file.close()
            raise self._changed(entry.sha256[:19], digest[:19])

    def __len__(self) -> int:
        return self._size

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, at: int) -> int:
        """The byte at `at`, 0 <= at < len(self)."""
        return self._block(at // self._width)[at % self._width]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(start + offset, 0)
        return self._at

    def readinto(self, buffer: Buffer) -> int:
        """As much as fits, which is all that is left or all that was asked for."""
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view) and self._at < self._size:
            number, first = divmod(self._at, self._width)
            piece = memoryview(self._block(number))[first : first + len(view) - done]
            view[done : done + len(piece)] = piece
            done += len(piece)
            self._at += len(piece)
        return done

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def _block(self, number: int) -> bytes:
        if number != self._number:
            with disk_errors(self._path):
                self._file.seek(number * self._width)
                held = self._file.read(min(self._width, self._size - number * self._width))
            if hashlib.sha256(held).digest() != self._digests[number]:
                raise self._changed("what was hashed a moment ago", "other bytes")
            self._held, self._number = held, number
        return self._held

    def _changed(self, expected: str, found: str) -> StoreError:
        return StoreError(
            f"{self._path}: its bytes have changed ({expected} expected, {found} found); {self._advice}.",
            code="store.wrong_digest",
        )
