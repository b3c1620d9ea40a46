"""Formats `csv` and `parquet`: a file of events, one a row, with or without a file of items and feature matrices.

    folder/   interactions.parquet|csv|tsv[.gz]   [items.parquet|csv|tsv[.gz]]   [text_feat.npy]   [image_feat.npy]

A source may also be the events file itself, with the items named apart. Without a column for time or position the order
of rows is the order of events. A feature matrix has one row for each row of the items file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cache.atomic import disk_errors
from cache.errors import InputError
from pipeline.ingest.columns import EVENT_PARTS, ITEM_PARTS, find_columns
from pipeline.ingest.delimited import delimited, read_events, records
from pipeline.ingest.rows import RowErrors
from pipeline.ingest.source import (
    Catalogue,
    Events,
    Source,
    bad_ids,
    decoded,
    encode_ids,
    id_problem,
)
from pipeline.ingest.times import (
    LIMIT,
    OUT_OF_RANGE,
    Times,
    column_of_times,
    number_problems,
    parse_times,
)

__all__ = ["SUFFIXES", "find_tables", "read_catalogue", "read_features", "read_tables"]

SUFFIXES: Mapping[str, Sequence[str]] = {
    "parquet": (".parquet",),
    "csv": (".csv", ".tsv", ".csv.gz", ".tsv.gz"),
}
_FEATURES = ("text", "image")


def find_tables(folder: Path, stem: str, format: str) -> list[Path]:
    """`stem` with each suffix of `format` that is there."""
    return [p for s in SUFFIXES[format] if (p := folder / f"{stem}{s}").is_file()]


def read_tables(
    source: Path, *, format: str, items: Path | None, columns: Mapping[str, str]
) -> Source:
    """Parse a folder or an events file.

    Args:
        format: csv or parquet, whatever the file's name ends in.
        items: the items file; in a folder, and beside a file named interactions.*, it is found by name.
        columns: the file's own names for user, item, time, title, brand, category, description, image.
    """
    path = source
    if source.is_dir():
        found = find_tables(source, "interactions", format)
        if not found:
            raise InputError(
                f"{source}: has no interactions file; one of "
                f"{', '.join('interactions' + s for s in SUFFIXES[format])} was expected.",
                code="ingest.missing_file",
            )
        path = _only(found, "name the file itself")
    if items is None and path.name.startswith("interactions."):
        items = _items_beside(path, format)
    parquet = format == "parquet"
    events = _parquet_events(path, columns) if parquet else _delimited_events(path, columns)
    catalogue = None if items is None else read_catalogue(items, columns)
    features = {} if catalogue is None or items is None else read_features(items.parent, catalogue)
    return Source(
        format=format,
        events=events,
        catalogue=catalogue,
        features=features,
    )


def read_catalogue(path: Path, columns: Mapping[str, str]) -> Catalogue:
    """Item texts of a csv, tsv or Parquet file; an item may be listed once."""
    catalogue = Catalogue(path=path)
    errors = RowErrors(path)
    rows = _parquet_rows(path, columns) if path.suffix == ".parquet" else None
    for index, (row, cells) in enumerate(rows or _delimited_rows(path, columns, errors)):
        item = "" if cells["item"] is None else str(cells["item"])
        problem = id_problem(item)
        if problem:
            errors.add(row, "item", problem)
            continue
        broken = [name for name, cell in cells.items() if _not_utf8(cell)]
        for name in broken:
            errors.add(row, name, "is not UTF-8")
        if item in catalogue.feature_rows:
            errors.add(row, "item", f"{item!r} is listed a second time; once was expected")
        elif not broken:
            catalogue.put(item, {name: cell for name, cell in cells.items() if name != "item"})
            catalogue.feature_rows[item] = index
    errors.raise_any()
    return catalogue


def read_features(folder: Path, catalogue: Catalogue) -> dict[str, NDArray[np.floating[Any]]]:
    """The matrices beside the items file, by vector name; rows are rows of that file.

    Raises:
        InputError: ``ingest.bad_features``.
    """
    features: dict[str, NDArray[np.floating[Any]]] = {}
    rows = len(catalogue.feature_rows)
    for name in _FEATURES:
        path = folder / f"{name}_feat.npy"
        if not path.is_file():
            continue
        try:
            with disk_errors(path):
                matrix = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise InputError(
                f"{path}: cannot be read as an array of numbers ({error}); "
                "numpy.save of a float matrix was expected.",
                code="ingest.bad_features",
            ) from error
        if not isinstance(matrix, np.ndarray):  # an .npz by another name
            matrix.close()
            raise InputError(
                f"{path}: is an archive of arrays; numpy.save of one float matrix was expected.",
                code="ingest.bad_features",
            )
        if matrix.ndim != 2 or len(matrix) != rows or matrix.dtype.kind != "f":
            raise InputError(
                f"{path}: holds {matrix.dtype} of shape {matrix.shape}; floats of shape ({rows}, d) were "
                f"expected, one row for each item of {catalogue.path}.",
                code="ingest.bad_features",
            )
        features[name] = matrix
    return features


def _only(found: Sequence[Path], remedy: str) -> Path:
    if len(found) > 1:
        raise InputError(
            f"{found[0].parent}: has {' and '.join(p.name for p in found)}; one was expected, {remedy}.",
            code="ingest.missing_file",
        )
    return found[0]


def _items_beside(path: Path, format: str) -> Path | None:
    """The items file beside the events: of the same format if there is one, else of the other."""
    for kind in sorted(SUFFIXES, key=lambda kind: kind != format):
        if found := find_tables(path.parent, "items", kind):
            return _only(found, "say which with --items")
    return None


def _delimited_events(path: Path, columns: Mapping[str, str]) -> Events:
    layout = delimited(path)
    found = find_columns(path, layout.names, EVENT_PARTS, chosen=columns, required=("user", "item"))
    return read_events(layout, user=found["user"], item=found["item"], time=found.get("time"))


def _parquet_events(path: Path, columns: Mapping[str, str]) -> Events:
    with _parquet_errors(path):
        names = pq.read_schema(path).names
    found = find_columns(
        path, names, EVENT_PARTS, chosen=columns, required=("user", "item"), header_row=0
    )
    _check_once(path, names, found)
    ids = [found["user"], found["item"]]
    with _parquet_errors(path):
        table = pq.read_table(path, columns=list(found.values()), read_dictionary=ids)
    if not table.num_rows:
        raise InputError(
            f"{path}: holds no rows; at least one event was expected.", code="ingest.empty"
        )
    errors = RowErrors(path)
    encoded = []
    for name in ids:
        _check_type(path, name, table.schema.field(name).type)
        encoded.append(encode_ids(table[name]))
        for what, wrong in bad_ids(encoded[-1]).items():
            errors.add_where(wrong, name, what)
    times = _column_times(path, table, found["time"], errors) if "time" in found else None
    errors.raise_any()
    return Events(path=path, users=encoded[0], items=encoded[1], times=times)


def _column_times(path: Path, table: pa.Table, name: str, errors: RowErrors) -> Times | None:
    column = table[name]
    kind = column.type
    if column.null_count:
        errors.add_where(column.is_null().to_numpy(), name, "is empty; a time was expected")
        return None
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        times = parse_times(column)
        return column_of_times(decoded(column), name, errors) if times is None else times
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_duration(kind):
        moments = column.cast(pa.timestamp("us"), safe=False) if pa.types.is_date(kind) else column
        values: Times = moments.cast(pa.int64()).to_numpy()
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        raw = column.to_numpy()
        if kind == pa.uint64() and (raw >= LIMIT).any():
            errors.add_where(raw >= LIMIT, name, OUT_OF_RANGE)
            return None
        values = raw.astype(np.int64 if pa.types.is_integer(kind) else np.float64)
    else:
        errors.add(0, name, f"is a column of {kind}; numbers or dates were expected")
        return None
    for what, wrong in number_problems(values).items():
        errors.add_where(wrong, name, what)
    return values


def _check_once(path: Path, names: Sequence[str], found: Mapping[str, str]) -> None:
    """Refuse a column in use that the file has twice; Parquet lets it."""
    for name in found.values():
        if names.count(name) > 1:
            raise InputError(
                f"{path}: {name}: stands {names.count(name)} times among the columns; once was expected.",
                code="ingest.bad_header",
            )


def _check_type(path: Path, name: str, kind: pa.DataType) -> None:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    texts = pa.types.is_string(value) or pa.types.is_large_string(value)
    if not (texts or pa.types.is_string_view(value) or pa.types.is_integer(value)):
        raise InputError(
            f"{path}: {name}: is a column of {kind}; text or whole numbers were expected.",
            code="ingest.bad_type",
        )


@contextlib.contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises on a damaged file into an InputError."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # pyarrow's own have none
            with disk_errors(path):
                raise
        raise InputError(
            f"{path}: cannot be read as Parquet ({str(error).splitlines()[0][:160]}); "
            "fetch or write the file again.",
            code="ingest.bad_parquet",
        ) from error


def _parquet_rows(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[int, dict[str, Any]]]:
    with _parquet_errors(path):
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        found = find_columns(
            path,
            schema.names,
            ITEM_PARTS,
            chosen=_of_items(columns, schema.names),
            required=("item",),
            header_row=0,
        )
        _check_once(path, schema.names, found)
        _check_type(path, found["item"], schema.field(found["item"]).type)
        row = 0
        for batch in file.iter_batches(columns=list(found.values())):
            lists = [batch.column(name).to_pylist() for name in found.values()]
            for cells in zip(*lists, strict=True):
                row += 1
                yield row, dict(zip(found, cells, strict=True))


def _delimited_rows(
    path: Path, columns: Mapping[str, str], errors: RowErrors
) -> Iterator[tuple[int, dict[str, Any]]]:
    layout = delimited(path)
    found = find_columns(
        path,
        layout.names,
        ITEM_PARTS,
        chosen=_of_items(columns, layout.names),
        required=("item",),
    )
    places = {part: layout.names.index(name) for part, name in found.items()}
    for row, cells in records(layout, errors):
        yield row, {part: cells[at] for part, at in places.items()}


def _of_items(columns: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """The choices for the items file; the ids may have another name there than in the events file."""
    return {
        part: name
        for part, name in columns.items()
        if part in ITEM_PARTS and (part != "item" or name in names)
    }


def _not_utf8(cell: Any) -> bool:
    if not isinstance(cell, str) or cell.isascii():
        return False
    try:
        cell.encode()
    except UnicodeEncodeError:
        return True
    return False
