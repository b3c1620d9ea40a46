"""Batches made ready: histories packed, teachers' scores read, checked and joined.

What the student's step needs of a batch does not depend on the student, so a thread makes it while the step before runs;
order and numbers do not depend on its timing (ahead.py). Where that is 0.2 ms of small calls, without teachers and without
attention, it is made in between: two threads of Python lose more by taking turns (a quarter of a plain epoch of FM). Holds
`most` batches: at T = 512 about 1 MB each, over all items 4 bytes a history and item. Legend: K teachers, T slots, C columns.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.dataset import Dataset
from cache.plan import Batch
from encoder.packed import Packed, sent
from student.ahead import ahead
from student.batches import Batches, FreshBatches
from student.heard import Scores
from student.joined import Joined
from student.prefixes import own_items, shared
from student.targets import JoinSettings, Target, target_of

__all__ = ["Lists", "Prepared", "prepared"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """Rankings of one batch's items, where teachers are joined by rank; see student/hetcomp.py. L items of a list."""

    instances: NDArray[np.int32]  #: [T] whose they are
    order_TL: Tensor  #: the teachers' together: columns, best first
    final_T: Tensor  #: whether every teacher is at its last state
    now_KTL: Tensor  #: each teacher's own, at its present state
    next_KTL: Tensor  #: and at its next one
    all_items: bool = False  #: columns are rows of all items, not of the batch's


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Everything a step needs."""

    slots: int  #: T
    packed: Packed
    items_C: Tensor  #: the batch's columns as item rows
    columns_T: Tensor  #: column of each slot's target
    rows_T: Tensor  #: item row of each slot's target
    target: Target | None  #: None without teachers, and where they are joined by rank
    lists: Lists | None = None  #: where they are
    own_TC: Tensor | None = None  #: columns that are other items of the slot's own user

    @property
    def all_items(self) -> bool:
        """Whether the teachers are heard over all items."""
        return any(one.all_items for one in (self.target, self.lists) if one)

    def to(self, device: torch.device | str) -> Prepared:
        """The same batch with its tensors on `device`."""
        moved: Prepared = _on(self, device)
        return moved


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
    kept: Joined | None = None,
) -> Generator[Prepared, None, None]:
    """The plan's batches in `order`, made ready ahead, at most `most` (at least 1) at a time, or when they are asked for.

    Args:
        plan: the plan, or fresh batches; those by user are laid out for `causal_states`.
        tiled: False for a student without attention: `Packed.of` has less to do.
        own: tell which columns are a user's own items, in batches by user.
        lists: makes the teachers' rankings of a batch, where they are joined by rank.
        kept: targets of former epochs over the same plan, readers and settings.
    """
    by_user = isinstance(plan, FreshBatches) and plan.by_user

    def make(index: int) -> Prepared:
        batch = plan[int(index)]
        made = _prepare(dataset, batch, device, tiled=tiled, by_user=by_user)
        own_TC = (
            sent(torch.from_numpy(own_items(dataset, batch)), device) if own and by_user else None
        )
        return replace(
            made,
            target=_target(batch, readers, settings, device, kept),
            own_TC=own_TC,
            lists=None if lists is None else _on(lists(batch), device),
        )

    if not (tiled or readers or lists or by_user) and torch.device(device).type == "cpu":
        return (make(index) for index in order)
    return ahead(make, order, most)


def _target(
    batch: Batch,
    readers: Sequence[Scores],
    settings: JoinSettings | None,
    device: torch.device | str,
    kept: Joined | None,
) -> Target | None:
    """What the teachers say of the batch, on `device`."""
    if settings is None:
        return None
    target = kept.get(batch.index) if kept is not None else None
    if target is None:
        target = target_of(readers, batch, settings, device)
        if kept is not None:
            kept.put(batch.index, target)
    return replace(target, q_TC=_moved(target.q_TC, device))


def _prepare(
    dataset: Dataset, batch: Batch, device: torch.device | str, *, tiled: bool, by_user: bool
) -> Prepared:
    """The student's own side of a batch."""
    items_C, columns_T = _index(batch.items), _index(batch.columns)
    if by_user:
        packed = shared(dataset, batch, device)
    else:
        histories = dataset.histories(batch.users, batch.ends)
        packed = Packed.of(*histories, device, users=batch.users, tiled=tiled)
    return Prepared(
        slots=len(batch.instances),
        packed=packed,
        items_C=sent(items_C, device),
        columns_T=sent(columns_T, device),
        rows_T=sent(items_C[columns_T], device),
        target=None,
    )


def _on(value: Any, device: torch.device | str) -> Any:
    """Tensors sent, wherever they stand in dataclasses and tuples."""
    if isinstance(value, Tensor):
        return _moved(value, device)
    if isinstance(value, tuple):
        return tuple(_on(one, device) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{f.name: _on(getattr(value, f.name), device) for f in fields(value)}
        )
    return value


def _moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Sent, unless it was made there."""
    wanted, there = torch.device(device), tensor.device
    if there.type == wanted.type and wanted.index in (None, there.index):
        return tensor
    return sent(tensor, device) if there.type == "cpu" else tensor.to(device)


def _index(values: NDArray[np.int32]) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))
