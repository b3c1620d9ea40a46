"""Format 1 of a factor set: two tables of vectors in plain `.npy` files, every byte of them computed from four numbers.

    factors/<name>/   manifest.json   histories/0000000.npy ...   items/0000000.npy ...

`histories` has a row an instance of the plan, `items` a row an item of the dataset; their product is the teacher's bare
score. float16, little-endian, C order, `rows_per_file` rows a file, the last of a table may hold fewer. Nothing is
parsed that could be computed: a file must begin with the header that this file would write.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cache.plan import Plan

__all__ = ["HEADER_BYTES", "TABLES", "FactorLayout", "Halves", "Table"]

Table: TypeAlias = Literal["histories", "items"]
TABLES: tuple[Table, ...] = ("histories", "items")

Halves: TypeAlias = NDArray[np.float16]

HEADER_BYTES = 128
_MAGIC = b"\x93NUMPY\x01\x00"
_ITEM = np.dtype("<f2")


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorLayout:
    """The geometry of one factor set."""

    instances: int
    items: int
    width: int  #: D, numbers in a vector
    per_file: int  #: rows in a full file

    @classmethod
    def of(cls, plan: Plan, *, items: int, width: int, per_file: int) -> FactorLayout:
        """The layout of a factor set over `plan`, whose dataset has so many items."""
        return cls(instances=plan.num_instances, items=items, width=width, per_file=per_file)

    @property
    def row_bytes(self) -> int:
        """Bytes of one vector."""
        return self.width * _ITEM.itemsize

    @property
    def units(self) -> Iterator[tuple[Table, int]]:
        """Every file as (table, number); each is one unit of work."""
        for table in TABLES:
            for number in range(self.files(table)):
                yield table, number

    @property
    def num_files(self) -> int:
        """Of both tables."""
        return sum(map(self.files, TABLES))

    def files(self, table: Table) -> int:
        """Files of a table."""
        return -(-self.rows(table) // self.per_file)

    def rows(self, table: Table) -> int:
        """Rows of a table."""
        return self.instances if table == "histories" else self.items

    def file_rows(self, table: Table, number: int) -> range:
        """The rows that one file holds."""
        first = number * self.per_file
        return range(first, min(first + self.per_file, self.rows(table)))

    def path(self, table: Table, number: int) -> str:
        """Relative to the factor set's folder."""
        return f"{table}/{number:07d}.npy"

    def size(self, table: Table, number: int) -> int:
        """Bytes of a file."""
        return HEADER_BYTES + len(self.file_rows(table, number)) * self.row_bytes

    def sizes(self) -> dict[str, int]:
        """Path and size of every file."""
        return {self.path(*unit): self.size(*unit) for unit in self.units}

    def header(self, table: Table, number: int) -> bytes:
        """The first bytes of a file: version 1.0 of numpy's format, padded to `HEADER_BYTES`."""
        shape = (len(self.file_rows(table, number)), self.width)
        text = f"{{'descr': '<f2', 'fortran_order': False, 'shape': {shape}, }}".encode("ascii")
        length = HEADER_BYTES - len(_MAGIC) - 2
        return _MAGIC + length.to_bytes(2, "little") + text.ljust(length - 1) + b"\n"

    def vectors(self, data: NDArray[np.uint8]) -> Halves:
        """[rows, D] of a whole file; a view."""
        vectors_ND: NDArray[Any] = data[HEADER_BYTES:].view(_ITEM)
        return vectors_ND.reshape(-1, self.width)
