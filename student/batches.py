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
    """Instances of a plan, shuffled and cut; the last batch may be smaller.

    By user, all instances of a user stand in one batch, by time, so that one causal pass over his sequence serves them
    all: users are shuffled, and a batch is closed before it grows too large. One of more instances than a batch is cut.
    """

    def __init__(
        self,
        plan: Plan,
        instances: NDArray[np.int32],
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        by_user: bool = False,
    ) -> None:
        """`instances` are ids of the plan, any of them, in an order that does not hang on chance."""
        self.by_user = by_user
        self._plan = plan
        if by_user:
            pieces = _users(plan, instances, batch_size)
            pieces = [pieces[place] for place in _shuffled(len(pieces), seed, epoch)]
            self._instances = np.concatenate([instances[:0], *pieces])
            self._starts = _starts([len(piece) for piece in pieces], batch_size)
        else:
            self._instances = instances[_shuffled(len(instances), seed, epoch)]
            self._starts = np.append(np.arange(0, len(instances), batch_size), len(instances))

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


def _shuffled(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """0..count-1 in an order that hangs on seed and epoch alone."""
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64))
    return np.argsort(bits.random_raw(count), kind="stable")


def _users(plan: Plan, instances: NDArray[np.int32], most: int) -> list[NDArray[np.int32]]:
    """Each user's instances by time, in pieces of at most `most`."""
    users, ends = plan.instance_users[instances], plan.instance_ends[instances]
    order = np.lexsort((ends, users))
    first = np.flatnonzero(np.diff(users[order], prepend=-1))
    return [
        piece
        for own in np.split(instances[order], first)[1:]
        for piece in np.split(own, range(most, len(own), most))
    ]


def _starts(sizes: list[int], most: int) -> NDArray[np.int64]:
    """Where batches start that take whole pieces of these sizes as long as they hold them, and where the last one ends."""
    starts, end = [0] if sizes else [], 0
    for size in sizes:
        if end + size > starts[-1] + most:
            starts.append(end)
        end += size
    return np.array([*starts, end])
