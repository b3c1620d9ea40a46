"""Tuning a teacher of cosines on the target domain: full softmax over all items, every prefix of a user in one causal pass.

Inductive (features only) or transductive (with an id embedding), the pre-trained encoder frozen or not; early stopping on
validation NDCG@10, which the caller measures. The item table is adapted once a step and serves inputs and candidates.
Of a user with more training items than `max_length`, prefixes share passes that begin every `max_length / STEPS` items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cache.dataset import Dataset
from encoder.packed import Packed
from teachers.backbone import Backbone
from teachers.passes import plan_passes
from teachers.trainer import Recipe, Report, Trained, train

__all__ = ["tune"]

STEPS = 5  # passes begin every ten items where histories hold fifty


def tune(
    model: Backbone,
    dataset: Dataset,
    recipe: Recipe,
    *,
    validate: Callable[[], float],
    checkpoint: Path,
    identity: Mapping[str, Any],
    report: Report = lambda done, total, note: None,
    device: str = "cpu",
    on_epoch: Callable[[int, int], None] = lambda done, best: None,
) -> Trained:
    """Tune `model` on the training parts of `dataset`; see :func:`teachers.trainer.train`."""
    users, ends = dataset.training_instances()
    passes = plan_passes(dataset, users, ends, stride=max(1, dataset.max_length // STEPS))
    targets = dataset.targets(users, ends).astype(np.int64)

    def batches(epoch: int) -> Iterator[tuple[int, Callable[[], Tensor]]]:
        bits = np.random.Philox(key=np.array([recipe.seed, epoch], np.uint64))
        order = np.argsort(bits.random_raw(len(passes.firsts)), kind="stable")
        for chosen in passes.batches(order, recipe.batch_size, passes.counts):
            laid = passes.pack(chosen)
            packed = Packed.of(laid.items, laid.lengths, device)
            rows = torch.from_numpy(laid.rows).to(device)
            wanted = torch.from_numpy(targets[laid.instances]).to(device)

            def loss(
                packed: Packed = packed, rows: Tensor = rows, wanted: Tensor = wanted
            ) -> Tensor:
                table_VD = model.item_table()
                states_ND = model.states(table_VD.index_select(0, packed.items), packed)
                logits = model.logits(states_ND.index_select(0, rows), table_VD)
                return F.cross_entropy(logits.float(), wanted)

            yield len(laid.rows), loss

    return train(
        model,
        recipe,
        batches,
        size=len(users),
        checkpoint=checkpoint,
        identity=identity,
        validate=validate,
        report=report,
        on_epoch=on_epoch,
    )
