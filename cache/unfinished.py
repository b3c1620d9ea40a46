"""A part that is being written: begun, gone on with after any kill, published by one rename.

    scores/.work-<name>/   identity.json  journal.jsonl  set/   until everything is there
    scores/<name>/         the sealed part, which `set/` becomes

Files of the part lie in `set/`, whatever else the work needs beside it; both are trusted by digest, never by mere existence.
Refuses work that was begun with other parents or settings, naming what differs, and a disk that gives back other bytes
than it was given.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from cache.atomic import disk_errors, make_folder, put, sweep, sync_folder
from cache.digest import Bytes, canonical_json
from cache.errors import StoreError
from cache.journal import JOURNAL, Journal
from cache.manifest import MANIFEST, Manifest, seal
from cache.paths import check_folder, check_name

__all__ = ["HANDS", "Unfinished", "clear_work", "refuse_other_work", "work_folder"]

HANDS = (
    "hands"  #: where processes that help have work folders of their own, in the one they help with
)

_IDENTITY = "identity.json"
_SET = "set"


def work_folder(folder: Path) -> Path:
    """Where the unfinished part that will become `folder` lies."""
    return folder.parent / f".work-{folder.name}"


def clear_work(folder: Path) -> None:
    """Remove the work folder of the sealed part `folder`; what a writer killed at the very end left."""
    work = check_folder(work_folder(folder))
    with disk_errors(work):
        # the journal goes first: a half-removed folder must never look like work to go on with
        for name in (JOURNAL, _IDENTITY):
            (work / name).unlink(missing_ok=True)
        if work.is_dir():
            _remove(work)
            sync_folder(work.parent)


class Unfinished:
    """One part on its way to `folder`. Make one with :meth:`open`."""

    def __init__(
        self, folder: Path, parents: Mapping[str, str], settings: Mapping[str, Any]
    ) -> None:
        self.folder = folder  #: where the sealed part will lie
        self.parents = parents
        self.settings = settings
        self.work = work_folder(folder)
        self.journal = Journal(self.work)

    @classmethod
    def open(
        cls, folder: Path, *, parents: Mapping[str, str], settings: Mapping[str, Any]
    ) -> Unfinished:
        """Begin the part `folder`, or go on where a killed writer stopped.

        Raises:
            StoreError: ``scores.foreign_work`` when the work was begun with other parents or settings;
                ``store.not_a_folder`` where a link has the work's name.
        """
        check_name(folder.name, where=str(folder.parent))
        work = check_folder(work_folder(folder))
        # never begun, or killed before the first word
        if not refuse_other_work(work, parents, settings):
            with disk_errors(work):
                shutil.rmtree(work, ignore_errors=True)
                make_folder(work)
            put(work / _IDENTITY, _identity(parents, settings))
        if not (work / HANDS).is_dir():  # in there somebody may be writing
            sweep(work)
        _drop_links(work)
        return cls(folder, parents, settings)

    def name(self, path: str) -> str:
        """What the journal calls the part's file `path`."""
        return f"{_SET}/{path}"

    def whole(self, path: str) -> bool:
        """Whether the part's file `path` is there, byte for byte; reads it."""
        return self.journal.whole(f"{_SET}/{path}")

    def there(self, path: str) -> bool:
        """Whether the part's file `path` was put and lies there in its size; reads nothing."""
        return self.journal.there(f"{_SET}/{path}")

    def put(self, path: str, *pieces: Bytes) -> None:
        """Write one file of the part, durably."""
        self.journal.put(f"{_SET}/{path}", *pieces)

    def publish(
        self,
        *,
        kind: str,
        counts: Mapping[str, int],
        files: Collection[str],
        more: Mapping[str, bytes],
        format: int = 1,
    ) -> Manifest:
        """Read everything back, write the manifest, publish the part by one rename, clear the work.

        Args:
            files: what was to be put; whatever else lies there goes.
            more: small files by path, whose bytes are at hand.
            format: the manifest's.

        Raises:
            StoreError: ``scores.incomplete`` when files are missing, ``store.wrong_digest`` when the disk gives back
                other bytes than it was given.
        """
        # by name and size; sealing reads them all, and what it read is compared with the journal
        if missing := [path for path in files if not self.there(path)]:
            raise StoreError(
                f"{self.work}: {len(missing)} of {len(files)} files are not there yet; "
                "run the same `kd-cache build` again.",
                code="scores.incomplete",
            )
        staged = self.work / _SET
        for name, data in more.items():
            put(staged / name, data, aside=self.work)
        _clear_strays(staged, {*files, *more})
        manifest = seal(
            staged,
            kind=kind,
            parents=self.parents,
            settings=self.settings,
            counts=counts,
            format=format,
            aside=self.work,
        )
        for entry in manifest.files:
            given = self.journal.digest(f"{_SET}/{entry.path}")
            if given is not None and given != entry.sha256:
                (staged / MANIFEST).unlink()
                raise StoreError(
                    f"{staged / entry.path}: the disk gave back other bytes than it was given; "
                    "check the disk, then run the same `kd-cache build` again.",
                    code="store.wrong_digest",
                )
        with disk_errors(self.folder):
            for path in [*(p for p in staged.rglob("*") if p.is_dir()), staged]:
                sync_folder(path)
            staged.rename(self.folder)
            sync_folder(self.folder.parent)
        clear_work(self.folder)
        return manifest


def _remove(work: Path) -> None:
    while work.is_dir():
        try:
            shutil.rmtree(work)
        except OSError as error:  # somebody whom no lock holds off may write or clear there too
            if error.errno not in {errno.ENOENT, errno.ENOTEMPTY}:
                raise


def _drop_links(work: Path) -> None:
    """No writer makes them, and through one the next file would land elsewhere."""
    with disk_errors(work):
        for path in work.rglob("*"):
            if path.is_symlink():
                path.unlink()


def _clear_strays(staged: Path, expected: Collection[str]) -> None:
    with disk_errors(staged):
        for path in sorted(staged.rglob("*"), reverse=True):
            if path.relative_to(staged).as_posix() in expected:
                continue
            if path == staged / MANIFEST and path.is_file() and not path.is_symlink():
                continue  # sealing puts its own in that place; another writer's is not taken away
            if path.is_symlink() or not path.is_dir():
                path.unlink()
            elif not any(path.iterdir()):
                path.rmdir()


def _identity(parents: Mapping[str, str], settings: Mapping[str, Any]) -> bytes:
    return canonical_json({"parents": dict(parents), "settings": dict(settings)}) + b"\n"


def refuse_other_work(work: Path, parents: Mapping[str, str], settings: Mapping[str, Any]) -> bool:
    """Whether the work folder `work` was begun with these parents and settings; False where none was begun.

    Raises:
        StoreError: ``scores.foreign_work`` when it was begun with others.
    """
    path = work / _IDENTITY
    if not path.is_file():
        return False
    with disk_errors(path):
        data = path.read_bytes()
    if data == _identity(parents, settings):
        return True
    try:
        begun = json.loads(data)
        old = {**begun["parents"], **begun["settings"]}
        new = {**parents, **settings}
        odd = [
            f"{key} {old.get(key)!r} there, {new.get(key)!r} now"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]
    except (ValueError, TypeError, KeyError, RecursionError):
        odd = []
    raise StoreError(
        f"{work}: an unfinished build with other settings lies there "
        f"({'; '.join(odd) or 'its identity.json is damaged'}); "
        "run the command that began it, or remove that folder to start afresh.",
        code="scores.foreign_work",
    )
