"""A plan's batches as they were made ready, kept from the first epoch that needs them: later ones neither read, join nor pack.

A batch of a plan has the same histories, layout and target in every epoch; none of it depends on the student's weights. So
from the second time on it costs the same whether one teacher is heard or eight. Holds at most `limit` bytes (with teachers
4 bytes a slot and column and up to a third more, so 256 MiB hold some 100,000 instances at 450 columns; without them 400,000,
and 1,500,000 where there is no attention either); batches beyond it are made each time, as those are that no plan fixed.
What is kept was verified when it was read.
"""

from __future__ import annotations

from student.batches import UNPLANNED
from student.ready import Prepared

__all__ = ["KEPT_BYTES", "Kept"]

KEPT_BYTES = 256 << 20


class Kept:
    """Batches by their number in one plan, made in one way: hand it to `prepared` epoch after epoch."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._left = limit
        self._batches: dict[int, Prepared] = {}

    def __len__(self) -> int:
        return len(self._batches)

    def get(self, index: int) -> Prepared | None:
        """Batch `index`, if it is kept; not to be written to."""
        return self._batches.get(index)

    def put(self, index: int, batch: Prepared) -> None:
        """Keep it, if there is room: the first ones stay, as the plan comes round again and again."""
        # targets over all items would fill it at once, on a GPU perhaps
        passing = index == UNPLANNED or batch.all_items
        if passing or index in self._batches or (size := batch.nbytes) > self._left:
            return
        self._left -= size
        self._batches[index] = batch
