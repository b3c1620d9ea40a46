"""Histories of many lengths laid end to end: no padding is stored, so none is computed.

Legend: N tokens in all, B histories. Lengths stay on the CPU, because shapes are decided there; items and
positions travel to the device. Refuses empty histories.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Group", "Packed"]

#: lengths up to which attention runs on groups of one exact length; above, neighbours share a group
EXACT = 8
_STRETCH = 1.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Histories of like length, as one rectangle of tokens.

    Under a causal mask a real token never looks to its right, so the tokens that fill up a row need no
    mask of their own: their outputs are simply not read.
    """

    histories: Tensor  #: [G] which histories
    tokens: Tensor  #: [G, longest] where their tokens stand; short rows repeat their last token
    kept: Tensor | None  #: [kept tokens] places in the flattened rectangle, None if all are real
    last: Tensor  #: [G] index of each row's last token within the row
    lengths: tuple[int, int]  #: shortest and longest


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """B histories of N tokens in all. Make one with :meth:`of`."""

    items: Tensor  #: [N] item rows, int64
    positions: Tensor  #: [N] 0, 1, ... within each history, int64
    last: Tensor  #: [B] place of each history's last token, int64
    lengths: NDArray[np.int64]  #: [B], on the CPU
    groups: tuple[Group, ...]  #: a partition of the histories by length

    @classmethod
    def of(
        cls,
        flat: NDArray[np.integer],
        lengths: NDArray[np.integer],
        device: torch.device | str = "cpu",
    ) -> Packed:
        """Lay out histories.

        Args:
            flat: [N] items, history after history.
            lengths: [B], each at least 1, summing to N.

        Raises:
            ValueError: an empty history, or lengths that do not sum to N.
        """
        sizes = lengths.astype(np.int64)
        if len(sizes) and (sizes.min() < 1 or sizes.sum() != len(flat)):
            raise ValueError(
                f"lengths of at least 1 that sum to {len(flat)} expected, "
                f"found a shortest of {sizes.min()} and a sum of {sizes.sum()}"
            )
        ends = np.cumsum(sizes)
        starts = ends - sizes
        positions = np.arange(len(flat)) - np.repeat(starts, sizes)
        return cls(
            items=_to(flat, device),
            positions=_to(positions, device),
            last=_to(ends - 1, device),
            lengths=sizes,
            groups=tuple(_groups(starts, sizes, device)),
        )


def _groups(
    starts: NDArray[np.int64], sizes: NDArray[np.int64], device: torch.device | str
) -> list[Group]:
    order = np.argsort(sizes, kind="stable")
    ordered = sizes[order]
    groups = []
    begin = 0
    while begin < len(order):
        shortest = int(ordered[begin])
        longest = shortest if shortest <= EXACT else int(shortest * _STRETCH)
        end = int(np.searchsorted(ordered, longest, side="right"))
        members, lengths = order[begin:end], ordered[begin:end]
        width = int(lengths[-1])
        within = np.arange(width)
        tokens = starts[members, None] + np.minimum(within, lengths[:, None] - 1)
        real = within < lengths[:, None]
        groups.append(
            Group(
                histories=_to(members, device),
                tokens=_to(tokens, device),
                kept=None if shortest == width else _to(np.flatnonzero(real), device),
                last=_to(lengths - 1, device),
                lengths=(shortest, width),
            )
        )
        begin = end
    return groups


def _to(values: NDArray[np.integer], device: torch.device | str) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(values, np.int64))
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor
