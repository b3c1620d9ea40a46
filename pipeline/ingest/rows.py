"""What is wrong with rows that were handed in: `file:row: column: what`, the first twenty and a count of the rest.

A row is a line of the file as an editor numbers it (the header is line 1); in Parquet, which has no lines, the first
row is row 1. All errors of a file are collected before one InputError is raised, so that one look mends them all.
Holds at most a few hundred errors however many there are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.errors import InputError

__all__ = ["SHOWN", "RowErrors"]

SHOWN = 20
_HELD = 10 * SHOWN


class RowErrors:
    """Collects the errors of one file; `raise_any` turns them into one InputError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._first: list[tuple[int, int, str]] = []

    def add(self, row: int, column: str, what: str) -> None:
        """Note one error; row 0 stands for the file as a whole."""
        self.count += 1
        self._first.append((row, self.count, f"{column}: {what}"))
        if len(self._first) >= _HELD:
            self._first = sorted(self._first)[:SHOWN]

    def add_where(self, wrong: NDArray[np.bool_], column: str, what: str) -> None:
        """Note the same error for every True of `wrong`, whose index 0 is row 1."""
        rows = np.flatnonzero(wrong)
        for row in rows[:SHOWN]:
            self.add(int(row) + 1, column, what)
        self.count += len(rows[SHOWN:])

    def raise_any(self) -> None:
        """Raise InputError ``ingest.bad_rows`` with the first rows in order, if there is any error."""
        if not self.count:
            return
        lines = [
            f"{self.path}:{row}: {text}" if row else f"{self.path}: {text}"
            for row, _, text in sorted(self._first)[:SHOWN]
        ]
        if self.count > len(lines):
            lines.append(f"{self.path}: and {self.count - len(lines):,} more like these")
        raise InputError("\n".join(lines), code="ingest.bad_rows")
