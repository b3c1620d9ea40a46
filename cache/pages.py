"""What the pages of a Parquet file claim to unpack to, read from their headers before anything is unpacked.

The library allocates what a header claims and what a run or a dictionary stands for, so a file of 300 bytes may ask for
gigabytes. Here headers alone are read (Thrift's compact protocol), a few microseconds a page of about 1 MB. Refused, as
ValueError: pages that overlap or end elsewhere than their column, encodings that this project never writes, and more
than a limit in all. Format: https://parquet.apache.org/docs/file-format/data-pages/
"""

from __future__ import annotations

from typing import Any, Protocol

import pyarrow.parquet as pq

__all__ = ["check_pages"]


class Octets(Protocol):
    """Bytes, wherever they lie."""

    def __len__(self) -> int: ...
    def __getitem__(self, at: int, /) -> int: ...


_ENCODINGS = {
    0,
    2,
    3,
    8,
}  #: plain, dictionary (old name), runs, dictionary; no deltas, which grow without bound
_LEVELS = 4  #: bytes that two levels of a value take
_DEEPEST = 8


def check_pages(data: Octets, metadata: pq.FileMetaData, limit: int) -> None:
    """Refuse a file whose pages claim to unpack to more than `limit` bytes.

    Raises:
        ValueError: that, or page headers that make no sense.
    """
    total = 0
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            if not column.num_values:  # of such a column the library reads no page
                continue
            start = column.data_page_offset
            if column.has_dictionary_page:
                start = min(start, column.dictionary_page_offset)
            end = start + column.total_compressed_size
            if not 0 <= start <= end <= len(data):
                raise ValueError(f"column {number} lies outside the file")
            while start < end:
                header, start = _struct(data, start, end, 0)
                total += _claim(header)
                start += header[3]
                if start > end:
                    raise ValueError(f"a page of column {number} ends beyond it")
                if total > limit:
                    raise ValueError(f"its pages claim more than {limit:,} bytes")


def _claim(header: dict[int, Any]) -> int:
    """Bytes that the page of a header asks for."""
    pages = [header[kind] for kind in (5, 7, 8) if kind in header]
    sizes = [header.get(2), header.get(3)]
    whole = len(pages) == 1 and isinstance(pages[0], dict)
    if not whole or not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise ValueError("a page header makes no sense")
    encoding = pages[0].get(4 if 8 in header else 2)
    values = pages[0].get(1)
    if (
        not (isinstance(encoding, int) and encoding in _ENCODINGS and isinstance(values, int))
        or values < 0
    ):
        raise ValueError(f"a page has encoding {encoding!r} and {values!r} values")
    return int(header[2]) + values * (_LEVELS + 8)


def _struct(data: Octets, at: int, end: int, depth: int) -> tuple[dict[int, Any], int]:
    """(fields by number, where it ends)."""
    if depth > _DEEPEST:
        raise ValueError("a page header is nested too deeply")
    fields: dict[int, Any] = {}
    number = 0
    while True:
        byte, at = _byte(data, at, end)
        if not byte:
            return fields, at
        kind, step = byte & 15, byte >> 4
        if step:
            number += step
        else:
            number, at = _signed(data, at, end)
        fields[number], at = _value(data, at, end, kind, depth)


def _value(data: Octets, at: int, end: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in {1, 2}:  # true, false
        return kind == 1, at
    if kind == 3:
        return _byte(data, at, end)
    if kind in {4, 5, 6}:
        return _signed(data, at, end)
    if kind == 7:  # a double
        return None, _skipped(at, 8, end)
    if kind == 8:  # bytes
        length, at = _varint(data, at, end)
        return None, _skipped(at, length, end)
    if kind == 12:
        return _struct(data, at, end, depth + 1)
    raise ValueError(f"a page header holds a field of type {kind}")


def _signed(data: Octets, at: int, end: int) -> tuple[int, int]:
    value, at = _varint(data, at, end)
    return (value >> 1) ^ -(value & 1), at


def _varint(data: Octets, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte, at = _byte(data, at, end)
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number in a page header is too long")


def _byte(data: Octets, at: int, end: int) -> tuple[int, int]:
    if at >= end:
        raise ValueError("a page header ends early")
    return data[at], at + 1


def _skipped(at: int, length: int, end: int) -> int:
    if length > end - at:
        raise ValueError("a page header ends early")
    return at + length
