"""Sequences of many lengths laid end to end, and who may look at whom under a sliding window with one global token.

No padding is stored, so linear layers, norms and feed-forwards see real tokens alone. For local attention the N
tokens are cut into blocks of Q queries, wherever sequences begin or end, and each block is led by one more place, for
the first token of the sequence that was under way before its window (at most one can be: any other first token that
matters stands among the keys). A block's keys are those places and its own and both neighbours' tokens, which lie side
by side in memory, so that nothing is copied for each block. Refuses empty sequences. Legend: N tokens in all, B
sequences, Q queries a block, C = 3 (Q + 1) key columns a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoder.packed import sent

__all__ = ["Grid", "Ragged"]

_SHORTEST_BLOCK = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Some sequences side by side, the longest at most twice as long as the shortest."""

    members: Tensor  #: [b] which, int64
    tokens: Tensor  #: [b, L] their tokens; spare places repeat the last
    inside: Tensor  #: [b, 1, L] False in spare places


@dataclass(frozen=True, slots=True, kw_only=True)
class Ragged:
    """Where everything stands. Make one with :meth:`of`."""

    starts: Tensor  #: [B] first token of each sequence, int64
    places: Tensor  #: [blocks + 2, Q + 1] token that stands in each place, a block without queries at either end, int64
    mask: Tensor  #: [blocks, 1, Q, C] True where a query may look
    runs: tuple[tuple[int, int], ...]  #: (sequences, tokens of each) of neighbours of equal length
    grids: tuple[Grid, ...]  #: all sequences in padded rectangles; empty: use `runs`

    @classmethod
    def of(
        cls,
        lengths: NDArray[np.integer[Any]],
        window: int,
        *,
        device: torch.device | str = "cpu",
        padded: bool | None = None,
    ) -> Ragged:
        """Lay out sequences.

        Args:
            lengths: [B] tokens of each, at least 1; neighbours of equal length are the cheapest on a processor.
            window: even; half of it on either side of a token.
            padded: how sequences are set side by side for their first tokens, which look at all tokens: in a few padded
                rectangles (the default on a GPU), or without a copy as neighbours of equal length (on a processor).

        Raises:
            ValueError: no sequence, an empty one, or an odd window.
        """
        sizes = np.asarray(lengths, np.int64)
        if not len(sizes) or sizes.min() < 1 or window < 2 or window % 2:
            raise ValueError(
                f"sequences of at least one token and an even window expected, found {len(sizes)} sequences, "
                f"the shortest of {sizes.min(initial=0)} tokens, and a window of {window}"
            )
        if padded is None:
            padded = torch.device(device).type != "cpu"
        reach = window // 2
        block = max(reach, _SHORTEST_BLOCK)
        ends = np.cumsum(sizes)
        begins = ends - sizes
        starts = _sent(begins, device)
        first_N = _sent(np.repeat(begins, sizes), device)
        places, mask = _blocks(first_N, block, reach)
        changes = np.flatnonzero(np.diff(sizes, prepend=0))
        counts = np.diff(changes, append=len(sizes))
        return cls(
            starts=starts,
            places=places,
            mask=mask,
            runs=tuple(zip(counts.tolist(), sizes[changes].tolist(), strict=True)),
            grids=_grids(begins, sizes, device) if padded else (),
        )


def _blocks(first_N: Tensor, block: int, reach: int) -> tuple[Tensor, Tensor]:
    """(places, mask) of :class:`Ragged`; `first_N` tells each token where its sequence begins, `block` is at least `reach`.

    Sequences are told apart by where they begin. Queries beyond the last token repeat it.
    """
    device, tokens = first_N.device, len(first_N)
    corners = torch.arange(-block, tokens + block, block, device=device)[:, None]
    inside = (corners + torch.arange(block, device=device)).clamp(0, tokens - 1)
    places = torch.cat([first_N[inside[:, :1]], inside], dim=1)
    corners, queries = corners[1:-1], inside[1:-1]
    window = corners + torch.arange(-block, 2 * block, device=device)
    own = first_N[queries]
    # out of range no sequence begins: nobody looks there
    theirs = torch.where(
        (window >= 0) & (window < tokens), first_N[window.clamp(0, tokens - 1)], -1
    )
    distance = (window[:, None] - queries[:, :, None]).abs()
    near = (distance <= reach) | (window[:, None] == own[:, :, None])
    local = near & (theirs[:, None] == own[:, :, None])
    far = own < corners - block
    mask = torch.zeros(*queries.shape, 3, block + 1, dtype=torch.bool, device=device)
    mask[..., 1:] = local.view(*queries.shape, 3, block)
    mask[:, :, 1, 0] = far  # the place that leads the block itself
    return places, mask.flatten(2)[:, None]


def _grids(
    begins: NDArray[np.int64], sizes: NDArray[np.int64], device: torch.device | str
) -> tuple[Grid, ...]:
    octaves = np.frexp(sizes - 0.5)[1]
    grids = []
    for octave in np.unique(octaves):
        members = np.flatnonzero(octaves == octave)
        within = np.arange(int(sizes[members].max()))
        inside = within < sizes[members, None]
        tokens = begins[members, None] + np.minimum(within, sizes[members, None] - 1)
        grids.append(
            Grid(
                members=_sent(members, device),
                tokens=_sent(tokens, device),
                inside=_sent(inside[:, None], device),
            )
        )
    return tuple(grids)


def _sent(values: NDArray[Any], device: torch.device | str) -> Tensor:
    return sent(torch.from_numpy(np.ascontiguousarray(values)), device)
