"""The one door for bytes: write aside, fsync, rename, fsync the folder.

After `put` returns, the file is whole or absent, through kill -9 and through power loss. Temporary names begin
with `.partial-` and are unique, so two writers never share one. Their writers hold a lock on them while they live: `sweep_dead`
clears what the killed left and touches nothing else. Costs two fsyncs a file: write few large files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cache.digest import Bytes
from cache.errors import DiskError, StoreError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "DEBRIS",
    "append_line",
    "check_writable",
    "disk_errors",
    "make_folder",
    "put",
    "scratch",
    "staging",
    "sweep",
    "sweep_dead",
    "sync_folder",
    "sync_tree",
    "written",
]

DEBRIS = ".partial-"

_FOLDERS_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP}


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a DiskError that names `path` and the cause."""
    try:
        yield
    except OSError as error:
        remedy = (
            "free some space and run the same command again"
            if error.errno in {errno.ENOSPC, errno.EDQUOT}
            else "mend that and run the same command again"
        )
        cause = error.strerror or type(error).__name__
        raise DiskError(f"{path}: {cause}; {remedy}.", code="disk.refused") from error


def check_writable(folder: Path) -> None:
    """Refuse a folder that can neither be written to nor made, before hours of work go into it; changes nothing.

    Raises:
        DiskError: ``disk.refused``.
    """
    with disk_errors(folder):
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _FOLDERS_CANNOT_SYNC:  # some network file systems
            raise
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make `folder` and those above it that are not there, their names durable."""
    new = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        sync_folder(path.parent)


def put(path: Path, *pieces: Bytes, create: bool = False, aside: Path | None = None) -> None:
    """Make `path` hold exactly the pieces laid end to end, durably, or leave it as it was.

    Args:
        create: refuse a `path` that is there already, however late it came.
        aside: a folder of the same disk for what is not whole yet; by default the one that `path` is in.

    Raises:
        DiskError: the disk is full, read-only or failing; nothing is left behind.
        StoreError: ``store.exists``, with `create`.
    """
    with disk_errors(path), _aside(path, create=create, folder=aside) as file:
        for piece in pieces:
            file.write(piece)


class _Whole(io.FileIO):
    """A file that takes all it is handed, which a bare one need not."""

    def write(self, data: Buffer, /) -> int:
        view = memoryview(data).cast("B")
        total = view.nbytes
        while view.nbytes:
            view = view[super().write(view) :]
        return total


@contextlib.contextmanager
def written(path: Path) -> Iterator[io.RawIOBase]:
    """A file to write bit by bit, unbuffered, as `put` does with what is in memory: `path` is the whole of it, or as it was.

    Whatever ends the block early leaves nothing behind.

    Raises:
        DiskError: the disk is full, read-only or failing.
    """
    with disk_errors(path), _aside(path) as file:
        yield file


@contextlib.contextmanager
def _aside(path: Path, *, create: bool = False, folder: Path | None = None) -> Iterator[_Whole]:
    """A file in `folder`, beside `path` by default, that takes its name at the end of the block."""
    make_folder(path.parent)
    while True:
        handle, name = tempfile.mkstemp(prefix=DEBRIS, dir=folder or path.parent)
        if _claimed(handle):
            break
        os.close(handle)
    aside = Path(name)
    try:
        with _Whole(handle, "wb") as file:
            yield file
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
            if create:  # while it is open, and so known to be somebody's
                _name_new(aside, path)
            else:
                aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def append_line(path: Path, line: bytes) -> None:
    """Append one line to a journal and make it durable, or leave the journal as it was.

    Killed half way it leaves a torn last line, which is the reader's to drop.
    """
    with disk_errors(path):
        new = not path.exists()
        with _Whole(path, "ab") as file:
            end = file.seek(0, os.SEEK_END)
            try:
                file.write(line.rstrip(b"\n") + b"\n")
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(end)
                raise
        if new:
            sync_folder(path.parent)


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A fresh hidden folder beside `target`; published under that name by one rename.

    On a clean exit every file in it is made durable first. On an error the folder is removed; one that was left by a
    writer who was killed goes when the next one comes.

    Raises:
        StoreError: ``store.exists`` when `target` is already there.
        DiskError: the disk refused.
    """
    if target.exists():
        raise StoreError(
            f"{target}: is already there and is never overwritten; "
            "choose another name or remove it first.",
            code="store.exists",
        )
    check_writable(target.parent)
    with scratch(target.parent, name=target.name) as aside:
        aside.chmod(0o777 & ~_umask())
        yield aside
        with disk_errors(target):
            sync_tree(aside)
            aside.rename(target)
            sync_folder(target.parent)


@contextlib.contextmanager
def scratch(parent: Path, *, name: str) -> Iterator[Path]:
    """A fresh hidden folder in `parent` for as long as the block lasts; those that dead processes left for `name` go first."""
    prefix = f"{DEBRIS}{name}-"
    with disk_errors(parent):
        make_folder(parent)
        sweep_dead(parent, prefix)
        while True:
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            with contextlib.suppress(FileNotFoundError):  # swept before it was claimed
                handle = os.open(folder, os.O_RDONLY)
                if _claimed(handle):
                    break
                os.close(handle)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def sweep_dead(folder: Path, prefix: str = DEBRIS) -> None:
    """Remove from `folder` what killed writers left under names with that prefix, and nothing that somebody is at.

    Where the disk knows no locks nothing is removed.
    """
    for debris in sorted(folder.glob(f"{prefix}*")):
        try:
            handle = os.open(debris, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:  # gone by now, a link, another user's
            continue
        with contextlib.suppress(OSError):  # somebody is at it
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(debris)
        os.close(handle)


def _claimed(handle: int) -> bool:
    """Mark a fresh temporary name as that of a living process; False where a sweeper was quicker, or is just at it."""
    with contextlib.suppress(OSError):  # a disk that knows no locks, where nobody sweeps
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return os.fstat(handle).st_nlink > 0


def sweep(folder: Path) -> None:
    """Remove what killed writers left in `folder` and below it."""
    with disk_errors(folder):
        for debris in sorted(folder.rglob(f"{DEBRIS}*")):
            _remove(debris)


def _remove(debris: Path) -> None:
    if debris.is_dir() and not debris.is_symlink():
        shutil.rmtree(debris, ignore_errors=True)
    else:
        debris.unlink(missing_ok=True)


def sync_tree(folder: Path) -> None:
    """Make every file and name below `folder` durable."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def _name_new(aside: Path, path: Path) -> None:
    """Rename that never replaces: a second name is made, which fails where one is, then the first goes."""
    try:
        path.hardlink_to(aside)
    except FileExistsError as error:
        raise StoreError(
            f"{path}: is already there and is never overwritten; "
            "choose another name or remove it first.",
            code="store.exists",
        ) from error
    aside.unlink()


def _umask() -> int:
    # Python offers no way to read it but to set it; both calls are instant.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
