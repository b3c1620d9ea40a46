"""Histories of many lengths laid end to end: no padding is stored, so none is computed.

Linear layers, norms and feed-forwards see the N real tokens. For attention, histories are set side by side into tiles
of a few fixed widths (sixteen histories of one item fill a tile of 16), with a mask that keeps them apart: two or three
attention calls serve all lengths, and their rectangles are small. Refuses empty histories.
Legend: N tokens in all, B histories, W width of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Packed", "Tiles", "sent"]

_WIDTHS = (16, 32)  # longer histories: one to a tile, as wide as the longest


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Histories of up to W tokens, side by side in rows of W."""

    width: int  #: W
    tokens: Tensor  #: [tiles * W] the token that stands there; spare places repeat the first
    places: Tensor  #: [tokens of these histories] where each stands in the flattened tiles
    mask: Tensor  #: [tiles, 1, W, W] True where a place may look: same history, if causal not later


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """B histories of N tokens in all. Make one with :meth:`of`."""

    items: Tensor  #: [N] item rows, int64
    positions: Tensor  #: [N] 0, 1, ... within each history, int64
    last: Tensor  #: [B] place of each history's last token, int64; or [T] of the tokens that are asked for
    tiles: tuple[Tiles, ...]
    untiled: Tensor  #: [N] where each token stands once the tiles' real tokens are laid end to end
    users: Tensor | None = None  #: as `last`: whose histories they are, where that is known

    def padded(self) -> tuple[Tensor, Tensor]:
        """The same histories as rectangles, for models that want such: (items, lengths).

        Items are [B, L] item rows plus one, each history at the left, zeros behind it; lengths are [B].
        """
        lengths_B = self.last - torch.cat([self.last.new_tensor([-1]), self.last[:-1]])
        longest = int(lengths_B.max()) if len(lengths_B) else 0
        items_BL = self.items.new_zeros(len(lengths_B), longest)
        rows = torch.repeat_interleave(
            torch.arange(len(lengths_B), device=self.last.device), lengths_B
        )
        items_BL[rows, self.positions] = self.items + 1
        return items_BL, lengths_B

    @classmethod
    def of(
        cls,
        flat: NDArray[np.integer[Any]],
        lengths: NDArray[np.integer[Any]],
        device: torch.device | str = "cpu",
        *,
        users: NDArray[np.integer[Any]] | None = None,
        asked: NDArray[np.integer[Any]] | None = None,
        causal: bool = True,
        tiled: bool = True,
    ) -> Packed:
        """Lay out histories.

        Args:
            flat: [N] items, history after history.
            lengths: [B], each at least 1, summing to N.
            users: [B] rows of the users whose histories they are, or [T] where tokens are asked for.
            asked: [T] tokens after which a state is asked for, for students whose state after an item hangs on none
                behind it; by default each history's last.
            causal: whether attention sees no later item than the place it stands at.
            tiled: False leaves out what attention alone needs, `tiles` and `untiled`: half of the work.

        Raises:
            ValueError: an empty history, or lengths that do not sum to N.
        """
        sizes = lengths.astype(np.int64)
        shortest = int(sizes.min(initial=len(flat) + 1))
        if shortest < 1 or sizes.sum() != len(flat):
            raise ValueError(
                f"lengths of at least 1 that sum to {len(flat)} expected, "
                f"found a shortest of {shortest} and a sum of {sizes.sum()}"
            )
        ends = np.cumsum(sizes)
        starts = ends - sizes
        positions = np.arange(len(flat)) - np.repeat(starts, sizes)
        tiles, order = [], [np.empty(0, np.int64)]
        shorter = 0
        for width in (*_WIDTHS, int(sizes.max(initial=0))) if tiled else ():
            members = np.flatnonzero((sizes > shorter) & (sizes <= width))
            if len(members):
                tokens, places, mask = _tile(starts[members], sizes[members], width, causal)
                tiles.append(
                    Tiles(
                        width=width,
                        tokens=_to(tokens, device),
                        places=_to(places, device),
                        mask=_to(mask, device),
                    )
                )
                order.append(tokens[places])
            shorter = max(shorter, width)
        untiled = np.empty(len(flat) if tiled else 0, np.int64)
        untiled[np.concatenate(order)] = np.arange(len(untiled))
        return cls(
            items=_to(flat.astype(np.int64), device),
            positions=_to(positions, device),
            last=_to(ends - 1 if asked is None else asked.astype(np.int64), device),
            tiles=tuple(tiles),
            untiled=_to(untiled, device),
            users=None if users is None else _to(users.astype(np.int64), device),
        )


def _tile(
    starts: NDArray[np.int64], sizes: NDArray[np.int64], width: int, causal: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """(tokens, places, mask) of :class:`Tiles` for histories of at most `width` tokens.

    Histories of which the same number fits into a tile share tiles, at equal distances.
    """
    fits = width // sizes
    order = np.argsort(-fits, kind="stable")
    starts, sizes, fits = starts[order], sizes[order], fits[order]
    kinds, first, counts = np.unique(fits, return_index=True, return_counts=True)
    kinds, first, counts = kinds[::-1], first[::-1], counts[::-1]  # as they stand in `fits`
    rows_of_kind = -(-counts // kinds)
    base = np.repeat(np.cumsum(rows_of_kind) - rows_of_kind, counts)
    within = np.arange(len(sizes)) - np.repeat(first, counts)
    corner = (base + within // fits) * width + within % fits * (width // fits)

    offsets = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    places = np.repeat(corner, sizes) + offsets
    rows = int(rows_of_kind.sum())
    tokens = np.full(rows * width, starts[0])
    tokens[places] = np.repeat(starts, sizes) + offsets
    owner = np.full(rows * width, -1)
    owner[places] = np.repeat(np.arange(len(sizes)), sizes)
    owners = owner.reshape(rows, width)
    mask = owners[:, :, None] == owners[:, None, :]
    if causal:
        mask &= np.tri(width, dtype=bool)
    return tokens, places, mask[:, None]


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the processor's on `device`; to a GPU the copy runs beside whatever runs there."""
    if torch.device(device).type == "cuda":  # elsewhere there is no pinned memory
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _to(values: NDArray[Any], device: torch.device | str) -> Tensor:
    return sent(torch.from_numpy(np.ascontiguousarray(values)), device)
