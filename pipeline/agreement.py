"""How several teachers in one store agree: rank correlation of each pair, and where each would be dropped.

Both are asked of the stored scores alone, batch by batch, as a student would read them: no teacher and no student is
loaded. Who is dropped is what student/consistency.py decides (section 3.6.2 of the paper), counted over pairs of history
and item; below three teachers nobody is. Holds one batch of every teacher at a time; 512 x 450 pairs of three teachers
take some 0.15 s. Legend: K teachers, T slots, C columns, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.dataset import Dataset
from cache.plan import Plan
from student.consistency import consistency_weights, retemper
from student.targets import JoinSettings, Scores

__all__ = ["Agreement", "Groups", "agreement", "rank_correlation", "thirds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Numbers put into about equal parts, whose limits are themselves such numbers."""

    limits: tuple[int, ...]  #: the largest number of each group, ascending
    least: int  #: the smallest number of all

    def of(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """The group of each number, from 0."""
        return np.searchsorted(np.array(self.limits), values).clip(max=len(self.limits) - 1)

    def labels(self, noun: str) -> list[str]:
        """A name for each group, such as `2 to 4 items`."""
        firsts = [self.least, *(limit + 1 for limit in self.limits[:-1])]
        ranges = [
            f"{first:,}" if first == last else f"{first:,} to {last:,}"
            for first, last in zip(firsts, self.limits, strict=True)
        ]
        return [f"{one} {noun if one == '1' else noun + 's'}" for one in ranges]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What the teachers of a store have in common; shares are of pairs of a history and an item."""

    names: tuple[str, ...]
    batches: int  #: that were read
    correlation_KK: NDArray[
        np.float64
    ]  #: mean over histories of Spearman's rho over the batch's items
    dropped_K: NDArray[np.float64]
    popularity: Groups  #: of items, by their interactions in the training parts
    dropped_by_popularity_GK: NDArray[np.float64]
    lengths: Groups  #: of histories
    dropped_by_length_GK: NDArray[np.float64]


def thirds(values: NDArray[np.int64]) -> Groups:
    """Three groups of about equally many numbers, fewer where numbers repeat; at least one number."""
    limits = np.unique(np.quantile(values, [1 / 3, 2 / 3, 1], method="inverted_cdf"))
    return Groups(limits=tuple(map(int, limits)), least=int(values.min()))


def rank_correlation(scores_KTC: Tensor) -> Tensor:
    """[K, K, T] Spearman's rho of each pair of teachers within each row; ties share their mean rank.

    A row that says nothing (all equal, or a single column) agrees with nobody: 0.
    """
    ordered = scores_KTC.contiguous().sort(dim=-1).values
    below = torch.searchsorted(ordered, scores_KTC.contiguous())
    upto = torch.searchsorted(ordered, scores_KTC.contiguous(), right=True)
    ranks = (below + upto).double()
    ranks -= ranks.mean(dim=-1, keepdim=True)
    norms = ranks.norm(dim=-1, keepdim=True)
    units = ranks / norms.where(norms > 0, 1.0)
    return torch.einsum("atc,btc->abt", units, units)


def agreement(
    dataset: Dataset,
    plan: Plan,
    readers: Sequence[Scores],
    settings: JoinSettings,
    *,
    most: int,
) -> Agreement:
    """Read at most `most` batches, evenly spread over the plan, of at least two teachers and compare these.

    Raises:
        StoreError: what the readers raise over damage.
    """
    chosen = np.unique(np.linspace(0, len(plan) - 1, min(most, len(plan))).round().astype(int))
    counts_V = dataset.train_counts
    by_popularity = _Tally(thirds(counts_V[plan.targets]), len(readers))
    by_length = _Tally(thirds(plan.instance_ends.astype(np.int64)), len(readers))
    correlation_KK = np.zeros((len(readers), len(readers)))
    slots = 0
    prior_K = torch.tensor(settings.weights)
    for index in chosen:
        batch = plan[int(index)]
        logp_KTC = torch.stack(
            [
                retemper(
                    torch.from_numpy(one[batch.index].astype(np.float32)), one.tau, settings.tau
                )
                for one in readers
            ]
        )
        correlation_KK += rank_correlation(logp_KTC).sum(dim=-1).numpy()
        slots += len(batch.instances)
        weights = consistency_weights(
            logp_KTC.exp(), prior_K, epsilon=settings.epsilon, by=settings.consistency
        )
        gone_KTC = (weights == 0).expand(logp_KTC.shape) & (prior_K != 0)[:, None, None]
        rows, columns = len(batch.instances), len(batch.items)
        by_popularity.add(counts_V[batch.items], gone_KTC.sum(dim=1), of=rows)
        by_length.add(batch.ends.astype(np.int64), gone_KTC.sum(dim=2), of=columns)
    return Agreement(
        names=tuple(reader.name for reader in readers),
        batches=len(chosen),
        correlation_KK=correlation_KK / slots,
        dropped_K=by_length.gone_GK.sum(axis=0) / by_length.pairs_G.sum(),
        popularity=by_popularity.groups,
        dropped_by_popularity_GK=by_popularity.shares(),
        lengths=by_length.groups,
        dropped_by_length_GK=by_length.shares(),
    )


class _Tally:
    """How many pairs there were in each group, and at how many each teacher was dropped."""

    def __init__(self, groups: Groups, teachers: int) -> None:
        self.groups = groups
        self.gone_GK = np.zeros((len(groups.limits), teachers))
        self.pairs_G = np.zeros(len(groups.limits))

    def add(self, values: NDArray[np.int64], gone_KN: Tensor, *, of: int) -> None:
        """Count N things that are in the groups of `values`, each `of` pairs."""
        group = self.groups.of(values)
        np.add.at(self.gone_GK, group, gone_KN.numpy().T)
        np.add.at(self.pairs_G, group, of)

    def shares(self) -> NDArray[np.float64]:
        """[G, K]."""
        return self.gone_GK / np.maximum(self.pairs_G, 1)[:, None]
