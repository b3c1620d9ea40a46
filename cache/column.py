"""A long column of numbers, appended to once and then read: in memory while it is small, beyond that in a file.

The file has no name, lies where TMPDIR says (/tmp), and is gone with the process. Its pages are the system's to take back
and to read again, so a plan of any size leaves a process's own memory as it was. Refuses, as DiskError, a full disk.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import IO, Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from cache.atomic import disk_errors

__all__ = ["Column"]

IN_MEMORY = 16 << 20  #: bytes

Number = TypeVar("Number", bound=np.number[Any])


class Column(Generic[Number]):
    """Room for `count` numbers of `dtype`."""

    def __init__(self, dtype: type[Number], count: int) -> None:
        self._dtype, self._count, self._done = np.dtype(dtype), count, 0
        self._held = np.empty(0, self._dtype)
        self._file: IO[bytes] | None = None
        self._place = Path(tempfile.gettempdir())
        if count * self._dtype.itemsize <= IN_MEMORY:
            self._held = np.empty(count, self._dtype)
        else:
            with disk_errors(self._place):
                self._file = tempfile.TemporaryFile(dir=self._place)  # noqa: SIM115

    def append(self, values: NDArray[Any]) -> None:
        """The next numbers."""
        if self._file is None:
            self._held[self._done : self._done + len(values)] = values
        else:
            with disk_errors(self._place):
                self._file.write(np.ascontiguousarray(values, self._dtype).data)
        self._done += len(values)

    def array(self) -> NDArray[Number]:
        """All of them, read-only; they stay when this is closed.

        Raises:
            ValueError: more or fewer than `count` came.
        """
        if self._done != self._count:
            raise ValueError(f"{self._done} numbers came, {self._count} were expected")
        if self._file is None:
            self._held.flags.writeable = False
            return self._held
        with disk_errors(self._place):
            self._file.flush()
            return np.memmap(self._file, self._dtype, "r", shape=(self._count,)).view(np.ndarray)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
