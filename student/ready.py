"""A batch made ready: everything a student's step needs of it, in tensors.

Nothing of it depends on the student's weights, so it may be made ahead (prepared.py) and kept (kept.py). Refuses nothing.
About 1 MB at T = 512 with teachers. Legend: K teachers, T slots, C columns, L items of a list.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoder.packed import Packed, sent
from student.targets import Target

__all__ = ["Lists", "Prepared"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """Rankings of one batch's items, where teachers are joined by rank; see student/hetcomp.py."""

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

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return _bytes(self)

    def to(self, device: torch.device | str) -> Prepared:
        """The same batch with its tensors on `device`."""
        moved: Prepared = _on(self, device)
        return moved


def _on(value: Any, device: torch.device | str) -> Any:
    """Tensors sent, wherever they stand in dataclasses and tuples; whatever else, as it is."""
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


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, tuple):
        return sum(_bytes(one) for one in value)
    if is_dataclass(value):
        return sum(_bytes(getattr(value, f.name)) for f in fields(value))
    return 0
