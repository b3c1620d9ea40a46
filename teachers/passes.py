"""Prefixes share one causal pass: a sequence is encoded once and the state of every asked prefix is read from it.

A causal transformer's state at position p depends on positions 0..p alone, so one pass over a user's items answers for
all prefixes that start with his first item. Histories are the last L = `max_length` items, so an end beyond L starts later:
it shares a pass only with ends that have the same start. `stride` > 1 (training only) lets starts move in jumps, so that a
user of n items costs at most L + n L / stride tokens, not n L; the histories of such ends then hold L - stride + 1 to L
items. All numpy, vectorised; 20 bytes an instance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache.dataset import Dataset, Ints

__all__ = ["PackedPasses", "Passes", "plan_passes"]

Longs = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedPasses:
    """Some passes laid end to end, and where in them the instances' states stand."""

    items: Ints  #: [N] item rows
    lengths: Ints  #: [B]
    rows: Longs  #: [n] token whose state is the instance's
    instances: Longs  #: [n] places in the arrays that were planned


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """P passes over pieces of users' sequences that answer n instances."""

    flat: Ints  #: [interactions] of the dataset
    firsts: Longs  #: [P] place of each pass's first item in `flat`
    lengths: Longs  #: [P] items in each pass, 1..max_length
    order: Longs  #: [n] instances, pass after pass
    bounds: Longs  #: [P + 1] where each pass's instances begin in `order`
    places: Longs  #: [n] by instance: the token of its pass at which it is read

    def pack(self, chosen: Longs) -> PackedPasses:
        """Lay the chosen passes end to end, in that order."""
        lengths = self.lengths[chosen]
        items = self.flat[_ranges(self.firsts[chosen], lengths)]
        counts = self.bounds[chosen + 1] - self.bounds[chosen]
        instances = self.order[_ranges(self.bounds[chosen], counts)]
        bases = np.cumsum(lengths) - lengths
        rows = np.repeat(bases, counts) + self.places[instances]
        return PackedPasses(
            items=items, lengths=lengths.astype(np.int32), rows=rows, instances=instances
        )

    def batches(self, order: Longs, budget: int, cost: Longs) -> Iterator[Longs]:
        """Cut `order` (passes) into runs whose summed `cost` [P] stays within `budget`, at least one each."""
        totals = np.cumsum(cost[order])
        start = 0
        while start < len(order):
            spent = totals[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(totals, spent + budget, side="right")))
            yield order[start:stop]
            start = stop

    @property
    def counts(self) -> Longs:
        """[P] instances that each pass answers."""
        return np.diff(self.bounds)


def plan_passes(dataset: Dataset, users: Ints, ends: Ints, *, stride: int = 1) -> Passes:
    """The fewest passes that answer the instances (users, ends), ends >= 1.

    Args:
        stride: 1 gives each instance exactly its last `max_length` items; at most `max_length`.
    """
    length = dataset.max_length
    if not 1 <= stride <= length:  # beyond, a pass would begin after its own end
        raise ValueError(f"a stride of 1 to {length} expected, found {stride}")
    ends64 = ends.astype(np.int64)
    starts = -(-np.maximum(ends64 - length, 0) // stride) * stride
    firsts = dataset.offsets[users] + starts
    distinct, which = np.unique(firsts, return_inverse=True)
    lengths = np.zeros(len(distinct), np.int64)
    np.maximum.at(lengths, which, ends64 - starts)
    order = np.argsort(which, kind="stable")
    bounds = np.searchsorted(which[order], np.arange(len(distinct) + 1))
    return Passes(
        flat=dataset.flat,
        firsts=distinct,
        lengths=lengths,
        order=order,
        bounds=bounds.astype(np.int64),
        places=ends64 - starts - 1,
    )


def _ranges(firsts: Longs, counts: Longs) -> Longs:
    """The ranges first..first+count-1, one after another."""
    total = int(counts.sum())
    begins = np.cumsum(counts) - counts
    return np.arange(total) - np.repeat(begins - firsts, counts)
