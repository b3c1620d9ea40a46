"""Joined targets of a plan's batches, kept from the first epoch that needs them, so that later ones neither read nor join.

What the teachers say together of a batch does not depend on the student or the epoch: from the second time on a batch
costs the same whether one teacher is heard or eight. Holds at most `limit` bytes (4 bytes a slot and column, so 256 MiB hold
about 150,000 instances at 450 columns); batches beyond it are joined each time, as those are that no plan fixed.
What is kept was verified when it was read.
"""

from __future__ import annotations

from student.batches import UNPLANNED
from student.targets import Target

__all__ = ["KEPT_BYTES", "Joined"]

KEPT_BYTES = 256 << 20


class Joined:
    """Targets by batch of one plan, under one way of joining: hand it to `prepared` epoch after epoch."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._left = limit
        self._targets: dict[int, Target] = {}

    def __len__(self) -> int:
        return len(self._targets)

    def get(self, index: int) -> Target | None:
        """The target of batch `index`, if it is kept; not to be written to."""
        return self._targets.get(index)

    def put(self, index: int, target: Target) -> None:
        """Keep it, if there is room: the first ones stay, as the plan comes round again and again."""
        size = target.q_TC.nbytes
        passing = (
            index == UNPLANNED or target.all_items
        )  # these would fill it at once, on a GPU perhaps
        if passing or index in self._targets or size > self._left:
            return
        self._left -= size
        self._targets[index] = target
