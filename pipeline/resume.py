"""Where a student's run that was stopped goes on, and how many epochs it may still have.

All settings decide what an epoch brings, but for one: how many there may be. So a stopped run goes on with another
`--epochs` too, and ends as if it had been asked so from the start; with as many as lie behind it, it ends where it stands.
Refuses to end before that.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cache.errors import StoreError
from cache.plan import Plan
from encoder.checkpoint import load_checkpoint
from student.schedule import TrainSettings
from student.state import RunState

__all__ = ["resumed"]


def resumed(
    checkpoint: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
    settings: TrainSettings,
    plan: Plan,
) -> RunState:
    """Put `model` and `optimizer` where the run stood; returns its state, which is finished where `settings` ask for no more.

    Raises:
        StoreError: ``checkpoint.further`` where more epochs lie behind it than `settings` allow; what
            :func:`encoder.checkpoint.load_checkpoint` raises.
    """
    state = RunState.of(
        *load_checkpoint(checkpoint, model, optimizer, identity, free={"train.epochs"})
    )
    most, ranked = settings.most(plan), state.history[-1].validation is not None
    # of a run that ends with an epoch, that one was validated
    if state.epoch > most or (state.epoch == most and not ranked):
        needed = state.epoch - settings.staged(plan) + (not ranked)
        raise StoreError(
            f"{checkpoint}: the run is further than --epochs {settings.epochs}; give --epochs {needed} or more, "
            "choose another --out, or remove it to start anew.",
            code="checkpoint.further",
        )
    state.finished = state.epoch == most or (ranked and state.stale >= settings.patience)
    return state
