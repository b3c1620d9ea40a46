"""Epochs of the product's own training loop, as `kd-student fit` runs them by default, one at a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from cache.scores import ScoreReader
from cache.store import Store
from student.loop import RunState, TrainSettings, make_optimizer, train
from student.sasrec import SASRec, SASRecConfig
from student.targets import join_settings

__all__ = ["epochs"]


def epochs(store: Store, readers: Sequence[ScoreReader] = ()) -> Callable[[int], object]:
    """A contender that trains SASRec for one more standard epoch each time, from scores where there are readers.

    Validation is a constant, so nothing but training is in it.
    """
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(max_length=store.dataset.max_length), store.dataset.num_items)
    join = join_settings(readers) if readers else None
    settings = TrainSettings(join=join, curriculum=False)
    optimizer = make_optimizer(model, settings)
    state = RunState()

    def epoch(number: int) -> None:
        state.finished = False
        train(
            model,
            store.dataset,
            store.plan,
            readers,
            replace(settings, epochs=state.epoch + 1),
            validate=lambda: 0.0,
            state=state,
            optimizer=optimizer,
        )

    return epoch
