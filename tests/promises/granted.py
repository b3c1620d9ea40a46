"""A lock that everybody gets, as on some network disks; in the place of filelock's."""

from __future__ import annotations

from pathlib import Path

__all__ = ["Granted"]


class Granted:
    def __init__(self, path: Path, blocking: bool) -> None:
        pass

    def acquire(self) -> None:
        pass

    def release(self) -> None:
        pass
