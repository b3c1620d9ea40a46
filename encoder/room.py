"""Room for scores of many items, [n, V], whose rows begin where the processor likes to write.

A product of narrow vectors with V items is mostly writing: where V is no multiple of a cache line, rows begin anywhere in one
and the product takes twice to three times as long (12,101 items, width 64, AVX2: 35 ms against 13), to the same bits. So
room has up to 15 columns more than there are items; who reads along a row leaves them out.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["room_for"]

_LINE = 16  #: float32 numbers of a cache line


def room_for(
    n: int,
    columns: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """[n, columns or a few more], not yet written; take `[:, :columns]` of it for the scores."""
    return torch.empty(n, -(-columns // _LINE) * _LINE, dtype=dtype, device=device)
