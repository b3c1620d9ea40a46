"""Times and positions: whole numbers, decimal numbers or ISO 8601 dates, one kind a column; only their order counts.

Refused: empty, NaN, infinite, negative, and what does not fit 63 bits. Fast where Arrow can cast the column; else each
distinct text is looked at once.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.ingest.rows import RowErrors

__all__ = [
    "LIMIT",
    "OUT_OF_RANGE",
    "Times",
    "column_of_times",
    "number_problems",
    "parse_time",
    "parse_times",
]

Times: TypeAlias = "NDArray[np.int64] | NDArray[np.float64]"

LIMIT = 2**63
OUT_OF_RANGE = "is out of range; less than 2**63 was expected"

_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
_EXPECTED = {None: "a number or an ISO 8601 date", False: "a number", True: "an ISO 8601 date"}


def parse_times(texts: pa.ChunkedArray) -> Times | None:
    """[n] times of a column of strings, or None where at least one is bad or Arrow cannot say."""
    try:
        texts = pc.utf8_trim_whitespace(texts)
    except pa.ArrowInvalid:  # not UTF-8
        return None
    values: NDArray[np.int64] | NDArray[np.float64] | None = None
    for target in (pa.int64(), pa.float64(), pa.timestamp("us")):
        try:
            cast = texts.cast(target)
        except pa.ArrowInvalid:
            continue
        if pa.types.is_timestamp(target):
            cast = cast.cast(pa.int64())
        if cast.null_count:
            return None
        values = cast.to_numpy()
        break
    if values is None or number_problems(values):
        return None
    return values


def number_problems(values: Times) -> dict[str, NDArray[np.bool_]]:
    """Which of [n] numbers have which problem; empty when all is well."""
    wrong = {
        "is not a finite number": ~np.isfinite(values),
        "is negative": values < 0,
        OUT_OF_RANGE: values >= float(LIMIT),
    }
    if values.dtype.kind == "f":
        wrong[OUT_OF_RANGE] &= np.isfinite(values)
    else:
        del wrong[OUT_OF_RANGE]
    return {what: mask for what, mask in wrong.items() if mask.any()}


def parse_time(text: str, *, dates: bool | None = None) -> tuple[int | float, bool] | str:
    """(time, is it a date), or what is wrong with the text (a str).

    Args:
        dates: whether the column's other cells are dates; None for the first cell.
    """
    text = text.strip()
    shown = repr(text[:40])
    if not text:
        return f"is empty; {_EXPECTED[dates]} was expected"
    number = _number(text)
    if (number is None) == (dates is False) and dates is not None:
        return f"{shown} is not {_EXPECTED[dates]} as the rows above have it"
    if number is None:
        number = _date(text)
        is_date = True
    else:
        is_date = False
    if number is None:
        return f"{shown} is not {_EXPECTED[None]}"
    if not math.isfinite(number):
        return f"{shown} is not a finite number"
    if number < 0:
        return f"{shown} is negative"
    if number >= LIMIT:
        return f"{shown} {OUT_OF_RANGE}"
    return number, is_date


def column_of_times(
    texts: Iterable[str], name: str, errors: RowErrors, rows: Sequence[int] | None = None
) -> Times:
    """The times of a column, cell by cell; what is wrong goes to `errors`.

    Args:
        rows: the row of each text; 1, 2, ... where None.
    """
    numbers: list[int | float] = []
    dates: bool | None = None
    for index, text in enumerate(texts):
        parsed = parse_time(text, dates=dates)
        if isinstance(parsed, str):
            errors.add(index + 1 if rows is None else rows[index], name, parsed)
        else:
            numbers.append(parsed[0])
            dates = parsed[1]
    whole = all(isinstance(number, int) for number in numbers)
    return np.array(numbers, np.int64) if whole else np.array(numbers, np.float64)


def _number(text: str) -> int | float | None:
    if _WHOLE.fullmatch(text) and len(text) < 100:
        return int(text)
    try:
        return float(text) if "_" not in text else None
    except ValueError:
        return None


def _date(text: str) -> int | None:
    """Microseconds since 1970; a date without a zone counts as UTC."""
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return (moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)
