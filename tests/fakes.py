"""A teacher of numpy alone, and makers of tiny datasets, plans and stores with known content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache.dataset import Dataset, open_dataset, write_dataset
from cache.plan import Plan, PlannedBatch, open_plan, write_plan
from cache.store import Store

__all__ = [
    "HalvesTeacher",
    "PairTeacher",
    "StoppedError",
    "TableTeacher",
    "stopping_at",
    "tiny_dataset",
    "tiny_plan",
    "tiny_store",
    "tree",
]


class TableTeacher:
    """Scores are cosines of table rows: an item's own, and the mean of a history's items."""

    factorises = True

    def __init__(self, name: str = "table", *, width: int = 8, seed: int = 0) -> None:
        self.name = name
        self.quality: dict[str, float] = {}
        self.digest = f"sha256:{hashlib.sha256(f'{name} {width} {seed}'.encode()).hexdigest()}"
        self._width = width
        self._seed = seed
        self.calls = {"items": 0, "histories": 0, "score": 0}  #: how often each was asked

    def encode_items(self, dataset: Dataset) -> NDArray[np.float32]:
        self.calls["items"] += 1
        table_VD = np.random.default_rng(self._seed).normal(size=(dataset.num_items, self._width))
        return _unit(table_VD)

    def encode_histories(
        self, dataset: Dataset, users: NDArray[np.int32], ends: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        self.calls["histories"] += 1
        items_VD = _unit(
            np.random.default_rng(self._seed).normal(size=(dataset.num_items, self._width))
        )
        flat, lengths = dataset.histories(users, ends)
        starts = np.cumsum(lengths) - lengths
        return _unit(np.add.reduceat(items_VD[flat].astype(np.float64), starts, axis=0))

    def score(
        self, users_TD: NDArray[np.float32], items_CD: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        self.calls["score"] += 1
        return users_TD @ items_CD.T


class HalvesTeacher(TableTeacher):
    """Says when half of a question is answered, and when all is."""

    def encode_histories_watched(
        self,
        dataset: Dataset,
        users: NDArray[np.int32],
        ends: NDArray[np.int32],
        watch: Callable[[float], None],
    ) -> NDArray[np.float32]:
        watch(0.5)
        found = self.encode_histories(dataset, users, ends)
        watch(1.0)
        return found


class StoppedError(Exception):
    """What a teacher of :func:`stopping_at` raises."""


T = TypeVar("T", bound=TableTeacher)


def stopping_at(teacher: T, kind: str, at: int) -> T:
    """The same teacher, which stops at its `at`-th answer of a kind: histories or score."""
    answer = {"histories": "encode_histories", "score": "score"}[kind]
    real = getattr(teacher, answer)

    def stopping(*asked: Any) -> NDArray[np.float32]:
        if teacher.calls[kind] == at:
            raise StoppedError
        found: NDArray[np.float32] = real(*asked)
        return found

    setattr(teacher, answer, stopping)
    return teacher


class PairTeacher(TableTeacher):
    """A teacher whose score is no product: the smallest distance wins."""

    factorises = False

    def score(
        self, users_TD: NDArray[np.float32], items_CD: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        self.calls["score"] += 1
        return -np.abs(users_TD[:, None] - items_CD[None]).max(axis=-1)


def tiny_dataset(path: Path, *, users: int = 12, items: int = 9, seed: int = 0) -> Dataset:
    """Users of 3 to 9 interactions each, no item twice in a row."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 10, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    steps = rng.integers(1, items, int(lengths.sum()))
    flat = np.cumsum(steps) % items
    table = pa.table(
        {
            "item": [f"i{row}" for row in range(items)],
            "title": [f"Title {row}" for row in range(items)],
        }
    )
    ids = pa.array([f"u{row}" for row in range(users)])
    write_dataset(path, items=table, user_ids=ids, flat=flat, offsets=offsets, max_length=4)
    return open_dataset(path)


def tiny_plan(
    path: Path, dataset: Dataset, *, batch_size: int = 4, rounds: int = 1, seed: int = 0
) -> Plan:
    """Two buckets in dataset order for round 0, then `rounds` shuffled standard rounds."""
    users, ends = dataset.training_instances()
    rng = np.random.default_rng(seed)
    batches = []
    halves = np.array_split(np.arange(len(users), dtype=np.int32), 2)
    for bucket, half in enumerate(halves):
        batches += _cut(half, batch_size, round=0, bucket=bucket)
    for number in range(1, rounds + 1):
        order = rng.permutation(len(users)).astype(np.int32)
        batches += _cut(order, batch_size, round=number, bucket=-1)
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "buckets": 2,
        "rounds": rounds,
        "seed": seed,
    }
    write_plan(path, dataset, instances=(users, ends), batches=batches, settings=settings)
    return open_plan(path, dataset)


def tiny_store(path: Path, *, users: int = 12, items: int = 9, **plan: int) -> Store:
    """A store without scores at `path`; its sources stand beside it."""
    dataset = tiny_dataset(path.with_name(f"{path.name}-data"), users=users, items=items)
    return Store.create(path, dataset, lambda folder, inside: tiny_plan(folder, inside, **plan))


def tree(folder: Path) -> dict[str, str]:
    """Every name below `folder` with the digest of its bytes; folders with an empty one."""
    return {
        path.relative_to(folder).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        )
        for path in sorted(folder.rglob("*"))
    }


def _cut(instances: NDArray[np.int32], size: int, *, round: int, bucket: int) -> list[PlannedBatch]:
    return [
        PlannedBatch(round=round, bucket=bucket, instances=instances[first : first + size])
        for first in range(0, len(instances), size)
    ]


def _unit(table: NDArray[np.float64]) -> NDArray[np.float32]:
    return (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)
