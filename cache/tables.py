"""Parquet as this project writes it: zstd, page checksums on both ways, the same table in the same bytes.

Without page checksums a flipped bit in a Parquet file reads back as another value, silently. A table is decoded from the very
bytes that were hashed. Refused before anything is unpacked: other columns, another number of rows than the manifest
says, and more than 256 times the file's size (or 64 MiB), which no honest table reaches; then empty cells.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cache.atomic import disk_errors, put
from cache.errors import StoreError
from cache.manifest import Manifest
from cache.pages import check_pages
from cache.proven import proven

__all__ = ["check_rows", "read_pieces", "read_table", "write_table"]

_ADVICE = "restore it or build that part again"

_RATIO = (
    256  #: bytes in memory for a byte of the file, at most; runs of equal values make about 100
)
_ROWS = 8  #: rows of distinct ids for a byte of the file, at most; numbers in a row make about one
_PIECE = 1 << 17  #: rows
_SMALL = 64 << 20  #: bytes in memory that any file may take


def write_table(path: Path, table: pa.Table) -> None:
    """Write `table` through the one door."""
    data = _packed(table.replace_schema_metadata(None), compression="zstd")
    try:
        _check_claims(data, table)
    except ValueError:  # an honest table that packs more densely than any reader believes
        data = _packed(
            table.replace_schema_metadata(None), compression="none", use_dictionary=False
        )
    put(path, memoryview(data))


def _packed(table: pa.Table, **how: Any) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True, store_schema=True, version="2.6", **how)
    return sink.getvalue()


def _check_claims(data: pa.Buffer, table: pa.Table) -> None:
    """Raise ValueError where a reader would refuse what `table` was packed into."""
    limit = _limit(data)
    check_pages(data, pq.read_metadata(pa.BufferReader(data)), limit)
    if table.nbytes > limit:
        raise ValueError("its texts")


def _limit(data: pa.Buffer) -> int:
    """Bytes that a file may unpack to."""
    return max(_SMALL, _RATIO * len(data))


def read_table(
    folder: Path, manifest: Manifest, name: str, schema: pa.Schema, rows: int
) -> pa.Table:
    """Read the table `name` of a sealed part, which must have exactly `schema` and `rows` rows.

    Raises:
        StoreError: ``store.wrong_size``, ``store.wrong_digest``, ``store.missing``; ``store.bad_table`` when it cannot be
            read, has other columns or rows, or unpacks to more than a table of its size may.
    """
    path = folder / name
    with _opened(path, manifest, schema, rows) as (file, limit):
        return _sound(path, file.read(use_threads=True), schema, limit)


def read_pieces(
    folder: Path, manifest: Manifest, name: str, schema: pa.Schema, rows: int
) -> Iterator[pa.Table]:
    """The same piece by piece, 131,072 rows at once: no more than one lies in memory, packed or unpacked.

    Raises:
        StoreError: as :func:`read_table`.
    """
    path = folder / name
    with _opened(path, manifest, schema, rows) as (file, limit):
        done = 0
        # one row group after another: asked for all of them, it would hold on to each one's bytes
        for number in range(file.num_row_groups):
            for batch in file.iter_batches(_PIECE, row_groups=[number], use_threads=False):
                piece = _sound(path, pa.Table.from_batches([batch]), schema, limit)
                done += piece.num_rows
                if done > rows:
                    raise _bad(path, f"has more rows than the {rows:,} that it says")
                yield piece
        if done != rows:
            raise _bad(path, f"has fewer rows than the {rows:,} that it says")


@contextlib.contextmanager
def _opened(
    path: Path, manifest: Manifest, schema: pa.Schema, rows: int
) -> Iterator[tuple[pq.ParquetFile, int]]:
    """(the file, bytes in memory that it may unpack to), nothing unpacked yet; what goes wrong inside is told as ours."""
    texts = [field.name for field in schema if field.type == pa.string()]
    data = _sealed(path, manifest)
    with _readable(path):
        limit = _limit(data)
        file = pq.ParquetFile(
            pa.BufferReader(data),
            page_checksum_verification=True,
            read_dictionary=texts,  # so that a text that stands in many rows takes its place once
        )
        plain = pq.ParquetFile(pa.BufferReader(data)).schema_arrow
        if plain != schema:
            raise _bad(path, f"has the columns {plain.names}, {schema.names} were expected")
        if file.metadata.num_rows != rows:
            raise _bad(path, f"has {file.metadata.num_rows:,} rows, {rows:,} were expected")
        check_pages(data, file.metadata, limit)
        yield file, limit


def _sound(path: Path, table: pa.Table, schema: pa.Schema, limit: int) -> pa.Table:
    """A table as `schema` has it, its texts within `limit` bytes, no cell empty."""
    texts = [field.name for field in schema if field.type == pa.string()]
    if sum(_text_bytes(table[text]) for text in texts) > limit:
        raise ValueError(f"its texts claim more than {limit:,} bytes")
    table = table.cast(schema)
    table.validate(full=True)
    if any(_has_nulls(column) for column in table.columns):
        raise _bad(path, "has empty cells")
    return table


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, ValueError, OSError) as error:  # OSError: a page's checksum
        raise _bad(path, f"cannot be read ({str(error).splitlines()[0][:200]})") from error


def check_rows(folder: Path, name: str, rows: int) -> None:
    """Refuse, from its footer alone, a table of distinct ids that has not `rows` rows, or cannot have them.

    Raises:
        StoreError: ``store.bad_table``.
    """
    path = folder / name
    with disk_errors(path):
        size = path.stat().st_size
        try:
            found = pq.read_metadata(path).num_rows
        except (pa.ArrowException, ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk's, not the file's
                raise
            raise _bad(path, f"cannot be read ({str(error).splitlines()[0][:200]})") from error
    if found != rows or rows > size * _ROWS:
        what = f"has {found:,} rows in {size:,} bytes, {rows:,} rows were expected"
        raise _bad(path, what)


def _sealed(path: Path, manifest: Manifest) -> pa.Buffer:
    entry = next((entry for entry in manifest.files if entry.path == path.name), None)
    if entry is None:
        raise StoreError(f"{path}: is missing; {_ADVICE}.", code="store.missing")
    return proven(path, entry, advice=_ADVICE)


def _text_bytes(column: Any) -> int:
    """What a column of texts takes when each stands in its own row."""
    total = 0
    for chunk in column.chunks:
        lengths = pc.binary_length(chunk.dictionary)
        total += 4 * len(chunk) + (pc.sum(lengths.take(chunk.indices)).as_py() or 0)
    return total


def _has_nulls(column: Any) -> bool:
    chunks = column.chunks
    return any(
        chunk.null_count or (pa.types.is_list(chunk.type) and chunk.values.null_count)
        for chunk in chunks
    )


def _bad(path: Path, what: str) -> StoreError:
    return StoreError(f"{path}: {what}; {_ADVICE}.", code="store.bad_table")
