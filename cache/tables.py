"""Parquet as this project writes it: zstd, page checksums on both ways, the same table in the same bytes.

Without page checksums a flipped bit in a Parquet file reads back as another value, silently.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cache.atomic import disk_errors, put
from cache.errors import StoreError

__all__ = ["read_pieces", "read_table", "write_table"]

_ADVICE = "restore it or build that part again"


def write_table(path: Path, table: pa.Table) -> None:
    """Write `table` through the one door."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(None),
        sink,
        compression="zstd",
        write_page_checksum=True,
        store_schema=True,
        version="2.6",
    )
    put(path, memoryview(sink.getvalue()))


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Read a table that must have exactly `schema`.

    Raises:
        StoreError: ``store.bad_table`` when it cannot be read or has other columns.
    """
    with _readable(path):
        table = pq.read_table(
            path, page_checksum_verification=True, memory_map=False, use_threads=True
        )
    _check(path, table.schema, schema)
    return table


def read_pieces(path: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    """Read a table that must have exactly `schema` piece by piece, a million rows or so at once.

    Raises:
        StoreError: as :func:`read_table`.
    """
    with _readable(path):
        file = pq.ParquetFile(path, page_checksum_verification=True, memory_map=False)
    with file:
        _check(path, file.schema_arrow, schema)
        for number in range(file.num_row_groups):
            with _readable(path):
                piece = file.read_row_group(number)
            yield piece


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        with disk_errors(path):
            yield
    except (pa.ArrowException, ValueError) as error:
        cause = str(error).splitlines()[0][:200]
        raise StoreError(
            f"{path}: cannot be read ({cause}); {_ADVICE}.", code="store.bad_table"
        ) from error


def _check(path: Path, found: pa.Schema, wanted: pa.Schema) -> None:
    if found != wanted:
        raise StoreError(
            f"{path}: has the columns {found.names}, {wanted.names} were expected; {_ADVICE}.",
            code="store.bad_table",
        )
