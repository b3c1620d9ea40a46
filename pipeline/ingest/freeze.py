"""From a parsed source to the frozen dataset: listed items, duplicates, k-core, order, numbering, features.

Nothing here depends on the order of rows where there is a time: events are sorted by user, time and item id, users and
items numbered by the bytes of their ids. Ten million events take about half a minute and 1.3 GiB; what is written is staged
and published by one rename.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache.dataset import ITEM_COLUMNS, TEXT_COLUMNS, Dataset, write_dataset
from cache.errors import InputError
from pipeline.ingest.kcore import k_core
from pipeline.ingest.source import Events, Source

__all__ = ["Counts", "Ingested", "freeze"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What came in, what was dropped and what stayed."""

    rows: int  #: events read
    unlisted: int  #: dropped because the metadata does not list their item
    duplicates: int  #: dropped because user, item and time were there already
    users_before: int  #: before the k-core
    items_before: int
    interactions_before: int
    users: int  #: in the dataset
    items: int
    interactions: int
    items_without_text: int  #: of these items, how many have neither title nor category nor brand


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """The frozen dataset and how it came about."""

    dataset: Dataset
    counts: Counts
    format: str
    k_core: int
    features: tuple[str, ...]  #: names of the vectors that came with the source


def freeze(source: Source, out: Path, *, k: int, max_length: int, anonymise: bool) -> Ingested:
    """Filter, order, number and write.

    Raises:
        InputError: nothing is left, the catalogue is of other items, or an item has no feature row.
    """
    _refuse_other_items(source)
    events = source.events
    rows = np.arange(len(events.users.codes))
    if source.only_listed and source.catalogue is not None:
        texts = source.catalogue.texts
        listed = np.array([name in texts for name in events.items.names.to_pylist()], np.bool_)
        rows = np.flatnonzero(listed[events.items.codes])
    ordered = _in_order(events, rows)
    users, items = events.users.codes[ordered], events.items.codes[ordered]
    kept = k_core(users, items, k)
    user_codes, offsets = _starts(users[kept])
    item_codes = np.flatnonzero(np.bincount(items[kept]))
    users_before, items_before = len(_distinct(users)), len(_distinct(items))
    if not len(kept):  # so k is above 0
        raise InputError(
            f"{events.path}: nothing is left of {len(ordered):,} interactions of {users_before:,} users with "
            f"{items_before:,} items after the {k}-core; ingest with a smaller --k-core.",
            code="ingest.nothing_left",
        )
    names = events.items.names.take(pa.array(item_codes))
    table = _item_table(source, names)
    rank = np.zeros(item_codes[-1] + 1, np.int32)
    rank[item_codes] = np.arange(len(item_codes), dtype=np.int32)
    features = _features(source, names.to_pylist())
    dataset = write_dataset(
        out,
        items=table,
        user_ids=None if anonymise else events.users.names.take(pa.array(user_codes)),
        flat=rank[items[kept]],
        offsets=offsets,
        max_length=max_length,
        settings={"format": source.format, "k_core": k},
        features=features,
    )
    counts = Counts(
        rows=len(events.users.codes),
        unlisted=len(events.users.codes) - len(rows),
        duplicates=len(rows) - len(ordered),
        users_before=users_before,
        items_before=items_before,
        interactions_before=len(ordered),
        users=dataset.num_users,
        items=dataset.num_items,
        interactions=len(kept),
        items_without_text=_without_text(table),
    )
    return Ingested(
        dataset=dataset,
        counts=counts,
        format=source.format,
        k_core=k,
        features=tuple(sorted(features)),
    )


def _refuse_other_items(source: Source) -> None:
    """Refuse a catalogue that lists no item of the log, as one with other ids does: all texts would be lost."""
    catalogue, events = source.catalogue, source.events
    if catalogue is None or not (catalogue.texts or source.only_listed):
        return
    if not any(name in catalogue.texts for name in events.items.names.to_pylist()):
        raise InputError(
            f"{events.path}: none of its {len(events.items.names):,} items, {events.items.names[0].as_py()!r} the "
            f"first, is listed in {catalogue.path}; name the file that lists them with --items.",
            code="ingest.nothing_left" if source.only_listed else "ingest.none_listed",
        )


def _in_order(events: Events, rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """Of `rows`, each event once: by user, then time, then item id; or as they stand where there is no time."""
    users, items = events.users.codes[rows], events.items.codes[rows]
    if events.times is None:
        return rows[np.argsort(users, kind="stable")]
    times = events.times[rows]
    order = np.lexsort((items, times, users))
    users, items, times = users[order], items[order], times[order]
    again = np.zeros(len(rows), np.bool_)
    again[1:] = (users[1:] == users[:-1]) & (times[1:] == times[:-1]) & (items[1:] == items[:-1])
    return rows[order[~again]]


def _starts(users: NDArray[np.int32]) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """The distinct codes of sorted [n] codes, and [U + 1] where each begins."""
    counts = np.bincount(users)
    codes = np.flatnonzero(counts)
    return codes, np.concatenate([[0], np.cumsum(counts[codes])]).astype(np.int64)


def _distinct(codes: NDArray[np.int32]) -> NDArray[np.intp]:
    return np.flatnonzero(np.bincount(codes))


def _item_table(source: Source, names: pa.Array) -> pa.Table:
    """[V] ids and texts; "" where there is no text."""
    columns = {"item": names}
    if source.catalogue is not None:
        items = names.to_pylist()
        for name in ITEM_COLUMNS[1:]:
            columns[name] = pa.array(source.catalogue.column(name, items), pa.string())
    return pa.table(columns)


def _without_text(table: pa.Table) -> int:
    held = np.zeros(table.num_rows, np.bool_)
    for name in TEXT_COLUMNS:
        if name in table.column_names:
            held |= table[name].to_numpy() != ""
    return int((~held).sum())


def _features(source: Source, items: list[str]) -> dict[str, NDArray[np.float32]]:
    """[V, d] of each feature matrix, in the order of our items."""
    if source.catalogue is None or not source.features:
        return {}
    known = source.catalogue.feature_rows
    missing = [item for item in items if item not in known]
    if missing:
        raise InputError(
            f"{source.catalogue.path}: {len(missing)} items with interactions, {missing[0]!r} the first, are not "
            "listed, so they have no feature row; list them or take the feature files away.",
            code="ingest.bad_features",
        )
    places = [known[item] for item in items]
    features: dict[str, NDArray[np.float32]] = {}
    for name, matrix in source.features.items():
        with np.errstate(over="ignore"):  # told below
            vectors_VD: NDArray[Any] = np.asarray(matrix[places], np.float32)
        broken = np.flatnonzero(~np.isfinite(vectors_VD).all(axis=1))
        if len(broken):
            raise InputError(
                f"{source.catalogue.path.parent}: features {name!r}: row {places[broken[0]]} (item "
                f"{items[broken[0]]!r}) holds NaN or infinity; mend it or take that file away.",
                code="ingest.bad_features",
            )
        features[name] = vectors_VD
    return features
