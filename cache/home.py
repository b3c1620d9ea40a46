"""The folder of this machine in which copies of what lies elsewhere are kept: all of it may be removed at any time.

`KD_CACHE_DIR`, else `$XDG_CACHE_HOME/ckd-mdsr`, else `~/.cache/ckd-mdsr`.
"""

from __future__ import annotations

import os
from pathlib import Path

from cache.atomic import append_line
from cache.digest import canonical_json, sha256_bytes
from cache.journal import parse_line
from cache.manifest import Entry

__all__ = ["SentLog", "cache_home"]


def cache_home() -> Path:
    """Where this machine keeps its copies; made by whoever first writes there."""
    if named := os.environ.get("KD_CACHE_DIR"):
        return Path(named).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ckd-mdsr"


class SentLog:
    """What this machine has sent to one place: which tag the server gave to which bytes.

    An object that still has that tag need be neither sent nor read back. A lost or damaged log costs reading back.
    """

    def __init__(self, label: str) -> None:
        name = sha256_bytes(label.encode()).removeprefix("sha256:")[:32]
        self._path = cache_home() / "sent" / f"{name}.jsonl"
        lines = self._path.read_bytes().split(b"\n") if self._path.is_file() else []
        self._known = {entry for line in lines if (entry := parse_line(line)) is not None}

    def knows(self, tag: str, entry: Entry) -> bool:
        """Whether the object with this tag holds exactly those bytes."""
        return bool(tag) and Entry(path=tag, size=entry.size, sha256=entry.sha256) in self._known

    def add(self, tag: str, entry: Entry) -> None:
        """Remember it, durably."""
        if not tag:
            return
        self._known.add(Entry(path=tag, size=entry.size, sha256=entry.sha256))
        fact = {"path": tag, "sha256": entry.sha256, "size": entry.size}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        append_line(self._path, canonical_json(fact))
