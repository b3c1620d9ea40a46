"""Tuning a Recformer on the target domain in two stages: full softmax of cosines over 0.05 against a frozen item table.

Stage one reads all items anew before every epoch and keeps weights and table of the best validation, the start's among
them, since a pre-trained Recformer ranks before it is tuned. Stage two goes on from there with that table fixed, and
wins only if it validates better (arXiv 2305.13731, section 2.4). One target a user and epoch, uniform among positions
1..L-1 of his training part: there is always a history. Each stage has a warm-up and decay of its own. An epoch costs, in
tokens read, all items once and all users three times (forward and backward), beside validation. Either stage keeps a
checkpoint of its own, so a kill at any epoch, or between the stages, changes no bit of the outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cache.dataset import Dataset
from cache.errors import UsageError
from teachers.recformer import Batch, Recformer, encode
from teachers.recformer_tokens import ItemTokens
from teachers.schedule import warm_up_and_decay
from teachers.trainer import Recipe, Report, Trained, train

__all__ = ["checkpoints", "read_items", "tune"]

_OTHER_SEED = 1_000_003  # stage two draws what stage one has not drawn


def checkpoints(checkpoint: Path) -> tuple[Path, Path]:
    """The files that the two stages keep; the caller removes them once the teacher is saved."""
    return checkpoint, checkpoint.with_name(f"{checkpoint.stem}-2{checkpoint.suffix}")


def read_items(model: Recformer, items: ItemTokens, *, bfloat16: bool = False) -> None:
    """Fill the model's item table; leaves the model in evaluation."""
    model.eval()
    model.table().data.copy_(encode(model, items.alone(), bfloat16=bfloat16))


def tune(
    model: Recformer,
    dataset: Dataset,
    items: ItemTokens,
    recipe: Recipe,
    *,
    second: Recipe | None,
    validate: Callable[[], float],
    checkpoint: Path,
    identity: Mapping[str, Any],
    limit: int | None = None,
    warm_up: int = 100,
    clip: float | None = 1.0,
    report: Report = lambda done, total, note: None,
) -> Trained:
    """Tune `model`, which has an item table, on the training parts of `dataset`.

    Args:
        recipe: of stage one; `batch_size` counts users.
        second: of stage two; None leaves it out. Of its seed nothing is used.
        validate: NDCG@10 as the model stands, by its table.
        checkpoint: see :func:`checkpoints`.
        limit: at most so many users an epoch, drawn afresh each epoch.
        warm_up: steps until a stage's learning rate is whole; it then falls in a straight line to zero.
        clip: largest norm of the gradients.

    Returns:
        Weights with table, and the epochs of both stages one after another; `stage` in the history tells them apart.

    Raises:
        UsageError: ``tune.no_users`` where nobody has two items to train on.
    """
    users = np.flatnonzero(dataset.train_lengths >= 2)
    if not len(users):
        raise UsageError(
            f"{dataset.path}: no user has two items to train on; ingest more interactions.",
            code="tune.no_users",
        )
    size = min(limit or len(users), len(users))
    total = recipe.epochs + (second.epochs if second else 0)
    first_file, second_file = checkpoints(checkpoint)

    def refreshed() -> float:
        read_items(model, items, bfloat16=recipe.bfloat16)
        return validate()

    def run(stage: int, recipe: Recipe, file: Path, before: int) -> Trained:
        def batches(epoch: int) -> Iterator[tuple[int, Callable[[], Tensor]]]:
            return _batches(model, dataset, items, users, size, recipe, epoch)

        steps = recipe.epochs * -(-size // recipe.batch_size)
        return train(
            model,
            recipe,
            batches,
            size=size,
            checkpoint=file,
            identity={**identity, "stage": stage},
            validate=refreshed if stage == 1 else validate,
            report=lambda done, _, note: report(
                before + done, total, ", ".join(filter(None, [f"stage {stage}", note]))
            ),
            schedule=warm_up_and_decay(min(warm_up, steps // 2), steps),
            clip=clip,
            judge_start=stage == 1,  # a pre-trained Recformer ranks before it is tuned
        )

    first = run(1, recipe, first_file, 0)
    if second is None:
        return _told(first, 1)
    model.load_state_dict(first.weights)
    later = run(2, replace(second, seed=recipe.seed + _OTHER_SEED), second_file, recipe.epochs)
    better = later if later.best > first.best else first
    return Trained(
        weights=better.weights,
        best=better.best,
        epochs=first.epochs + later.epochs,
        history=[*_told(first, 1).history, *_told(later, 2).history],
    )


def _batches(
    model: Recformer,
    dataset: Dataset,
    items: ItemTokens,
    users: np.ndarray[Any, np.dtype[np.int64]],
    size: int,
    recipe: Recipe,
    epoch: int,
) -> Iterator[tuple[int, Callable[[], Tensor]]]:
    device = next(model.parameters()).device
    bits = np.random.Philox(key=np.array([recipe.seed, epoch], np.uint64))
    draws = np.random.Generator(bits)
    order = users[np.argsort(draws.random(len(users)), kind="stable")[:size]]
    for start in range(0, len(order), recipe.batch_size):
        chosen = order[start : start + recipe.batch_size].astype(np.int32)
        ends = draws.integers(1, dataset.train_lengths[chosen]).astype(np.int32)
        read = items.histories(dataset, chosen, ends)
        alike = np.argsort(-read.lengths, kind="stable")
        targets = dataset.targets(chosen, ends)[alike]
        wanted = torch.from_numpy(targets.astype(np.int64)).to(device)
        batch = Batch.of(read.lay(alike), model.architecture, device)

        def loss(batch: Batch = batch, wanted: Tensor = wanted) -> Tensor:
            logits = model.logits(model.first_states(batch), model.table())
            return F.cross_entropy(logits.float(), wanted)

        yield len(chosen), loss


def _told(trained: Trained, stage: int) -> Trained:
    return replace(trained, history=[{**one, "stage": float(stage)} for one in trained.history])
