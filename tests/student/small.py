"""Every built-in student in small, a store to train it from, and what its tests ask again and again."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from cache.dataset import Dataset, open_dataset
from cache.store import Store
from encoder.packed import Packed
from pipeline.fit import fit
from pipeline.runs import Run
from pipeline.suite_ground import shop_dataset
from student.prepared import prepared
from student.protocol import TwoDomains
from student.ready import Prepared
from student.registry import BUILT_IN, find_student
from student.schedule import TrainSettings
from student.state import RunState
from student.targets import Items, join_settings
from tests.fakes import tiny_dataset, tiny_plan
from tests.student.known import KnownFactors, KnownScores

__all__ = [
    "NAMES",
    "SMALL",
    "Answers",
    "elsewhere",
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
    source = shop_dataset(path.with_name(f"{path.name}-data"), users=users, items=items)
    return Store.create(
        path,
        source,
        lambda folder, inside: tiny_plan(folder, inside, batch_size=batch_size),
    )


def small(name: str, **more: Any) -> Any:
    """A configuration of small sizes."""
    kind = find_student(name)
    values = {key: value for key, value in SMALL.items() if key in kind.fields}
    return kind.config(**{k: v for k, v in (values | more).items() if k in kind.fields})


def elsewhere(store: Store) -> Dataset:
    """Another domain beside the store: 30 users, 15 items, histories of other lengths."""
    path = store.path.with_name("elsewhere")
    return open_dataset(path) if path.exists() else tiny_dataset(path, users=30, items=15, seed=5)


def made(name: str, dataset: Dataset, *, spread: float = 0.3, seed: int = 0, **more: Any) -> Any:
    """In eval mode, with every parameter drawn wide enough to count."""
    torch.manual_seed(seed)
    kind = find_student(name)
    if "max_length" not in more:
        more = {**more, "max_length": dataset.max_length}
    config = small(name, **{"source_items": dataset.num_items, **more})
    model: nn.Module = kind.make(config, dataset).eval()
    if isinstance(model, TwoDomains):
        model.learn_from(dataset)
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
        store,
        readers,
        folder,
        small(name, **(sizes or {})),
        given,
        student=name,
        source=elsewhere(store) if "source" in find_student(name).fields else None,
        watch=watch,
    )
