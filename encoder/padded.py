"""Padded histories in the packed layout, with tensor operations alone: what a tracer can follow at any batch and length.

The same models that train on packed histories are thereby exported without a second forward pass of their own. A history
stands at the beginning of its row; what stands behind it is computed and looked at by nobody.
Legend: B histories, L places of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from encoder.packed import Packed, Tiles

__all__ = ["PADDING", "laid_out", "lengths_of"]

PADDING = -1  #: where a row holds no item


def lengths_of(items_BL: Tensor) -> Tensor:
    """[B] how many items each row holds before its padding."""
    return (items_BL != PADDING).sum(dim=1)


def laid_out(
    items_BL: Tensor, lengths_B: Tensor, *, users_B: Tensor | None = None, causal: bool = True
) -> Packed:
    """A row a tile, padding included.

    Args:
        items_BL: item rows; behind a history anything that can be looked up.
        lengths_B: items of each, at least 1.
        causal: whether attention sees no later item than the place it stands at.
    """
    batch, length = items_BL.shape
    places_L = torch.arange(length, device=items_BL.device)
    every = torch.arange(batch * length, device=items_BL.device)
    # nothing is expanded: a tracer would take that for a promise that B and L are not 1
    mask = (places_L < lengths_B[:, None])[:, None, None]
    if causal:
        mask = mask & (places_L[:, None] >= places_L)
    tiles = Tiles(width=length, tokens=every, places=every, mask=mask)
    return Packed(
        items=items_BL.reshape(-1),
        positions=(torch.zeros_like(items_BL) + places_L).reshape(-1),
        last=torch.arange(batch, device=items_BL.device) * length + lengths_B - 1,
        tiles=(tiles,),
        untiled=every,
        users=users_B,
    )
