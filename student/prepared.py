"""Batches made ready: histories packed, teachers' scores read, checked and joined.

What the student's step needs of a batch does not depend on the student, so a thread makes it while the step before runs;
order and numbers do not depend on its timing (ahead.py). Where that is 0.2 ms of small calls, without teachers and without
attention, it is made in between: two threads of Python lose more by taking turns (a quarter of a plain epoch of FM). Holds
`most` batches beside what is kept (kept.py): at T = 512 about 1 MB each, over all items 4 bytes a history and item.
Legend: K teachers, T slots, C columns.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from cache.dataset import Dataset
from cache.plan import Batch
from encoder.packed import Packed
from student.ahead import ahead
from student.batches import UNPLANNED, Batches, FreshBatches
from student.heard import Scores
from student.kept import Kept
from student.prefixes import own_items, shared
from student.ready import Lists, Prepared
from student.targets import JoinSettings, target_of

__all__ = ["prepared"]


def prepared(
    dataset: Dataset,
    plan: Batches,
    order: Sequence[int] | NDArray[np.int64],
    readers: Sequence[Scores],
    settings: JoinSettings | None,
    *,
    device: torch.device | str = "cpu",
    most: int = 2,
    tiled: bool = True,
    own: bool = False,
    lists: Callable[[Batch], Lists] | None = None,
    kept: Kept | None = None,
) -> Generator[Prepared, None, None]:
    """The plan's batches in `order`, made ready ahead, at most `most` (at least 1) at a time, or when they are asked for.

    Args:
        plan: the plan, or fresh batches; those by user are laid out for `causal_states`.
        tiled: False for a student without attention: `Packed.of` has less to do.
        own: tell which columns are a user's own items, in batches by user.
        lists: makes the teachers' rankings of a batch, where they are joined by rank.
        kept: batches of former epochs over the same plan, readers, settings and `tiled`.
    """
    by_user = isinstance(plan, FreshBatches) and plan.by_user
    planned = not isinstance(plan, FreshBatches)
    here = torch.device(device).type == "cpu"
    kept = Kept(0) if kept is None else kept

    def made(index: int) -> Prepared:
        """Batch `index` without what changes from epoch to epoch."""
        number = index if planned else UNPLANNED
        found = kept.get(number)
        if found is None:
            batch = plan[index]
            own_TC = torch.from_numpy(own_items(dataset, batch)) if own and by_user else None
            target = target_of(readers, batch, settings, device) if settings else None
            alone = _alone(dataset, batch, tiled=tiled, by_user=by_user)
            found = replace(alone, target=target, own_TC=own_TC)
            kept.put(number, found)
        return found

    def make(asked: int) -> Prepared:
        index = int(asked)
        found = made(index)
        if lists is not None:
            found = replace(found, lists=lists(plan[index]))
        return found if here else found.to(device)

    if here and not (tiled or readers or lists or by_user):
        return (make(index) for index in order)
    return ahead(make, order, most)


def _alone(dataset: Dataset, batch: Batch, *, tiled: bool, by_user: bool) -> Prepared:
    """The student's own side of a batch."""
    items_C, columns_T = _index(batch.items), _index(batch.columns)
    if by_user:
        packed = shared(dataset, batch)
    else:
        histories = dataset.histories(batch.users, batch.ends)
        packed = Packed.of(*histories, users=batch.users, tiled=tiled)
    return Prepared(
        slots=len(batch.instances),
        packed=packed,
        items_C=items_C,
        columns_T=columns_T,
        rows_T=items_C[columns_T],
        target=None,
    )


def _index(values: NDArray[np.int32]) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int64))
