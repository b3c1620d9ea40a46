"""Epochs of the product's own training loop, as `kd-student fit` runs them by default, one at a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from cache.factors import FactorReader
from cache.scores import ScoreReader
from cache.store import Store
from student.kept import KEPT_BYTES, Kept
from student.loop import make_optimizer, train
from student.registry import find_student
from student.schedule import TrainSettings
from student.state import RunState
from student.targets import Items, join_settings

__all__ = ["epochs"]


def epochs(
    store: Store,
    readers: Sequence[ScoreReader | FactorReader] = (),
    student: str = "sasrec",
    kept_bytes: int = KEPT_BYTES,
    items: Items = "in-batch",
    **settings: Any,
) -> Callable[[int], object]:
    """A contender that trains a student for one more standard epoch each time, from scores where there are readers.

    Validation is a constant, so nothing but training is in it. Kept targets are kept from epoch to epoch as one run keeps
    them, up to `kept_bytes`. `items` is over what the teachers are heard, `settings` those of
    `TrainSettings` that are to differ.
    """
    torch.manual_seed(0)
    kind = find_student(student)
    longest = {"max_length": store.dataset.max_length} if "max_length" in kind.fields else {}
    model = kind.make(kind.config(**longest), store.dataset)
    join = join_settings(readers, items=items) if readers else None
    chosen = TrainSettings(join=join, curriculum=False, **settings)
    optimizer = make_optimizer(model, chosen)
    state = RunState()
    kept = Kept(kept_bytes)

    def epoch(number: int) -> None:
        state.finished = False
        train(
            model,
            store.dataset,
            store.plan,
            readers,
            replace(chosen, epochs=state.epoch + 1),
            validate=lambda: 0.0,
            state=state,
            optimizer=optimizer,
            kept=kept,
        )

    return epoch
