"""Every built-in student in small, a store to train it from, and what its tests ask again and again."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from cache.dataset import Dataset, open_dataset, write_dataset
from cache.store import Store
from encoder.packed import Packed
from pipeline.fit import Run, fit
from student.loop import RunState, TrainSettings
from student.registry import BUILT_IN, find_student
from student.targets import Items, Prepared, join_settings, prepared
from tests.fakes import tiny_plan
from tests.student.known import KnownFactors, KnownScores

__all__ = [
    "NAMES",
    "SMALL",
    "Answers",
    "first_batch",
    "made",
    "packed",
    "shop",
    "small",
    "trained",
]

NAMES = list(BUILT_IN)

#: sizes that a test can afford; what a student does not know is left away
SMALL: dict[str, Any] = {"hidden": 8, "inner": 12, "heads": 2, "layers": 2, "dropout": 0.2}


class Answers(KnownScores):
    """Known scores with the digest that a run is identified by."""

    digest = "sha256:known"
    manifest = SimpleNamespace(kind="scores", settings={"teacher": "known", "tau": 0.1})


def packed(histories: list[list[int]], users: list[int] | None = None) -> Packed:
    flat = np.array([item for one in histories for item in one], np.int32)
    lengths = np.array([len(one) for one in histories], np.int32)
    return Packed.of(flat, lengths, users=None if users is None else np.array(users, np.int32))


def shop(path: Path, *, users: int = 40, items: int = 24, batch_size: int = 16) -> Store:
    """A store without scores: most next items follow from the last one; brands and categories, some missing."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 10, users)
    flat: list[int] = []
    for length in lengths:
        item = int(rng.integers(items))
        for _ in range(length):
            flat.append(item)
            item = (item + 1) % items if rng.random() < 0.8 else int(rng.integers(items))
    rows = np.arange(items)
    table = pa.table(
        {
            "item": [f"i{row}" for row in rows],
            "title": [f"Title {row}" for row in rows],
            "brand": ["" if row % 5 == 0 else f"brand {row % 3}" for row in rows],
            "category": ["" if row % 7 == 0 else f"category {row % 4}" for row in rows],
        }
    )
    source = path.with_name(f"{path.name}-data")
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = pa.array([f"u{row}" for row in range(users)])
    write_dataset(
        source, items=table, user_ids=ids, flat=np.array(flat), offsets=offsets, max_length=6
    )
    return Store.create(
        path,
        open_dataset(source),
        lambda folder, inside: tiny_plan(folder, inside, batch_size=batch_size),
    )


def small(name: str, **more: Any) -> Any:
    """A configuration of small sizes."""
    kind = find_student(name)
    values = {key: value for key, value in SMALL.items() if key in kind.fields}
    return kind.config(**{k: v for k, v in (values | more).items() if k in kind.fields})


def made(name: str, dataset: Dataset, *, spread: float = 0.3, seed: int = 0, **more: Any) -> Any:
    """In eval mode, with every parameter drawn wide enough to count."""
    torch.manual_seed(seed)
    kind = find_student(name)
    config = small(name, **more)
    if "max_length" in kind.fields and "max_length" not in more:
        config = small(name, max_length=dataset.max_length, **more)
    model: nn.Module = kind.make(config, dataset).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * spread)
    return model


def first_batch(
    store: Store, *, teachers: int = 1, index: int = 0, items: Items = "in-batch"
) -> Prepared:
    kind: Any = Answers
    if items == "all":
        kind = partial(KnownFactors, items=store.dataset.num_items)
    readers = [kind(store.plan, name=f"t{k}", seed=k) for k in range(teachers)]
    join = join_settings(readers, items=items) if readers else None
    (batch,) = prepared(store.dataset, store.plan, [index], readers, join)
    return batch


def trained(
    store: Store,
    folder: Path,
    name: str,
    *,
    teachers: int = 0,
    stop_after: int | None = None,
    sizes: dict[str, Any] | None = None,
    **settings: Any,
) -> Run:
    """`pipeline.fit.fit` in small; `stop_after` so many epochs it is killed (KeyboardInterrupt)."""
    readers: list[Any] = [Answers(store.plan, name=f"t{k}", seed=k) for k in range(teachers)]
    join = join_settings(readers) if readers else None

    def watch(state: RunState, rate: float) -> None:
        if state.epoch == stop_after:
            raise KeyboardInterrupt

    given = TrainSettings(**{"join": join, "epochs": 3, "curriculum": False, **settings})
    return fit(
        store, readers, folder, small(name, **(sizes or {})), given, student=name, watch=watch
    )
