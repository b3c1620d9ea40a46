"""Room for scores of many items, [n, V], whose rows begin where the processor likes to write.

A product of narrow vectors with V items is mostly writing: where V is no multiple of a cache line, rows begin anywhere in one
and the product takes twice to three times as long (12,101 items, width 64, AVX2: 35 ms against 13), to the same bits. So
room has up to 15 columns more than there are items; who reads along a row leaves them out.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

__all__ = ["Scratch", "aligned", "room_for"]

_LINE = 16  #: float32 numbers of a cache line


def room_for(
    n: int,
    columns: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """[n, columns or a few more], not yet written; take `[:, :columns]` of it for the scores."""
    return torch.empty(n, aligned(columns), dtype=dtype, device=device)


def aligned(columns: int) -> int:
    """So many columns, or a few more."""
    return -(-columns // _LINE) * _LINE


class Scratch(threading.local):
    """Room that the next call writes over; each thread has its own.

    Memory of tens of megabytes that is asked for afresh costs the kernel about as much as the softmax over it. So on the
    processor the largest room so far is kept, for each type; other devices have allocators that keep such blocks at hand.
    """

    def __init__(self) -> None:
        self._held: dict[torch.dtype, Tensor] = {}

    def room(self, n: int, columns: int, *, like: Tensor) -> Tensor:
        """[n, columns] of the type and device of `like`, with whatever the last call left in it."""
        if like.device.type != "cpu":
            return like.new_empty(n, columns)
        held = self._held.get(like.dtype)
        if held is None or len(held) < n * columns:
            # a little more, for batches that differ by a few rows; what is never written takes no memory
            with torch.inference_mode(False):  # what is made within can be written outside too
                held = torch.empty(n * columns * 9 // 8, dtype=like.dtype)
            self._held[like.dtype] = held
        return held[: n * columns].view(n, columns)
