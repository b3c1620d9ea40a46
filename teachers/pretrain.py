"""Pre-training a teacher of cosines over several source domains with UniSRec's two losses (arXiv 2206.05941, section 2.3).

Sequence-item: a sequence's state against the batch's target items, of all domains mixed. Sequence-sequence, weighted
1e-3: against the batch's augmented sequences (items dropped, or words dropped from the texts). Two deviations from the public
code, on purpose: items that equal the positive leave the denominator (there they stay in as exp(0)), and a dropped item is
gone (there it may overwrite a neighbour). Feature vectors are read row by row, so those that are not whitened may stay on disk
as memory maps; whitened ones are arrays, two of each source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cache.dataset import Dataset, Ints
from encoder.packed import Packed
from teachers.backbone import Backbone
from teachers.trainer import Recipe, Report, Trained, train

__all__ = ["Augmentation", "Source", "contrast", "drop_items", "pretrain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How a sequence's second view is made; the defaults are the public configuration's."""

    item_drop_ratio: float = 0.2  #: share of items that leave
    item_drop_chance: float = 0.9  #: how often items are dropped; else words
    weight: float = 1e-3  #: of the sequence-sequence loss


@dataclass(frozen=True, slots=True)
class Source:
    """One source domain."""

    dataset: Dataset
    features_VW: tuple[
        NDArray[np.float32], ...
    ]  #: one matrix a modality, of widths all sources share
    dropped_VW: tuple[NDArray[np.float32], ...]  #: the same, but of the texts with words dropped


def contrast(
    anchors_TD: Tensor, others_TD: Tensor, targets_T: Tensor, temperature: float
) -> Tensor:
    """Mean of `-log(exp(a_i o_i / t) / sum_j exp(a_i o_j / t))` over cosines.

    j runs over the batch without those j != i that have the same target as i: they are no negatives.
    """
    logits = F.normalize(anchors_TD, dim=-1) @ F.normalize(others_TD, dim=-1).T / temperature
    same = targets_T[:, None] == targets_T[None]
    same.fill_diagonal_(False)
    labels = torch.arange(len(logits), device=logits.device)
    return F.cross_entropy(logits.float().masked_fill(same, -torch.inf), labels)


def drop_items(
    flat: Ints, lengths: Ints, ratio: float, draws: NDArray[np.float64]
) -> tuple[Ints, Ints]:
    """Every item leaves with probability `ratio`, but the first of each history stays.

    Args:
        draws: [N] uniform in [0, 1), one an item.
    """
    starts = np.cumsum(lengths) - lengths
    kept = draws >= ratio
    kept[starts] = True
    return flat[kept], np.add.reduceat(kept.astype(np.int32), starts).astype(np.int32)


def pretrain(
    model: Backbone,
    sources: Sequence[Source],
    recipe: Recipe,
    augmentation: Augmentation,
    *,
    checkpoint: Path,
    identity: Mapping[str, Any],
    limit: int | None = None,
    report: Report = lambda done, total, note: None,
    device: str = "cpu",
) -> Trained:
    """Pre-train `model` on the training prefixes of all sources, shuffled together.

    Args:
        limit: at most so many instances an epoch, drawn afresh each epoch.
    """
    owners, users, ends = [], [], []
    for number, source in enumerate(sources):
        source_users, source_ends = source.dataset.training_instances()
        owners.append(np.full(len(source_users), number))
        users.append(source_users)
        ends.append(source_ends)
    owner, user, end = (np.concatenate(part) for part in (owners, users, ends))
    first_row = np.cumsum([0, *(source.dataset.num_items for source in sources)])
    size = min(limit or len(owner), len(owner))

    def lay(chosen: NDArray[np.int64]) -> tuple[Ints, Ints, NDArray[np.int64]]:
        """Histories (items by their row over all sources) and targets of instances sorted by owner."""
        flats, sizes, targets = [], [], []
        for number in np.unique(owner[chosen]):
            mine = chosen[owner[chosen] == number]
            dataset = sources[number].dataset
            flat, lengths = dataset.histories(user[mine], end[mine])
            flats.append(flat + first_row[number])
            sizes.append(lengths)
            targets.append(dataset.targets(user[mine], end[mine]) + first_row[number])
        return (np.concatenate(one) for one in (flats, sizes, targets))  # type: ignore[return-value]

    def features(rows: NDArray[np.integer[Any]], *, dropped: bool = False) -> list[Tensor]:
        """[n, W] of each modality, of rows over all sources."""
        which = np.searchsorted(first_row, rows, side="right") - 1
        outs = [np.empty((len(rows), one.shape[1]), np.float32) for one in sources[0].features_VW]
        for number in np.unique(which):
            mine = which == number
            source = sources[number]
            tables = source.dropped_VW if dropped else source.features_VW
            for out, table in zip(outs, tables, strict=True):
                out[mine] = table[rows[mine] - first_row[number]]
        return [torch.from_numpy(out).to(device) for out in outs]

    def batches(epoch: int) -> Iterator[tuple[int, Callable[[], Tensor]]]:
        draws = np.random.Generator(np.random.Philox(key=np.array([recipe.seed, epoch], np.uint64)))
        order = np.argsort(draws.random(len(owner)), kind="stable")[:size]
        for start in range(0, size - size % recipe.batch_size or size, recipe.batch_size):
            chosen = order[start : start + recipe.batch_size]
            flat, lengths, targets = lay(chosen[np.argsort(owner[chosen], kind="stable")])
            by_items = draws.random() < augmentation.item_drop_chance
            view, view_lengths = flat, lengths
            if by_items:
                chances = draws.random(len(flat))
                view, view_lengths = drop_items(
                    flat, lengths, augmentation.item_drop_ratio, chances
                )

            def loss(
                flat: Ints = flat,
                lengths: Ints = lengths,
                targets: NDArray[np.int64] = targets,
                view: Ints = view,
                view_lengths: Ints = view_lengths,
                words: bool = not by_items,
            ) -> Tensor:
                rows, places = np.unique(np.concatenate([flat, targets]), return_inverse=True)
                table_RD = model.adapt(*features(rows))
                at = torch.from_numpy(places).to(device)
                inputs = table_RD.index_select(0, at[: len(flat)])
                wanted = table_RD.index_select(0, at[len(flat) :])
                packed = Packed.of(flat, lengths, device)
                anchors = model.states(inputs, packed, only_last=True)
                if words:
                    seconds = model.adapt(*features(view, dropped=True))
                else:
                    place = np.searchsorted(rows, view)
                    seconds = table_RD.index_select(0, torch.from_numpy(place).to(device))
                others = model.states(
                    seconds, Packed.of(view, view_lengths, device), only_last=True
                )
                same = torch.from_numpy(targets).to(device)
                temperature = model.shape.temperature
                return contrast(
                    anchors, wanted, same, temperature
                ) + augmentation.weight * contrast(anchors, others, same, temperature)

            yield len(chosen), loss

    return train(
        model, recipe, batches, size=size, checkpoint=checkpoint, identity=identity, report=report
    )
