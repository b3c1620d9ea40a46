"""Parquet as this project writes it: zstd, page checksums on both ways, the same table in the same bytes.

Without page checksums a flipped bit in a Parquet file reads back as another value, silently.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cache.atomic import disk_errors, put
from cache.errors import StoreError

__all__ = ["read_table", "write_table"]


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
    advice = "restore it or build that part again"
    try:
        with disk_errors(path):
            table = pq.read_table(
                path, page_checksum_verification=True, memory_map=False, use_threads=True
            )
    except (pa.ArrowException, ValueError) as error:
        cause = str(error).splitlines()[0][:200]
        raise StoreError(
            f"{path}: cannot be read ({cause}); {advice}.", code="store.bad_table"
        ) from error
    if table.schema != schema:
        raise StoreError(
            f"{path}: has the columns {table.schema.names}, {schema.names} were expected; {advice}.",
            code="store.bad_table",
        )
    return table
