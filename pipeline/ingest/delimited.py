"""Rows of delimited text (csv, tsv, atomic files), gzipped or not, with or without a byte order mark.

Events take Arrow's reader: ids straight into dictionaries, a column of ten million ids in 40 MB. Only where that fails
is the file read again row by row in Python, at about half a million rows a second, to say which rows are wrong.
Refuses ragged rows, quoted cells that are not closed, bytes that are not UTF-8, NUL bytes, empty ids, bad times, a gzip
stream that ends early.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import itertools
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.csv

from cache.atomic import disk_errors
from cache.errors import InputError
from pipeline.ingest.rows import RowErrors
from pipeline.ingest.source import Events, bad_ids, encode_ids, id_problem
from pipeline.ingest.times import column_of_times, parse_times

if TYPE_CHECKING:
    from _csv import Reader as CellReader

__all__ = ["Layout", "broken_stream", "delimited", "open_text", "read_events", "records"]

_DELIMITERS = ",\t;|"
_BLOCK = 1 << 23  # the longest row that Arrow takes, and the longest cell that Python may
_TAIL = 1 << 16
_NOT_CLOSED = "opens a quoted cell that is not closed; a double quote was expected at its end, two for one inside"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a delimited file is cut into rows and cells."""

    path: Path
    names: Sequence[str]
    delimiter: str
    quoted: bool  #: double quotes may enclose a cell
    header_lines: int  #: lines before the first row


def delimited(
    path: Path,
    *,
    delimiter: str | None = None,
    quoted: bool = True,
    names: Sequence[str] | None = None,
) -> Layout:
    """The layout of `path`.

    Args:
        delimiter: found in the header where None.
        names: the columns of a file without a header.

    Raises:
        InputError: an empty file, or a header that names a column twice.
    """
    with open_text(path) as file, broken_stream(path):
        first = file.readline()
    if not first.strip():
        raise InputError(
            f"{path}:1: header: the file is empty or begins with an empty line; column names were expected.",
            code="ingest.empty",
        )
    if (
        first.startswith("\udcff\udcfe") or "\0" in first
    ):  # the mark of UTF-16, and half of its letters
        raise InputError(
            f"{path}:1: header: is not UTF-8, perhaps UTF-16; save the file as UTF-8.",
            code="ingest.bad_header",
        )
    if delimiter is None:
        delimiter = max(_DELIMITERS, key=first.count)
    if names is not None:
        return Layout(path=path, names=names, delimiter=delimiter, quoted=quoted, header_lines=0)
    header = next(_reader([first], delimiter, quoted))
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise InputError(
            f"{path}:1: {twice[0]}: stands {header.count(twice[0])} times in the header; once was expected.",
            code="ingest.bad_header",
        )
    return Layout(path=path, names=header, delimiter=delimiter, quoted=quoted, header_lines=1)


def read_events(layout: Layout, *, user: str, item: str, time: str | None) -> Events:
    """The events of a file with one a row.

    Raises:
        InputError: ``ingest.bad_rows`` with every bad row, or ``ingest.empty``.
    """
    events = _fast(layout, user, item, time) or _slow(layout, user, item, time)
    if not len(events.users.codes):
        raise InputError(
            f"{layout.path}: holds no rows; at least one event was expected.", code="ingest.empty"
        )
    return events


def records(layout: Layout, errors: RowErrors) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of every row with as many cells as the header; others go to `errors`.

    Bytes that are not UTF-8 come as lone surrogates, so that only columns in use need to be clean.
    """
    width = len(layout.names)
    line = 0
    with open_text(layout.path) as file:
        try:
            for _ in range(layout.header_lines):
                file.readline()
                line += 1
            lines, again = itertools.tee(file)
            reader = _reader(lines, layout.delimiter, layout.quoted)
            for cells in reader:
                before, line = line, layout.header_lines + reader.line_num
                row, text = before + 1, list(itertools.islice(again, line - before))
                if layout.quoted and not _closed(text, layout.delimiter):
                    errors.add(row, "row", _NOT_CLOSED)
                elif len(cells) == width:
                    yield row, cells
                elif cells:
                    errors.add(row, "row", f"has {len(cells)} cells; {width} were expected")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            errors.add(line + 1, "file", _stream_problem(error))
        except csv.Error as error:
            errors.add(line + 1, "row", f"cannot be cut into cells ({error})")


def open_text(path: Path) -> IO[str]:
    """`path` as text, gunzipped where its name ends in .gz; no newline is translated."""
    with disk_errors(path):
        if path.suffix == ".gz":
            return gzip.open(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="")
        return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _open_bytes(path: Path) -> pa.NativeFile:
    """`path` as Arrow reads it, gunzipped where its name ends in .gz."""
    with disk_errors(path):
        return pa.input_stream(str(path), compression="gzip" if path.suffix == ".gz" else None)


@contextlib.contextmanager
def broken_stream(path: Path) -> Iterator[None]:
    """Turn the failure of a gzip stream into an InputError that names the file."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: {_stream_problem(error)}", code="ingest.bad_gzip") from error


def _stream_problem(error: Exception) -> str:
    if isinstance(error, EOFError):
        return "the gzip stream ends early; fetch the file again"
    return f"the gzip stream is damaged ({error}); fetch the file again"


def _fast(layout: Layout, user: str, item: str, time: str | None) -> Events | None:
    """All columns by Arrow, or None where any row is in doubt."""
    ids = pa.dictionary(pa.int32(), pa.string())
    types = {user: ids, item: ids}
    if time is not None:
        types[time] = pa.string()
    try:
        table = pyarrow.csv.read_csv(
            _open_bytes(layout.path),
            read_options=pyarrow.csv.ReadOptions(
                skip_rows=layout.header_lines, column_names=list(layout.names), block_size=_BLOCK
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=layout.delimiter,
                quote_char='"' if layout.quoted else False,
                newlines_in_values=layout.quoted,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=types, include_columns=list(types), strings_can_be_null=False
            ),
        )
    except (pa.ArrowInvalid, OSError):  # OSError: a broken gzip stream
        return None
    users, items = encode_ids(table[user]), encode_ids(table[item])
    times = None if time is None else parse_times(table[time])
    if bad_ids(users) or bad_ids(items) or (times is None and time is not None):
        return None
    if layout.quoted and not _closed_everywhere(layout, table.num_rows):
        return None
    return Events(path=layout.path, users=users, items=items, times=times)


def _slow(layout: Layout, user: str, item: str, time: str | None) -> Events:
    """Row by row: finds every bad one; where there is none, the events after all."""
    errors = RowErrors(layout.path)
    rows: list[int] = []
    columns: dict[str, list[str]] = {name: [] for name in (user, item, time) if name is not None}
    places = {name: layout.names.index(name) for name in columns}
    for row, cells in records(layout, errors):
        rows.append(row)
        for name, at in places.items():
            columns[name].append(cells[at])
            problem = id_problem(cells[at]) if name != time else None
            if problem:
                errors.add(row, name, problem)
    times = None if time is None else column_of_times(columns[time], time, errors, rows)
    errors.raise_any()
    users, items = (encode_ids(pa.array(columns[name], pa.string())) for name in (user, item))
    return Events(path=layout.path, users=users, items=items, times=times)


def _closed_everywhere(layout: Layout, rows: int) -> bool:
    """Whether each quoted cell of the `rows` rows is closed: Arrow lets one run on over all that follows."""
    if _a_line_a_row(layout, rows):
        return True
    errors = RowErrors(layout.path)
    for _ in records(layout, errors):
        pass
    return not errors.count


def _a_line_a_row(layout: Layout, rows: int) -> bool:
    """Whether each row is a line of its own and the last one has its quotes in pairs, seen without cutting cells."""
    lines = quotes = 0
    ended, tail = True, b""
    with disk_errors(layout.path), _open_bytes(layout.path) as stream:
        while block := stream.read(_BLOCK):
            quotes += block.count(b'"')
            text = np.frombuffer(block, np.uint8)
            ends = (text == ord("\n")) | (text == ord("\r"))
            lines += int(np.count_nonzero(ends[:-1] & ~ends[1:])) + (ended and not ends[0])
            ended, tail = bool(ends[-1]), (tail + block)[-_TAIL:]
    if not quotes:
        return True
    last = re.split(rb"[\r\n]", tail.rstrip(b"\r\n"))[-1]
    return lines - layout.header_lines == rows and not last.count(b'"') % 2 and len(last) < _TAIL


def _closed(lines: Sequence[str], delimiter: str) -> bool:
    """Whether the quoted cells of one row are closed; stray quotes of a row on one line swallow nothing and are let be."""
    if len(lines) == 1 and not lines[0].count('"') % 2:
        return True
    try:
        next(csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error:
        return False
    return True


def _reader(lines: Iterable[str], delimiter: str, quoted: bool) -> CellReader:
    csv.field_size_limit(_BLOCK)
    if quoted:
        return csv.reader(lines, delimiter=delimiter)
    return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, quotechar=None)
