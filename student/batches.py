"""Batches that no plan fixed: instances shuffled afresh each epoch and cut to any size. Only factor sets can answer for them.

Like a plan's, a batch is a pure function of its number here: the order hangs on (seed, epoch) alone, so a run that was
killed goes on to the same weights. Held in memory: 8 bytes an instance.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cache.plan import Batch, Plan, first_appearance

__all__ = ["UNPLANNED", "Batches", "FreshBatches", "instances_of"]

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
        bits = np.random.Philox(key=np.array([seed, epoch], np.uint64))
        self._plan = plan
        self._size = batch_size
        self._instances = instances[np.argsort(bits.random_raw(len(instances)), kind="stable")]

    def __len__(self) -> int:
        return -(-len(self._instances) // self._size)

    def __getitem__(self, index: int, /) -> Batch:
        """Batch `index`, 0 <= index < len(self); its columns are made as a plan makes them."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)} fresh batches")
        plan = self._plan
        instances = self._instances[index * self._size : (index + 1) * self._size]
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
