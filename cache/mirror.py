"""A store that lies elsewhere, read without a full copy: dataset and plan here, scores and factors as they are asked for.

    <cache home>/mirrors/<digest>/<name>/   dataset/  plan/  scores/<name>/manifest.json, scores.zarr/zarr.json
                                            factors/<name>/manifest.json
    <cache home>/shards/<sha256>            files of all sets of all stores, up to a limit; least recently used ones leave

Shards are the files of score sets and of factor sets alike. A reader asks for one when it first touches one of its batches
or rows. It is checked by size and sha256 when it comes and again by the reader; one that is here counts only if it still
hashes to its name. Training reads in random order: with room for all chosen sets every shard comes once, with less it comes
again and again.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import filelock

from cache.atomic import DEBRIS, disk_errors, put, sync_folder, sync_tree
from cache.errors import StoreError, UsageError
from cache.home import cache_home
from cache.layout import METADATA
from cache.manifest import Entry
from cache.outline import Outline, check_pin, outline
from cache.remote import Location, Remote, open_remote
from cache.signature import check_signature, read_signature
from cache.store import Store
from cache.transfer import Report, download, fetch, is_whole

__all__ = ["LIMIT", "Shards", "open_mirror"]

LIMIT = 10_000_000_000  #: bytes of shards that are kept
_STALE = 86_400.0  # seconds after which a part of a shard is nobody's


def open_mirror(
    place: Location, *, limit: int, report: Report, signed_by: Path | None = None
) -> Store:
    """Open the store at `place`; its dataset and plan are fetched whole if they are not here.

    Args:
        signed_by: the public key of who must have signed all of it.

    Raises:
        StoreError: what is there is not what it should be, or not what the pin names; ``signature.*``.
        RemoteError: the place refused or failed.
    """
    remote = open_remote(place)
    found = outline(remote)
    if signed_by is not None:
        check_signature(found, read_signature(remote), signed_by, whole=True)
    check_pin(found, place.pin)
    root = cache_home() / "mirrors" / found.digest.removeprefix("sha256:")[:32]
    folder = root / place.name
    if not folder.exists():
        with disk_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(root / f".lock-{place.name}")
            with lock:  # another process may be at it
                try:
                    if not folder.exists():
                        _bring_small(remote, found, folder, report)
                finally:
                    Path(lock.lock_file).unlink(missing_ok=True)
    shards = Shards(remote, cache_home() / "shards", limit)
    return replace(Store.open(folder), bring=shards, url=remote.label)


def _bring_small(remote: Remote, found: Outline, folder: Path, report: Report) -> None:
    """Fetch everything but shards to `folder`, going on where an earlier try stopped; of a damaged store nothing is kept."""
    files = [*found.dataset.files, *found.plan.files]
    for part in found.scores.values():  # a factor set has no file that is not a shard
        files += [file for file in part.files if file[1].path == METADATA]
    stage = folder.with_name(f"{DEBRIS}{folder.name}")
    try:
        download(remote, files, stage, report)
    except StoreError:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    for part in found.parts:
        put(stage / part.sealed_by, part.manifest.to_bytes())
    sync_tree(stage)
    stage.rename(folder)
    sync_folder(folder.parent)


class Shards:
    """Brings shard files into a bounded folder that all stores and processes share."""

    def __init__(self, remote: Remote, folder: Path, limit: int) -> None:
        self._remote = remote
        self._folder = folder
        self._limit = limit
        self._sound: set[str] = set()  # hashed by this process
        self._lock = threading.Lock()
        self.fetched = 0  #: bytes that came over the wire

    def __call__(self, folder: Path, entry: Entry) -> Path:
        """The file that holds one shard of the set `folder`, scores/<name> or factors/<name> of a mirror."""
        if entry.size > self._limit:
            raise UsageError(
                f"a shard of {folder.name} has {entry.size:,} bytes and the local cache may hold "
                f"{self._limit:,}; raise --cache-limit, or `kd-cache pull` the store.",
                code="mirror.limit",
            )
        key = entry.sha256.removeprefix("sha256:")
        path = self._folder / key
        with self._lock, disk_errors(path):
            if key in self._sound and _used(path):
                return path
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self._folder / f".lock-{key}")
            with lock:  # another process may be bringing it
                if not is_whole(path, entry, _nobody):
                    path.unlink(missing_ok=True)
                    self._make_room(entry.size)
                    name = f"{folder.parent.name}/{folder.name}/{entry.path}"
                    fetch(self._remote, name, entry, path, self._folder, self._count)
                _used(path)
                Path(lock.lock_file).unlink(missing_ok=True)
            self._sound.add(key)
        return path

    def _make_room(self, need: int) -> None:
        """Remove the shards that were used least recently until `need` more bytes fit."""
        kept = []
        for path in self._folder.iterdir():
            try:
                status = path.stat()
            except FileNotFoundError:  # another process was faster
                continue
            if path.name.startswith(DEBRIS) and time.time() - status.st_mtime > _STALE:
                path.unlink(missing_ok=True)
            elif not path.name.startswith("."):
                kept.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in kept) + need
        for _, size, path in sorted(kept):
            if total <= self._limit:
                break
            path.unlink(missing_ok=True)  # whoever has it mapped keeps its pages
            total -= size

    def _count(self, more: int) -> None:
        self.fetched += more


def _used(path: Path) -> bool:
    """Mark a shard as used now, to the nanosecond: the file system's own clock ticks every few milliseconds.

    Returns:
        False where it is gone: another process may have made room. Whoever maps it asks again.
    """
    now = time.time_ns()
    try:
        os.utime(path, ns=(now, now))
    except FileNotFoundError:
        return False
    return True


def _nobody(_count: int) -> None:
    """For hashing that nobody watches."""
