"""The journal of unfinished work: which files are whole, told by digest and never by mere existence.

    <work>/journal.jsonl   one line a file: {"path", "sha256", "size"}

A file goes through the one door first, then its line is appended and fsynced; the digest is taken from memory while the
disk writes. On resume a file counts only if it is journalled and its bytes still hash to that digest. A torn or damaged line is
dropped: it costs the work of one file, never the result. One process writes a journal; others may look into it.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Collection
from pathlib import Path

from cache.atomic import append_line, disk_errors, make_folder, put, sync_folder
from cache.digest import Bytes, canonical_json, sha256_bytes, sha256_file
from cache.manifest import Entry
from cache.thread import Thread

__all__ = ["JOURNAL", "Journal", "parse_line"]

JOURNAL = "journal.jsonl"

_LARGE = 1 << 20  #: bytes from which hashing beside the writing pays for a thread


class Journal:
    """The files of a work folder that are known to be whole."""

    def __init__(self, folder: Path, *, mine: bool = True) -> None:
        """Read the journal of `folder`, and write it anew without the lines that are torn.

        Args:
            mine: whether this process writes it; the journal of another one is left as it is.
        """
        self.folder = folder
        self._path = folder / JOURNAL
        self._entries: dict[str, Entry] = {}
        with disk_errors(self._path):
            data = self._path.read_bytes() if self._path.exists() else b""
        lines = data.split(b"\n")
        read = [entry for entry in map(parse_line, lines[:-1]) if entry is not None]
        self._entries = {entry.path: entry for entry in read}
        if mine and (lines[-1] or len(read) != len(lines) - 1):
            put(self._path, b"".join(_line(entry) for entry in read))

    def put(self, name: str, *pieces: Bytes) -> None:
        """Write a file and its line, both durable on return."""
        size = sum(memoryview(piece).nbytes for piece in pieces)
        # not beside it: were the lock not honoured, another writer might publish what is half written
        if size < _LARGE:
            digest = sha256_bytes(*pieces)
            put(self.folder / name, *pieces, aside=self.folder)
        else:  # both leave the interpreter free
            found: list[str] = []
            beside = Thread(lambda: found.append(sha256_bytes(*pieces)))
            try:
                beside.start()
                put(self.folder / name, *pieces, aside=self.folder)
            finally:
                beside.join()
            (digest,) = found
        entry = Entry(path=name, size=size, sha256=digest)
        append_line(self._path, _line(entry))
        self._entries[name] = entry

    def adopt(self, other: Journal, name: str) -> bool:
        """Move a file of `other` here with its line, both durable on return; False if it is not whole there."""
        if not other.whole(name):
            return False
        target, entry = self.folder / name, other._entries[name]
        with disk_errors(target):
            make_folder(target.parent)
            (other.folder / name).replace(target)
            sync_folder(target.parent)
        append_line(self._path, _line(entry))
        self._entries[name] = entry
        return True

    @property
    def names(self) -> Collection[str]:
        """What is journalled, whether it still lies there or not."""
        return self._entries.keys()

    def digest(self, name: str) -> str | None:
        """What `name` was when it was written, or None if it never was."""
        entry = self._entries.get(name)
        return entry.sha256 if entry is not None else None

    def whole(self, name: str) -> bool:
        """Whether `name` is journalled and lies there with exactly those bytes; reads the file."""
        entry = self._entries.get(name)
        if entry is None or not self.there(name):
            return False
        with disk_errors(self.folder / name):
            return sha256_file(self.folder / name) == entry.sha256

    def there(self, name: str) -> bool:
        """Whether `name` is journalled and lies there in its size; reads nothing of it."""
        entry = self._entries.get(name)
        path = self.folder / name
        if entry is None:
            return False
        with disk_errors(path):
            try:
                status = path.lstat()
            except (FileNotFoundError, NotADirectoryError):
                return False
            return stat.S_ISREG(status.st_mode) and status.st_size == entry.size


def _line(entry: Entry) -> bytes:
    return canonical_json({"path": entry.path, "sha256": entry.sha256, "size": entry.size}) + b"\n"


def parse_line(line: bytes) -> Entry | None:
    """One line of a journal, without its end; None where it is torn or damaged."""
    try:
        entry = Entry(**json.loads(line))
        return entry if _line(entry) == line + b"\n" else None
    except (ValueError, TypeError, RecursionError):
        return None
