"""Who is at which unit of a shared work folder: claims that the system frees when their holder dies.

    <work>/claims   an empty file; byte 0 of it is the door, byte k + 1 the claim on unit k

They are record locks of fcntl(2): one file however many units there are, so that nothing is left behind, nothing
comes to be by asking, and network disks that have locks at all have these. A claim spares double work and does no more: where
a disk grants it to everybody, units are done twice and the bytes are the same. One of these a process and file at a time:
closing any drops the claims of all.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from cache.atomic import disk_errors

__all__ = ["CLAIMS", "Claims"]

CLAIMS = "claims"

_HELD = {errno.EACCES, errno.EAGAIN}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL}
_DOOR = 0


class Claims:
    """The claims of one process on the units of one work folder; all are free once it is closed."""

    def __init__(self, path: Path, *, begin: bool = False) -> None:
        """Open the claims that lie at `path`.

        Args:
            begin: make the file if it is not there.

        Raises:
            FileNotFoundError: it is not there.
            DiskError: the disk refused.
        """
        self._path = path
        flags = os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT if begin else 0)
        with disk_errors(path):
            try:
                self._handle = os.open(path, flags, 0o666)
            except (FileNotFoundError, NotADirectoryError) as error:
                missing = error
            else:
                return
        raise FileNotFoundError(path) from missing

    def take(self, unit: int) -> bool:
        """Claim a unit; False where another process has it."""
        return self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB, unit + 1)

    def free(self, unit: int) -> None:
        """Let go of a unit."""
        self._lock(fcntl.LOCK_UN, unit + 1)

    def enter(self) -> bool:
        """Go through the door until this is closed; False where it is shut, or leads to a folder that has gone."""
        return self._lock(fcntl.LOCK_SH | fcntl.LOCK_NB, _DOOR) and not self.gone

    def shut(self) -> None:
        """Shut the door until this is closed; waits until those inside have left, who find nothing to do."""
        self._lock(fcntl.LOCK_EX, _DOOR)

    @property
    def gone(self) -> bool:
        """Whether the file was removed, as the whole folder is when the set is sealed."""
        return os.fstat(self._handle).st_nlink == 0

    def close(self) -> None:
        """Free everything."""
        os.close(self._handle)

    def _lock(self, how: int, byte: int) -> bool:
        with disk_errors(self._path):
            try:
                fcntl.lockf(self._handle, how, 1, byte)
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    return True
                if error.errno in _HELD:
                    return False
                raise
        return True
