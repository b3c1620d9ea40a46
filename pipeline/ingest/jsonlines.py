"""JSON lines, gzipped or not: one object a line.

Events take Arrow's reader, a block at a time, only the fields that are asked for. Where that fails the file is read
again line by line in Python to say which lines are wrong; so is metadata, whose fields have no fixed type.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.json

from cache.atomic import disk_errors
from cache.errors import InputError
from pipeline.ingest.rows import RowErrors
from pipeline.ingest.source import Events, bad_ids, encode_ids, id_problem
from pipeline.ingest.times import LIMIT, column_of_times, number_problems

__all__ = ["first_object", "json_events", "objects"]

_BLOCK = 1 << 24  # a line must fit in a block


def json_events(path: Path, *, user: str, item: str, time: str) -> Events:
    """The events of a file with one a line; `time` holds whole numbers."""
    events = _fast(path, user, item, time) or _slow(path, user, item, time)
    if not len(events.users.codes):
        raise InputError(
            f"{path}: holds no rows; at least one event was expected.", code="ingest.empty"
        )
    return events


def objects(path: Path, errors: RowErrors) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of every line that holds one; other lines that are not blank go to `errors`."""
    line = 0
    with _open(path) as file:
        try:
            for line, raw in enumerate(file, start=1):
                if not raw.strip():
                    continue
                try:
                    value = json.loads(raw.decode("utf-8-sig" if line == 1 else "utf-8"))
                except UnicodeDecodeError:
                    errors.add(line, "line", "is not UTF-8")
                except (ValueError, RecursionError) as error:
                    cause = error.msg if isinstance(error, json.JSONDecodeError) else "unreadable"
                    errors.add(line, "line", f"is not JSON ({cause})")
                else:
                    if isinstance(value, dict):
                        yield line, value
                    else:
                        errors.add(line, "line", "is not a JSON object")
        except (EOFError, zlib.error, gzip.BadGzipFile):
            errors.add(line + 1, "file", "the gzip stream ends early or is damaged; fetch it again")


def first_object(path: Path) -> Mapping[str, Any]:
    """The object on the first line, or an empty one where there is none."""
    return next((value for _, value in objects(path, RowErrors(path))), {})


def _open(path: Path) -> IO[bytes]:
    with disk_errors(path):
        if path.suffix == ".gz":
            return cast("IO[bytes]", gzip.open(path, "rb"))
        return path.open("rb")


def _fast(path: Path, user: str, item: str, time: str) -> Events | None:
    schema = pa.schema([(user, pa.string()), (item, pa.string()), (time, pa.int64())])
    try:
        with disk_errors(path):
            stream = pa.input_stream(
                str(path), compression="gzip" if path.suffix == ".gz" else None
            )
        table = pyarrow.json.read_json(
            stream,
            read_options=pyarrow.json.ReadOptions(block_size=_BLOCK),
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=schema, unexpected_field_behavior="ignore"
            ),
        )
        table.validate(full=True)  # the reader itself does not look at UTF-8
    except (pa.ArrowInvalid, OSError):
        return None
    users, items = encode_ids(table[user]), encode_ids(table[item])
    if bad_ids(users) or bad_ids(items) or table[time].null_count:
        return None
    times = table[time].to_numpy()
    return (
        None if number_problems(times) else Events(path=path, users=users, items=items, times=times)
    )


def _slow(path: Path, user: str, item: str, time: str) -> Events:
    errors = RowErrors(path)
    rows: list[int] = []
    ids: dict[str, list[str]] = {user: [], item: []}
    texts: list[str] = []
    for row, value in objects(path, errors):
        rows.append(row)
        for name, column in ids.items():
            cell = value.get(name)
            if isinstance(cell, str) or cell is None:
                problem = id_problem(cell)
            else:
                problem = f"is {json.dumps(cell)[:40]}; a string was expected"
            if problem:
                errors.add(row, name, problem)
            column.append(cell if isinstance(cell, str) and not problem else "")
        moment = value.get(time)
        if isinstance(moment, bool) or not isinstance(moment, int | float | str | None):
            errors.add(row, time, "is neither a number nor text; a time was expected")
            moment = 0
        elif isinstance(moment, int) and abs(moment) >= LIMIT:
            moment = float(2 * LIMIT)  # str() of an int without end has a limit of its own
        texts.append("" if moment is None else str(moment))
    times = column_of_times(texts, time, errors, rows)
    errors.raise_any()
    users, items = (encode_ids(pa.array(ids[name], pa.string())) for name in (user, item))
    return Events(path=path, users=users, items=items, times=times)
