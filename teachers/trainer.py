"""The loop that pre-training and tuning share: epochs, early stopping, best weights, exact resume.

Every step seeds itself from (seed, step), and a checkpoint is kept after every epoch: a run that was killed goes on to
the same weights, bit for bit (same machine, same threads). Prints nothing, reads no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cache.errors import TeacherError
from encoder.checkpoint import load_checkpoint, save_checkpoint
from encoder.dropout import seed_step

__all__ = ["Recipe", "Trained", "train"]

Report = Callable[[float, float, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a teacher is trained, beside its data."""

    epochs: int = 60  #: at most
    patience: int = 6  #: epochs without a better validation, then stop
    batch_size: int = 1024  #: targets a step
    learning_rate: float = 1e-3  #: of Adam
    weight_decay: float = 0.0
    seed: int = 0
    bfloat16: bool = False  #: autocast matrix products


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What training left."""

    weights: dict[str, Tensor]  #: the best, by validation; the last where there is none
    best: float  #: validation; NaN where there is none
    epochs: int
    history: list[dict[str, float]]  #: loss and validation of each epoch


def train(
    model: nn.Module,
    recipe: Recipe,
    batches: Callable[[int], Iterator[tuple[int, Callable[[], Tensor]]]],
    *,
    size: int,
    checkpoint: Path,
    identity: Mapping[str, Any],
    validate: Callable[[], float] | None = None,
    report: Report = lambda done, total, note: None,
    schedule: Callable[[int], float] | None = None,
    clip: float | None = None,
    judge_start: bool = False,
    on_epoch: Callable[[int, int], None] = lambda done, best: None,
) -> Trained:
    """Train until validation stops improving, or for all epochs where there is none.

    Args:
        batches: of an epoch: (targets in the step, a function that gives its mean loss).
        size: targets in an epoch.
        checkpoint: file to keep between epochs; gone on from if it is there, removed by the caller.
        identity: what the run is; a checkpoint of another is refused.
        validate: NDCG@10 as the model stands.
        schedule: share of the learning rate at each step, counted from 0.
        clip: largest norm of the gradients.
        report: told after each step, and once more when an epoch is over and kept, with what it came to; and before and after
            the start is judged.
        on_epoch: told how many epochs are done and how many were at the best one, before the checkpoint of that epoch is kept.
        judge_start: the weights as they are handed in are a contender too: no epoch wins that validates worse.

    Raises:
        TeacherError: ``teacher.diverged`` when the loss is no number.
        StoreError: ``checkpoint.foreign``.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(
        trained, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    device = trained[0].device
    state: dict[str, Any] = {"epoch": 0, "step": 0, "best": -1.0, "stale": 0, "history": []}
    best: dict[str, Tensor] = {}
    if checkpoint.is_file():
        state, best = load_checkpoint(checkpoint, model, optimizer, identity)
    elif judge_start and validate is not None:
        report(0, recipe.epochs, "validating the start")
        model.eval()
        state["best"], best = validate(), _copied(model)
        report(0, recipe.epochs, _note(state))
    while state["epoch"] < recipe.epochs and state["stale"] < recipe.patience:
        model.train()
        seen, total = 0, torch.zeros((), device=device)
        for count, loss_of in batches(state["epoch"]):
            seed_step(recipe.seed, state["step"])
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bfloat16):
                loss = loss_of()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            if clip is not None:
                nn.utils.clip_grad_norm_(trained, clip)
            if schedule is not None:
                for group in optimizer.param_groups:
                    group["lr"] = recipe.learning_rate * schedule(state["step"])
            optimizer.step()
            total += loss.detach() * count
            seen += count
            state["step"] += 1
            report(state["epoch"] + seen / size, recipe.epochs, _note(state))
        mean = float(total) / max(seen, 1)
        if mean != mean or mean == float("inf"):
            raise TeacherError(
                f"epoch {state['epoch']}: the loss is not a number; "
                "start again with a smaller --learning-rate.",
                code="teacher.diverged",
            )
        record = {"loss": mean}
        if validate is not None:
            model.eval()
            record["validation"] = value = validate()
            state["stale"] += 1
            if value > state["best"]:
                state["best"], state["stale"] = value, 0
                best = _copied(model)
        state["history"].append(record)
        state["epoch"] += 1
        on_epoch(state["epoch"], state["epoch"] - state["stale"])
        save_checkpoint(checkpoint, model, optimizer, best, state, identity)
        report(state["epoch"], recipe.epochs, _note(state))
    return Trained(
        weights=best or dict(model.state_dict()),
        best=state["best"] if best else float("nan"),
        epochs=state["epoch"],
        history=state["history"],
    )


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _note(state: Mapping[str, Any]) -> str:
    if not state["history"]:
        return f"valid ndcg@10 {state['best']:.4f} at the start" if state["best"] >= 0 else ""
    last = state["history"][-1]
    shown = f"loss {last['loss']:.3f}"
    if "validation" in last:
        shown += f", valid ndcg@10 {last['validation']:.4f} (best {state['best']:.4f})"
    return shown
