"""Where shared stores lie: what every kind of place can do, which URL means which, and a plain folder as the first kind.

    a path, file://      FolderRemote     s3:// gs:// az://  objects.py (obstore)     hf://datasets/OWNER/NAME  hub.py

Names handed in are checked before they reach any place; a URL that carries a key is refused and never printed. Nothing a
place says of itself is trusted: sizes only spare work, bytes count once their sha256 is right. A file is a whole or not there
at all; manifests are created, never replaced.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn, Protocol, TypeAlias

from cache.atomic import DEBRIS, disk_errors, put, sweep_dead
from cache.digest import sha256_bytes
from cache.errors import StoreError, UsageError
from cache.manifest import Entry
from cache.paths import check_name

__all__ = [
    "BLOCK",
    "FolderRemote",
    "Found",
    "Heard",
    "Location",
    "Remote",
    "changed",
    "hashed",
    "is_url",
    "locate",
    "missing",
    "open_remote",
    "refuse_published",
    "wrong_size",
]

BLOCK = 1 << 20

Scheme: TypeAlias = Literal["file", "s3", "gs", "az", "hf"]
Heard: TypeAlias = Callable[[int], None]
"""Hears how many more bytes have been moved."""

_MARK = "@sha256:"
_CLOUDS: tuple[Scheme, ...] = ("s3", "gs", "az")
_KNOWN = "a folder, file:///, s3://, gs://, az:// or hf://datasets/OWNER/NAME"


@dataclass(frozen=True, slots=True)
class Found:
    """What a place says of one object, without its bytes."""

    size: int
    tag: str = ""  #: the server's mark of these very bytes; empty where it has none
    sha256: str = ""  #: the server's own digest of the bytes; empty where it keeps none


class Remote(Protocol):
    """A place that holds one store. Every call may raise RemoteError."""

    label: str  #: what may be printed: no key, no query

    def list(self, folder: str = "") -> dict[str, Found]:
        """Every object below `folder`, by its name in the store. The names are hearsay: compare, never open."""

    def stat(self, name: str) -> Found | None:
        """One object, or None where there is none."""

    def read(self, name: str, size: int, *, start: int = 0) -> Iterator[bytes]:
        """The bytes of an object from `start`; never more than `size` in all.

        Raises:
            StoreError: ``store.missing``; ``store.wrong_size`` when the object is longer or shorter than `size`.
        """

    def write(self, name: str, source: Path, entry: Entry, heard: Heard) -> str:
        """Put a file there whole, replacing what is there; returns its tag.

        Raises:
            StoreError: ``store.wrong_digest`` when the file is not what `entry` says; the place is as it was.
        """

    def publish(self, manifests: Sequence[tuple[str, bytes]]) -> None:
        """Create the manifests, in this order, after every file of theirs.

        Raises:
            StoreError: ``store.exists`` when another one of that name is there already.
        """


@dataclass(frozen=True, slots=True)
class Location:
    """A place that was named on a command line."""

    scheme: Scheme
    path: str  #: a folder, or what stands behind the scheme
    pin: str  #: the digest behind `@`, or empty

    @property
    def label(self) -> str:
        """How it is printed."""
        if self.scheme == "file":
            return self.path
        return f"{self.scheme}://{'datasets/' if self.scheme == 'hf' else ''}{self.path}"

    @property
    def name(self) -> str:
        """The last part, which a pulled store is called by."""
        return self.path.rstrip("/").rpartition("/")[2] or "store"


def is_url(text: str) -> bool:
    """Whether a store is named by URL rather than by path."""
    return "://" in text


def locate(text: str) -> Location:
    """Read ``URL`` or ``URL@sha256:<64 hex digits>``.

    Raises:
        UsageError: ``share.bad_url``, ``share.key_in_url``, ``share.bad_pin``.
    """
    place, mark, pin = text.partition(_MARK)
    if mark and (len(pin) != 64 or not set(pin) <= set("0123456789abcdef")):
        raise UsageError(
            f"the pin behind {_MARK} has {len(pin)} characters, 64 hexadecimal digits were expected; "
            "copy the whole digest that `kd-cache push` printed.",
            code="share.bad_pin",
        )
    pin = f"sha256:{pin}" if mark else ""
    if not is_url(place):
        return Location("file", place, pin)
    scheme, _, rest = place.partition("://")
    if "@" in rest or "?" in rest or "#" in rest:
        host = rest.rpartition("@")[2].partition("?")[0].partition("#")[0]
        raise UsageError(
            f"{scheme}://{host}: the URL carries a name, a key or a query, which would end up in logs; "
            "leave it away, keys are taken from the environment and the cloud's own files.",
            code="share.key_in_url",
        )
    if scheme == "file" and rest.startswith("/"):
        return Location("file", urllib.parse.unquote(rest), pin)
    parts = rest.strip("/").split("/")
    if scheme == "hf" and parts[0] == "datasets" and len(parts) >= 3 and all(parts):
        return Location("hf", "/".join(parts[1:]), pin)
    for cloud in _CLOUDS:
        if scheme == cloud and all(parts):
            return Location(cloud, "/".join(parts), pin)
    raise UsageError(f"{scheme}://{rest}: {_KNOWN} was expected.", code="share.bad_url")


def open_remote(location: Location) -> Remote:
    """The place behind a location; the libraries of clouds are imported here and not before.

    Raises:
        UsageError: ``share.no_library``.
    """
    if location.scheme == "file":
        return FolderRemote(Path(location.path))
    with _library(location):
        if location.scheme == "hf":
            from cache.hub import HubRemote

            return HubRemote.open(location)
        from cache.objects import ObjectRemote

        return ObjectRemote.open(location)


@contextmanager
def _library(location: Location) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{location.label}: {error.name} is needed to reach it and is not installed; "
            "run `pip install 'ckd-mdsr[share]'`.",
            code="share.no_library",
        ) from error


class FolderRemote:
    """A folder: on this machine, or a mounted file server. Links in it are refused, not followed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.label = str(root)

    def list(self, folder: str = "") -> dict[str, Found]:
        """Every regular file below."""
        found: dict[str, Found] = {}
        top = self._path(folder) if folder else self.root
        with disk_errors(top):
            if top.exists() and not top.is_dir():
                _not_a_file(top)
            for where, folders, files in os.walk(top):
                for name in folders:
                    if (Path(where) / name).is_symlink():
                        _not_a_file(Path(where) / name)
                folders[:] = sorted(name for name in folders if not name.startswith(DEBRIS))
                for name in files:
                    if name.startswith(DEBRIS):  # another writer's, which may be gone any moment
                        continue
                    path = Path(where) / name
                    status = path.lstat()
                    if not stat.S_ISREG(status.st_mode):
                        _not_a_file(path)
                    found[path.relative_to(self.root).as_posix()] = Found(status.st_size)
        return found

    def stat(self, name: str) -> Found | None:
        """One file, or None."""
        path = self._path(name)
        with disk_errors(path):
            try:
                return Found(path.lstat().st_size)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def read(self, name: str, size: int, *, start: int = 0) -> Iterator[bytes]:
        """The bytes of a regular file."""
        path = self._path(name)
        with disk_errors(path):
            try:
                handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0))
            except FileNotFoundError:
                missing(str(path))
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):  # before fdopen, which refuses folders its own way
                os.close(handle)
                _not_a_file(path)
            with os.fdopen(handle, "rb", buffering=0) as file:
                if status.st_size != size:
                    wrong_size(str(path), size, status.st_size)
                file.seek(start)
                left = size - start
                while left and (block := file.read(min(BLOCK, left))):
                    left -= len(block)
                    yield block

    def write(self, name: str, source: Path, entry: Entry, heard: Heard) -> str:
        """Through the one door."""
        with source.open("rb") as file:
            data = b"" if not entry.size else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            with memoryview(data) as view:
                if len(view) != entry.size:
                    wrong_size(str(source), entry.size, len(view))
                if sha256_bytes(view) != entry.sha256:
                    changed(str(source))
                # not beside it, in a part that may be published and sealed
                put(self._path(name), view, aside=self.root)
        heard(entry.size)
        return ""

    def publish(self, manifests: Sequence[tuple[str, bytes]]) -> None:
        """Each by a name that was not there before; then what killed writers left in the folder goes."""
        for name, data in manifests:
            path = self._path(name)
            try:
                put(path, data, create=True, aside=self.root)
            except StoreError:
                if path.read_bytes() != data:
                    refuse_published(str(path))
        sweep_dead(self.root)

    def _path(self, name: str) -> Path:
        """Where `name` lies, once it is known that no folder on the way there is a link."""
        path = self.root
        for part in check_name(name, where=self.label).split("/"):
            path /= part
            if path.is_symlink():
                _not_a_file(path)
        return path


def hashed(source: Path, entry: Entry, heard: Heard) -> Iterator[bytes]:
    """The blocks of a file on its way out; raises in place of the last one if they are not what `entry` says."""
    state, count, held = hashlib.sha256(), 0, b""
    with disk_errors(source), source.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            state.update(block)
            count += len(block)
            if held:
                yield held
                heard(len(held))
            held = block
    if count != entry.size:
        wrong_size(str(source), entry.size, count)
    if f"sha256:{state.hexdigest()}" != entry.sha256:
        changed(str(source))
    yield held
    heard(len(held))


def missing(path: str) -> NoReturn:
    """An object that a manifest names is not there."""
    raise StoreError(
        f"{path}: is missing there; push the store again from where it is whole.",
        code="store.missing",
    ) from None


def wrong_size(path: str, expected: int, found: int) -> NoReturn:
    """An object is longer or shorter than its manifest says."""
    raise StoreError(
        f"{path}: {expected:,} bytes expected, {found:,} found; "
        "push the store again from where it is whole.",
        code="store.wrong_size",
    )


def changed(path: str) -> NoReturn:
    """A file's bytes are not those that were sealed."""
    raise StoreError(
        f"{path}: its bytes have changed; restore it from where the store came from, or push it "
        "again from where it is whole.",
        code="store.wrong_digest",
    )


def refuse_published(path: str) -> NoReturn:
    """Another manifest came first."""
    raise StoreError(
        f"{path}: another store was published there meanwhile; choose another place, or remove that one.",
        code="store.exists",
    )


def _not_a_file(path: Path) -> NoReturn:
    raise StoreError(
        f"{path}: is a link or no regular file; this store was not written by kd-cache, do not use it.",
        code="store.not_a_file",
    )
