"""The frozen dataset: items with their texts, users' sequences in time order, and the split.

    data/toys/   items.parquet   sequences.parquet   manifest.json   [vectors/<name>/]

Items are rows 0..V-1 of items.parquet and users rows 0..U-1 of sequences.parquet; there is no padding row anywhere.
Leave-one-out: a user's last item is for test, the one before for validation, the rest is the training part; users with
fewer than three only train. Held in memory: 4 bytes an interaction and 8 a user; texts are read when asked for.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache.atomic import staging
from cache.errors import StoreError
from cache.manifest import (
    MANIFEST,
    Manifest,
    check_numbers,
    check_part,
    is_digest,
    seal,
)
from cache.tables import check_rows, read_table, write_table
from cache.vectors import VECTORS, write_vectors

__all__ = [
    "EXTENDS",
    "VECTORS",
    "Dataset",
    "InstanceKind",
    "Ints",
    "copy_part",
    "open_dataset",
    "write_dataset",
]

Ints: TypeAlias = NDArray[np.int32]
InstanceKind: TypeAlias = Literal["prefixes", "last"]

ITEM_COLUMNS = ("item", "title", "brand", "category", "description", "image")
#: what a text is made of, in this order (as UniSRec's preprocessing has it)
TEXT_COLUMNS = ("title", "category", "brand")

#: setting of a dataset that goes on from others: [{"dataset": digest, "items": V, "users": U}], the oldest first
EXTENDS = "extends"

_ITEMS = pa.schema([(name, pa.string()) for name in ITEM_COLUMNS])
_SEQUENCES = pa.schema([("user", pa.string()), ("items", pa.list_(pa.int32()))])
_MIN_EVALUATED = 3
_LONG = 1 << 16  #: longest history that a dataset may speak of without having it


@dataclass(frozen=True)
class Dataset:
    """A sealed dataset, opened. Make one with :func:`open_dataset`."""

    path: Path
    manifest: Manifest
    flat: Ints  #: [interactions] item rows, user after user, each in time order
    offsets: NDArray[np.int64]  #: [U + 1] where each user's items begin in `flat`

    @property
    def digest(self) -> str:
        """What plans and score sets name as their parent."""
        return self.manifest.digest

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.offsets) - 1

    @property
    def num_items(self) -> int:
        """V."""
        return self.manifest.counts["items"]

    @property
    def max_length(self) -> int:
        """Histories are the last `max_length` items before the target."""
        return int(self.manifest.settings["max_length"])

    @property
    def extends(self) -> list[tuple[str, int]]:
        """(digest, items) of the datasets that this one goes on from, the oldest first; their items are its first ones."""
        found = self.manifest.settings.get(EXTENDS)
        pairs = [
            (one.get("dataset"), one.get("items"))
            for one in (found if isinstance(found, list) else [])
            if isinstance(one, dict)
        ]
        return [
            (digest, items)
            for digest, items in pairs
            if is_digest(digest) and type(items) is int and 0 <= items <= self.num_items
        ]

    def rows_of(self, digest: str) -> int | None:
        """How many of the first items are those of the dataset `digest`, row by row.

        All of its own; of a dataset that it extends, those that were there; None where it is neither.
        """
        return {**dict(self.extends), self.digest: self.num_items}.get(digest)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """[U] interactions of each user."""
        return np.diff(self.offsets)

    @cached_property
    def train_lengths(self) -> NDArray[np.int64]:
        """[U] interactions in each user's training part."""
        return np.where(self.lengths >= _MIN_EVALUATED, self.lengths - 2, self.lengths)

    @cached_property
    def items(self) -> pa.Table:
        """The item table, V rows: item, title, brand, category, description, image (strings)."""
        return read_table(self.path, self.manifest, "items.parquet", _ITEMS, self.num_items)

    def texts(self) -> list[str]:
        """[V] the text of each item: title, category and brand, or "." where all are empty."""
        columns = [self.items[name].to_pylist() for name in TEXT_COLUMNS]
        return [
            " ".join(part for part in parts if part) or "." for parts in zip(*columns, strict=True)
        ]

    def user_ids(self) -> pa.ChunkedArray | None:
        """[U] the users' own ids, or None where the dataset was anonymised."""
        if self.manifest.settings.get("anonymised") is not False:
            return None
        table = read_table(
            self.path, self.manifest, "sequences.parquet", _SEQUENCES, self.num_users
        )
        return table["user"]

    def sequence(self, user: int) -> Ints:
        """All items of one user in time order."""
        return self.flat[self.offsets[user] : self.offsets[user + 1]]

    def training_instances(self, kind: InstanceKind = "prefixes") -> tuple[Ints, Ints]:
        """(users, ends) of every training instance, in user order, then time order.

        The target stands at position `end` >= 1 of the user's training part; the history before it.
        `last` keeps one instance a user, the latest.
        """
        counts = np.maximum(self.train_lengths - 1, 0)
        if kind == "last":
            users = np.flatnonzero(counts)
            return users.astype(np.int32), counts[users].astype(np.int32)
        users = np.repeat(np.arange(self.num_users), counts)
        starts = np.cumsum(counts) - counts
        ends = np.arange(len(users)) - np.repeat(starts, counts) + 1
        return users.astype(np.int32), ends.astype(np.int32)

    def held_out(self, part: Literal["valid", "test"]) -> tuple[Ints, Ints]:
        """(users, ends) of the instances that are evaluated: one a user of at least three items."""
        users = np.flatnonzero(self.lengths >= _MIN_EVALUATED)
        ends = self.lengths[users] - (2 if part == "valid" else 1)
        return users.astype(np.int32), ends.astype(np.int32)

    def targets(self, users: Ints, ends: Ints) -> Ints:
        """[n] the item at position `end` of each user's sequence."""
        items: Ints = self.flat[self.offsets[users] + ends]
        return items

    def histories(self, users: Ints, ends: Ints) -> tuple[Ints, Ints]:
        """The items before each target, cut at `max_length`, laid end to end.

        Returns:
            (flat, lengths): [sum of lengths] item rows in time order, and [n] lengths, each >= 1.
        """
        lengths = np.minimum(ends, self.max_length).astype(np.int64)
        first = self.offsets[users] + ends - lengths
        starts = np.cumsum(lengths) - lengths
        within = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
        return self.flat[np.repeat(first, lengths) + within], lengths.astype(np.int32)

    @cached_property
    def train_counts(self) -> NDArray[np.int64]:
        """[V] how often each item stands in training parts; validation and test never count."""
        positions = np.arange(len(self.flat)) - np.repeat(self.offsets[:-1], self.lengths)
        in_training = positions < np.repeat(self.train_lengths, self.lengths)
        return np.bincount(self.flat[in_training], minlength=self.num_items)


def open_dataset(path: Path, *, deep: bool = False) -> Dataset:
    """Open a sealed dataset.

    Args:
        deep: hash every file, not only compare sizes.

    Raises:
        StoreError: anything missing, extra, changed or inconsistent.
    """
    manifest = check_part(path, "dataset", deep=deep, skip=frozenset({VECTORS}))
    check_numbers(path, manifest, {"users", "items", "interactions"}, {"max_length": 1})
    counts = manifest.counts
    users = counts["users"]
    check_rows(path, "items.parquet", counts["items"])
    table = read_table(path, manifest, "sequences.parquet", _SEQUENCES, users)
    column = table["items"].combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # zero users: nothing to combine
        column = pa.concat_arrays([pa.array([], _SEQUENCES.field("items").type), *column.chunks])
    offsets = column.offsets.to_numpy().astype(np.int64)
    flat = column.values.to_numpy()
    dataset = Dataset(path=path, manifest=manifest, flat=flat, offsets=offsets)
    if (
        dataset.num_users != users
        or len(flat) != counts["interactions"]
        or (len(flat) and not 0 <= flat.min() <= flat.max() < counts["items"])
        # students make room by it: no more than there is use for
        or dataset.max_length > max(_LONG, np.diff(offsets).max(initial=0))
    ):
        raise StoreError(
            f"{path}: the sequences do not fit the manifest's counts {dict(counts)}; "
            "restore it or ingest again.",
            code="store.inconsistent",
        )
    return dataset


def write_dataset(
    path: Path,
    *,
    items: pa.Table,
    user_ids: pa.Array | None,
    flat: NDArray[np.integer[Any]],
    offsets: NDArray[np.integer[Any]],
    max_length: int = 50,
    settings: Mapping[str, Any] | None = None,
    features: Mapping[str, NDArray[np.float32]] | None = None,
) -> Dataset:
    """Freeze a dataset at `path`: staged, sealed, published by one rename.

    Args:
        items: [V] with any of the columns item, title, brand, category, description, image; `item` is a must.
        user_ids: [U] strings, or None to leave them out (anonymised).
        flat: item rows of all users, laid end to end.
        offsets: [U + 1].
        settings: what else decided the content (k-core, source format); JSON values.
        features: ready-made item vectors by name, each [V, d]; kept under vectors/<name>/.
    """
    blank = pa.array([""] * items.num_rows, pa.string())
    columns = [
        items[name].cast(pa.string()).fill_null("") if name in items.column_names else blank
        for name in ITEM_COLUMNS
    ]
    users = len(offsets) - 1
    sequences = pa.table(
        [
            pa.array([""] * users, pa.string()) if user_ids is None else user_ids.cast(pa.string()),
            pa.ListArray.from_arrays(
                pa.array(offsets, pa.int32()), pa.array(flat, pa.int32()), type=_SEQUENCES[1].type
            ),
        ],
        schema=_SEQUENCES,
    )
    with staging(path) as folder:
        write_table(folder / "items.parquet", pa.table(columns, schema=_ITEMS))
        write_table(folder / "sequences.parquet", sequences)
        seal(
            folder,
            kind="dataset",
            settings={
                **(settings or {}),
                "anonymised": user_ids is None,
                "max_length": max_length,
                "split": "leave-one-out",
            },
            counts={"users": users, "items": items.num_rows, "interactions": len(flat)},
        )
        staged = open_dataset(folder)
        for name, vectors_VD in (features or {}).items():
            write_vectors(staged, name, vectors_VD, {"origin": "ingested"})
    return open_dataset(path)


def copy_part(source: Path, target: Path, manifest: Manifest, *, deep: bool = False) -> None:
    """Copy the files that `manifest` lists, and itself, to the new folder `target`.

    Args:
        deep: hash every copied byte before the folder gets its name.
    """
    with staging(target) as folder:
        for name in [*(entry.path for entry in manifest.files), MANIFEST]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)
        if deep:
            check_part(folder, manifest.kind, deep=True)
