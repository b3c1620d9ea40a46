"""A log and a later state of it: makers of the datasets that a store is extended by, in an order of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from cache.dataset import Dataset, write_dataset
from cache.store import Store
from tests.fakes import TableTeacher, tiny_plan

__all__ = ["Counting", "dataset_of", "later_of", "log_of", "sequences", "store_of"]

Log = Mapping[str, Sequence[str]]


def dataset_of(path: Path, log: Log, *, items: Sequence[str] = (), **how) -> Dataset:
    """A dataset of user -> item ids; items in the order of `items`, then of appearance. An item's title is its id.

    `how`: `titles` of some items, `anonymous`, `max_length`.
    """
    rows = {name: row for row, name in enumerate(dict.fromkeys([*items, *chain(*log.values())]))}
    titles = how.get("titles", {})
    return write_dataset(
        path,
        items=pa.table(
            {
                "item": pa.array(list(rows), pa.string()),
                "title": pa.array([titles.get(name, f"the {name}") for name in rows], pa.string()),
            }
        ),
        user_ids=None if how.get("anonymous") else pa.array(list(log), pa.string()),
        flat=np.array([rows[name] for bought in log.values() for name in bought], np.int32),
        offsets=np.cumsum([0, *map(len, log.values())]),
        max_length=how.get("max_length", 4),
    )


def log_of(seed: int = 0, *, users: int = 12, items: int = 9) -> dict[str, list[str]]:
    """Users of 3 to 9 interactions."""
    rng = np.random.default_rng(seed)
    return {
        f"u{user}": [f"i{item}" for item in rng.integers(0, items, rng.integers(3, 10))]
        for user in range(users)
    }


def later_of(log: Log, seed: int = 1, *, users: int = 5, items: int = 4) -> dict[str, list[str]]:
    """Up to 4 more interactions of each user and new users, with new items too, users in another order."""
    rng = np.random.default_rng(seed)
    known = sorted({name for bought in log.values() for name in bought})
    names = [*known, *(f"n{item}" for item in range(items))]

    def more(least: int, most: int) -> list[str]:
        return [names[k] for k in rng.integers(0, len(names), rng.integers(least, most))]

    later = {user: [*bought, *more(0, 5)] for user, bought in log.items()}
    later |= {f"v{user}": more(3, 9) for user in range(len(log), len(log) + users)}
    order = rng.permutation(len(later))
    return {list(later)[k]: later[list(later)[k]] for k in order}


def store_of(path: Path, log: Log, *, batch_size: int = 4, rounds: int = 2, **how) -> Store:
    """A store over `log`, without sets; its dataset stands beside it."""
    dataset = dataset_of(path.with_name(f"{path.name}-data"), log, **how)
    return Store.create(
        path,
        dataset,
        lambda folder, inside: tiny_plan(folder, inside, batch_size=batch_size, rounds=rounds),
    )


def sequences(dataset: Dataset) -> dict[str, list[str]]:
    """user -> item ids."""
    names = dataset.items["item"].to_pylist()
    ids = dataset.user_ids()
    assert ids is not None
    return {
        user: [names[row] for row in dataset.sequence(k)] for k, user in enumerate(ids.to_pylist())
    }


class Counting(TableTeacher):
    """Notes what it was asked: items by row, histories as (user, end)."""

    def __init__(self, name: str = "table", **how: int) -> None:
        super().__init__(name, **how)
        self.rows: list[int] = []
        self.asked: list[tuple[int, int]] = []

    def encode_some_items(self, dataset, items):
        self.rows += items.tolist()
        return TableTeacher.encode_items(self, dataset)[items]

    def encode_items(self, dataset):
        self.rows += range(dataset.num_items)
        return super().encode_items(dataset)

    def encode_histories(self, dataset, users, ends):
        self.asked += zip(users.tolist(), ends.tolist(), strict=True)
        return super().encode_histories(dataset, users, ends)
