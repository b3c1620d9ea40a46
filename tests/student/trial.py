"""A training run in small, with a validation that follows a script."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encoder.checkpoint import load_checkpoint, save_checkpoint
from student import loop
from student.loop import make_optimizer
from student.sasrec import SASRec
from student.schedule import TrainSettings
from student.state import RunState
from student.targets import Items, JoinSettings, join_settings
from tests.student.known import Ground, KnownFactors, KnownScores, student

__all__ = ["Trial", "same"]

IDENTITY = {"run": 1}


class Trial:
    """A student to be trained, its teachers, and a validation that follows a script."""

    def __init__(
        self,
        ground: Ground,
        *,
        teachers: int = 0,
        values: Callable[[int], float] = lambda epoch: 0.01 * epoch,
        dropout: float = 0.5,
        init: int = 0,
        factors: bool = False,
        items: Items = "in-batch",
        **settings: Any,
    ) -> None:
        self.dataset, self.plan = ground
        kind: Any = partial(KnownFactors, items=self.dataset.num_items) if factors else KnownScores
        self.readers = [
            kind(self.plan, name=f"t{k}", seed=k, quality=0.1 + k) for k in range(teachers)
        ]
        join: JoinSettings | None = join_settings(self.readers, items=items) if teachers else None
        self.settings = TrainSettings(**{"join": join, "epochs": 3, **settings})
        torch.manual_seed(init)
        self.model: SASRec = student(self.dataset, dropout=dropout)
        self.optimizer = make_optimizer(self.model, self.settings)
        self.values = values
        self.state = RunState()
        self.seen: list[dict[str, Tensor]] = []  #: the weights after each epoch

    def weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def validate(self) -> float:
        assert not self.model.training
        self.seen.append(self.weights())
        return self.values(self.state.epoch)

    def run(self, **more: Any) -> RunState:
        told = more.pop("on_epoch", lambda state: None)

        def on_epoch(state: RunState) -> None:
            self.state = state
            told(state)

        return loop.train(
            self.model,
            self.dataset,
            self.plan,
            self.readers,
            self.settings,
            validate=self.validate,
            state=self.state,
            optimizer=self.optimizer,
            on_epoch=on_epoch,
            **more,
        )

    def save(self, path: Path, state: RunState) -> None:
        best, values = state.tensors(), state.to_json()
        save_checkpoint(path, self.model, self.optimizer, best, values, IDENTITY)

    def load(self, path: Path) -> None:
        found = load_checkpoint(path, self.model, self.optimizer, IDENTITY)
        self.state = RunState.of(*found)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
