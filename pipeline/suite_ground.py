"""What outsiders' test suites stand on: a small shop with regularities to learn, and a store over it.

Forty users, twenty-four items; most next items follow from the last one; titles, brands and categories, some missing.
Everything is made from a seed in a few milliseconds.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from cache.dataset import Dataset, open_dataset, write_dataset
from cache.store import Store
from pipeline.curriculum import PlanSettings, make_plan

__all__ = ["changed_from", "shop_dataset", "shop_store"]


def shop_dataset(path: Path, *, users: int = 40, items: int = 24, held_out: int = 0) -> Dataset:
    """A frozen dataset at `path`.

    Args:
        held_out: where not 0, every user's validation and test item is another one, by so many rows: what a fair
            teacher or student may not know.
    """
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 10, users)
    flat: list[int] = []
    for length in lengths:
        item = int(rng.integers(items))
        for _ in range(length):
            flat.append(item)
            item = (item + 1) % items if rng.random() < 0.8 else int(rng.integers(items))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    sequence = np.array(flat)
    if held_out:
        for back in (1, 2):
            sequence[offsets[1:] - back] = (sequence[offsets[1:] - back] + held_out) % items
    rows = np.arange(items)
    table = pa.table(
        {
            "item": [f"i{row}" for row in rows],
            "title": [f"Title {row}" for row in rows],
            "brand": ["" if row % 5 == 0 else f"brand {row % 3}" for row in rows],
            "category": ["" if row % 7 == 0 else f"category {row % 4}" for row in rows],
        }
    )
    ids = pa.array([f"u{row}" for row in range(users)])
    write_dataset(path, items=table, user_ids=ids, flat=sequence, offsets=offsets, max_length=6)
    return open_dataset(path)


def changed_from(dataset: Dataset, end: int) -> Dataset:
    """The same in memory, but with another user's items from position `end` of each training part on.

    How often each item stands in training parts stays as it was: a teacher may know that.
    """
    within = np.arange(len(dataset.flat)) - np.repeat(dataset.offsets[:-1], dataset.lengths)
    later = (within >= end) & (within < np.repeat(dataset.train_lengths, dataset.lengths))
    flat = dataset.flat.copy()
    flat[later] = np.roll(flat[later], np.count_nonzero(later) // 2)
    return replace(dataset, flat=flat)


def shop_store(path: Path, dataset: Dataset | None = None, *, batch_size: int = 16) -> Store:
    """A store without scores at `path`, over `dataset` or a shop made beside it."""
    inside = dataset or shop_dataset(path.with_name(f"{path.name}-data"))
    settings = PlanSettings(batch_size=batch_size, buckets=2)
    return Store.create(path, inside, lambda folder, frozen: make_plan(folder, frozen, settings))
