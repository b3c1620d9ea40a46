"""What whoever fills a score set or factor set shares: one writer at a time, a finished set, the log beside the store.

Runs and teachers in training have their lock here too.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import filelock

from cache.atomic import append_line, disk_errors, make_folder
from cache.digest import canonical_json
from cache.errors import StoreError
from cache.manifest import Manifest, read_manifest
from cache.plan import Plan
from cache.score_writer import parents_of
from cache.store import Store

__all__ = ["Progress", "finished", "locked", "log", "only_trainer", "only_writer", "silent"]


class Progress(Protocol):
    """Hears how far a build has come."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """`stage` is ``items``, ``histories`` (instances), ``factors`` (files) or ``scores`` (batches)."""


def finished(folder: Path, kind: str, plan: Plan, settings: Mapping[str, Any]) -> Manifest:
    """The manifest of a set that is there already, if it is the one that was asked for."""
    manifest = read_manifest(folder, kind)
    old = {**manifest.parents, **manifest.settings}
    new = {**parents_of(plan), **settings}
    odd = [
        f"{key} {old.get(key)!r} there, {new.get(key)!r} asked for"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if odd:
        raise StoreError(
            f"{folder}: is built already with other settings ({'; '.join(odd)}); "
            "give this one another name with `--name`, or remove that folder.",
            code="scores.exists",
        )
    return manifest


@contextlib.contextmanager
def locked(path: Path, busy: str, code: str = "store.busy") -> Iterator[None]:
    """Hold the lock file `path`; the system frees it when its holder dies.

    What keeps a store whole is unique names and one rename, not this lock: where a network disk does not honour it, two
    writers cost double work.

    Raises:
        StoreError: `code` with the sentence `busy`, where another process holds it.
    """
    with disk_errors(path):
        make_folder(path.parent)
    lock = filelock.FileLock(path, blocking=False)
    with disk_errors(path):
        try:
            lock.acquire()
        except filelock.Timeout as error:  # an OSError too
            raise StoreError(busy, code=code) from error
    try:
        yield
    finally:
        # unlinked while held: whoever waits on the old file finds it has no name and starts over
        path.unlink(missing_ok=True)
        lock.release()


def only_writer(folder: Path) -> contextlib.AbstractContextManager[None]:
    """The lock of one score set, and of the factors of that name."""
    path = folder.parent / f".lock-{folder.name}"
    return locked(
        path,
        f"{folder}: another process is building it right now ({path.name} is locked); "
        "wait for that one, or run the same command later: it goes on from what is there.",
    )


@contextlib.contextmanager
def only_trainer(folder: Path) -> Iterator[None]:
    """The lock of one run or teacher while it is trained: two that train it write over each other's files.

    Raises:
        StoreError: ``train.busy``.
    """
    path = folder.parent / f".lock-{folder.name}"
    made = [one for one in path.parents if not one.exists()]
    busy = (
        f"{folder}: another process is training it right now ({path.name} is locked); wait for that "
        "one, or name another folder with `--out`."
    )
    try:
        with locked(path, busy, "train.busy"):
            yield
    finally:
        for one in made:  # what was refused leaves nothing behind
            with contextlib.suppress(OSError):
                one.rmdir()


def log(store: Store, kind: str, manifest: Manifest, name: str, started: float) -> None:
    """One line beside the store of what may not stand inside it."""
    fact = {
        "built": name,
        "kind": kind,
        "digest": manifest.digest,
        "host": os.uname().nodename,
        "seconds": round(time.time() - started, 1),
        "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    append_line(store.log, canonical_json(fact))


def silent(stage: str, done: int, total: int) -> None:
    """For callers who do not listen."""
