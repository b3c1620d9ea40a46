"""`ingest`: interaction logs and item texts of any known format in, a frozen dataset out.

    parse (one file a format) -> Source -> freeze (duplicates, k-core, order, numbering) -> Dataset

Bad rows are all collected and named by file and line before anything is written. Formats: docs/formats.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cache.atomic import check_writable
from cache.errors import StoreError, UsageError
from pipeline.ingest.amazon import read_amazon
from pipeline.ingest.columns import EVENT_PARTS, PARTS, check_parts
from pipeline.ingest.detect import FORMATS, detect, must_exist
from pipeline.ingest.freeze import Counts, Ingested, freeze
from pipeline.ingest.recbole import read_recbole
from pipeline.ingest.recformer import read_recformer
from pipeline.ingest.source import Source
from pipeline.ingest.tables import read_tables
from pipeline.ingest.unisrec import read_unisrec

__all__ = ["FORMATS", "MAX_LENGTH", "PARTS", "Counts", "Ingested", "detect", "ingest"]

MAX_LENGTH = 1 << 16  #: a dataset that speaks of longer histories is not opened


def ingest(
    source: Path,
    out: Path,
    *,
    format: str | None = None,
    items: Path | None = None,
    columns: Mapping[str, str] | None = None,
    k_core: int | None = None,
    max_length: int = 50,
    anonymise: bool = False,
) -> Ingested:
    """Freeze the interactions of `source` as the dataset `out`.

    Args:
        source: a file or folder of one of `FORMATS`.
        out: where the dataset goes; must not be there yet.
        format: told from the source where None.
        items: a file of item texts apart from the source (csv, parquet, recbole, amazon*).
        columns: the source's own column names by part (`PARTS`), for csv, parquet and recbole.
        k_core: least interactions of a user and of an item; None for 5, or 0 for sets that were filtered already
            (unisrec, recformer).
        max_length: histories are cut to this many items.
        anonymise: leave the users' ids out.

    Raises:
        UsageError: unknown format, part or setting.
        InputError: rows that cannot be read, or nothing left.
        StoreError: `out` is there already.
        DiskError: the disk refused.
    """
    if format is not None and format not in FORMATS:
        raise UsageError(
            f"format {format!r}: is not known; one of {', '.join(FORMATS)} was expected.",
            code="ingest.unknown_format",
        )
    if not 1 <= max_length <= MAX_LENGTH or (k_core is not None and k_core < 0):
        raise UsageError(
            f"max_length {max_length} and k_core {k_core}: 1 to {MAX_LENGTH} and at least 0 were expected.",
            code="ingest.bad_setting",
        )
    if out.exists():  # before hours of parsing, not after
        raise StoreError(
            f"{out}: is already there and is never overwritten; choose another name or remove it first.",
            code="store.exists",
        )
    check_writable(out.parent)
    for path in (source, items):
        if path is not None:
            must_exist(path)
    if items is not None and items.is_dir():
        raise UsageError(
            f"{items}: is a folder; one file of item texts was expected.", code="ingest.no_source"
        )
    found = detect(source) if format is None else format
    parsed = _parse(source, found, items, columns or {})
    of_items = set(columns or {}) - set(EVENT_PARTS)
    if of_items and parsed.catalogue is None:
        raise UsageError(
            f"column for {min(of_items)}: belongs to the items, and {source} comes with no file of them; "
            "name one with --items.",
            code="ingest.unused_setting",
        )
    return freeze(
        parsed,
        out,
        k=parsed.default_k if k_core is None else k_core,
        max_length=max_length,
        anonymise=anonymise,
    )


def _parse(source: Path, name: str, items: Path | None, columns: Mapping[str, str]) -> Source:
    check_parts(columns)
    if columns and name not in {"csv", "parquet", "recbole"}:
        raise UsageError(
            f"format {name}: its columns have fixed names; leave the column settings away.",
            code="ingest.unused_setting",
        )
    if items is not None and name in {"unisrec", "recformer"}:
        raise UsageError(
            f"format {name}: brings its item texts along; leave --items away.",
            code="ingest.unused_setting",
        )
    if name in {"csv", "parquet"}:
        return read_tables(source, format=name, items=items, columns=columns)
    if name == "recbole":
        return read_recbole(source, items=items, columns=columns)
    if name == "unisrec":
        return read_unisrec(source)
    if name == "recformer":
        return read_recformer(source)
    return read_amazon(source, dialect=name, items=items)
