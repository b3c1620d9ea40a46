"""What every parser hands over: events as codes into sorted id lists, item texts, and feature rows.

Ids are numbered by their bytes, not by first appearance, so nothing here depends on the order of rows. An event costs
16 bytes; texts are held once per item. Refuses empty ids and ids with NUL bytes (callers turn that into row errors).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cache.dataset import ITEM_COLUMNS
from pipeline.ingest.clean import clean_text

__all__ = [
    "Catalogue",
    "Codes",
    "Events",
    "Ids",
    "Source",
    "bad_ids",
    "decoded",
    "encode_ids",
    "id_problem",
]

Codes: TypeAlias = NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ids:
    """A column of ids: `codes` [n] into `names`, which are distinct and in byte order; -1 where null."""

    codes: Codes
    names: pa.Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """Interactions as they were read: who, what, and when ([n] each).

    `times` is None where the source has no time column: then the order of rows is the order of events.
    """

    path: Path
    users: Ids
    items: Ids
    times: NDArray[np.int64] | NDArray[np.float64] | None


@dataclass(slots=True, kw_only=True)
class Catalogue:
    """Item texts by item id, and where each item's row is in the feature matrices."""

    path: Path
    texts: dict[str, dict[str, str]] = field(default_factory=dict)
    feature_rows: dict[str, int] = field(default_factory=dict)

    def put(self, item: str, fields: Mapping[str, Any]) -> bool:
        """Keep the cleaned texts of `item`; of two listings the fuller one. False if it was there before."""
        row = {
            name: _verbatim(value) if name == "image" else clean_text(value)
            for name, value in fields.items()
        }
        known = self.texts.get(item)
        if known is None or _fullness(row) > _fullness(known):
            self.texts[item] = row
        return known is None

    def column(self, name: str, items: list[str]) -> list[str]:
        """Texts of one column for `items`, "" where unknown."""
        empty: dict[str, str] = {}
        return [self.texts.get(item, empty).get(name, "") for item in items]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One source, parsed: ready to be filtered, ordered and frozen."""

    format: str
    events: Events
    catalogue: Catalogue | None = None
    features: Mapping[str, NDArray[np.floating[Any]]] = field(default_factory=dict)
    only_listed: bool = False  #: drop events whose item the catalogue does not list
    default_k: int = 5


def encode_ids(column: pa.ChunkedArray | pa.Array) -> Ids:
    """Codes and sorted names of a column of strings, whole numbers or dictionaries of them."""
    if isinstance(column, pa.Array):
        column = pa.chunked_array([column])
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    column = column.unify_dictionaries()
    if not column.num_chunks:
        return Ids(codes=np.empty(0, np.int32), names=pa.array([], pa.string()))
    names = column.chunk(0).dictionary.cast(pa.string())
    codes = np.concatenate(
        [chunk.indices.cast(pa.int32()).fill_null(-1).to_numpy() for chunk in column.chunks]
    )
    order = pc.sort_indices(names).to_numpy().astype(np.int64)
    rank = np.empty(len(order) + 1, np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    rank[-1] = -1  # where codes of -1, the nulls, look
    return Ids(codes=rank[codes], names=names.take(pa.array(order)))


def id_problem(text: str | None) -> str | None:
    """What is wrong with one id, or None."""
    if text is None or not text.strip():
        return "is empty; an id was expected"
    if "\0" in text:
        return "holds a NUL byte"
    if any(0xD800 <= ord(char) <= 0xDFFF for char in text):
        return "is not UTF-8"
    return None


def bad_ids(ids: Ids) -> dict[str, NDArray[np.bool_]]:
    """Which rows [n] have which problem; empty when all is well. Looks at each distinct id once."""
    found: dict[str, NDArray[np.bool_]] = {}
    problems = [id_problem(name) for name in _suspects(ids.names)]
    if any(problems):
        listed = [id_problem(name) for name in decoded(ids.names)]
        for what in sorted({problem for problem in listed if problem}):
            wrong = np.flatnonzero([problem == what for problem in listed])
            found[what] = np.isin(ids.codes, wrong)
    if len(ids.codes) and ids.codes.min() < 0:
        what = str(id_problem(None))
        found[what] = found.get(what, np.zeros(len(ids.codes), np.bool_)) | (ids.codes < 0)
    return found


def decoded(texts: pa.Array | pa.ChunkedArray) -> list[str]:
    """Texts without nulls as Python has them; bytes that are not UTF-8, which Parquet may hold, as lone surrogates."""
    raw = texts.cast(pa.large_binary()).to_pylist()
    return [text.decode("utf-8", "surrogateescape") for text in raw]


def _suspects(names: pa.Array) -> list[str]:
    """The names that may have a problem: found with compute kernels, no Python per name."""
    try:
        names.validate(full=True)  # the kernels do not look at all bytes
    except pa.ArrowInvalid:
        return decoded(names)
    blank = pc.equal(pc.utf8_trim_whitespace(names), "")
    return list(names.filter(pc.or_(blank, pc.match_substring(names, "\0"))).to_pylist())


def _verbatim(value: Any) -> str:
    """An image path or address as it stands; the first one of a list."""
    while isinstance(value, list | dict):  # the 2023 reviews: [{"large": address, "thumb": ...}]
        parts = list(value.values()) if isinstance(value, dict) else value
        value = (
            value["large"]
            if isinstance(value, dict) and value.get("large")
            else next(iter(parts), "")
        )
    text = "" if value is None else str(value)
    return text.encode("utf-8", "ignore").decode("utf-8")


def _fullness(row: Mapping[str, str]) -> tuple[object, ...]:
    # By content alone, so that the order of listings decides nothing.
    values = [row.get(name, "") for name in ITEM_COLUMNS]
    return (sum(map(bool, values)), sum(map(len, values)), values)
