"""Batches that no plan fixed: instances shuffled afresh each epoch and cut to any size. Only factor sets can answer for them.

Like a plan's, a batch is a pure function of its number here: the order hangs on (seed, epoch) alone, so a run that was
killed goes on to the same weights. Held in memory: 8 bytes an instance.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cache.plan import Batch, Plan, first_appearance

__all__ = ["UNPLANNED", "Batches", "FreshBatches", "UserBatches", "instances_of"]

UNPLANNED = -1  #: the index of a batch that is in no plan; score sets know nothing of it


class Batches(Protocol):
    """Batches by number: a plan, or fresh ones."""

    def __getitem__(self, index: int, /) -> Batch:
        """Batch `index`."""


def instances_of(plan: Plan, batches: NDArray[np.int64]) -> NDArray[np.int32]:
    """Ids of the instances in some batches of a plan, sorted."""
    parts = [plan.slot_instances[plan.starts[i] : plan.starts[i + 1]] for i in batches]
    return np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int32)


class FreshBatches:
    """Instances of a plan, shuffled and cut; the last batch may be smaller."""

    def __init__(
        self, plan: Plan, instances: NDArray[np.int32], batch_size: int, *, seed: int, epoch: int
    ) -> None:
        """`instances` are ids of the plan, any of them, in an order that does not hang on chance."""
        self._plan = plan
        self._instances = instances[_order(len(instances), seed, epoch)]
        self._starts = np.append(
            np.arange(0, len(instances), batch_size), len(instances)
        )  # of each batch, and where the last one ends

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int, /) -> Batch:
        """Batch `index`, 0 <= index < len(self); its columns are made as a plan makes them."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)} fresh batches")
        plan = self._plan
        instances = self._instances[self._starts[index] : self._starts[index + 1]]
        items, columns = first_appearance(plan.targets[instances])
        return Batch(
            index=UNPLANNED,
            round=UNPLANNED,
            bucket=UNPLANNED,
            instances=instances,
            users=plan.instance_users[instances],
            ends=plan.instance_ends[instances],
            items=items,
            columns=columns,
        )


class UserBatches(FreshBatches):
    """All instances of a user in one batch, by time; users are shuffled, and a batch is closed before it grows too large.

    One causal pass over a user's sequence then serves all of them. A user of more instances than `batch_size` is cut.
    """

    def __init__(
        self, plan: Plan, instances: NDArray[np.int32], batch_size: int, *, seed: int, epoch: int
    ) -> None:
        """As :class:`FreshBatches`."""
        by_user = instances[
            np.lexsort((plan.instance_ends[instances], plan.instance_users[instances]))
        ]
        first = np.flatnonzero(np.diff(plan.instance_users[by_user], prepend=-1))
        pieces = [
            piece
            for own in np.split(by_user, first[1:])
            for piece in np.split(own, range(batch_size, len(own), batch_size))
        ]
        pieces = [pieces[place] for place in _order(len(pieces), seed, epoch)]
        starts, size = [0], 0
        for piece in pieces:
            if size + len(piece) > batch_size:
                starts.append(starts[-1] + size)
                size = 0
            size += len(piece)
        self._plan = plan
        self._instances = np.concatenate(pieces)
        self._starts = np.append(starts, len(instances))


def _order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """0..count-1 shuffled."""
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64))
    return np.argsort(bits.random_raw(count), kind="stable")
