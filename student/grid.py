"""DeepFM's perceptron over every user with every item while it learns, with the way back written out.

The first layer, which is linear in the fields, comes ready: its part of each user and its part of each item, summed for a
pair. A tile of pairs at a time passes all layers, and all of them back: `tile` pairs, whose numbers a core's cache holds.
What the way back needs of a pair, depth x W numbers, is held for the first tiles, up to `held` bytes, and computed again for
the others, with the same units dropped. Refuses nothing: the shapes are the caller's.
Legend: B users, K items, W width, N pairs of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from student.perceptron import Layers, rectified

__all__ = ["Grid"]

_Where = tuple[slice, slice]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """How pairs pass, and what is held of them."""

    dropout: float  #: before each of these layers but the last, 0 where nothing is to be dropped
    tile: int  #: pairs
    held: int  #: bytes

    def scores(self, users_BW: Tensor, items_KW: Tensor, flat: Sequence[Tensor]) -> Tensor:
        """[B, K] of every user with every item, by the layers after the first, as `Layers` takes them."""
        dtype = flat[0].dtype  # autocast may have rounded what comes in
        with torch.autocast(items_KW.device.type, enabled=False):
            found: Tensor = _Scores.apply(self, users_BW.to(dtype), items_KW.to(dtype), *flat)  # type: ignore[no-untyped-call]
        return found


@dataclass(frozen=True, slots=True)
class _Pass:
    """One pass: what both ways need. The seed is drawn from torch's generator, a tile's units from one of its own."""

    how: Grid
    layers: Layers
    users_BW: Tensor
    items_KW: Tensor
    seed: int

    def tiles(self) -> Iterator[tuple[int, _Where]]:
        """(number, which users and which of their items)."""
        users, each = len(self.users_BW), len(self.items_KW)
        rows = max(1, self.how.tile // each)
        places = [
            (slice(start, start + rows), slice(first, first + self.how.tile))
            for start in range(0, users, rows)
            for first in range(0, each, self.how.tile)
        ]
        return enumerate(places)

    def states(self, number: int, where: _Where) -> list[Tensor]:
        """[N, W] what each layer is given and the last one leaves: rectified, the dropped units nothing."""
        pairs_bkW = self.users_BW[where[0]][:, None] + self.items_KW[where[1]]
        first_NW = pairs_bkW.view(-1, pairs_bkW.shape[-1]).relu_()
        if not self.layers.rate.zeroed:
            return self.layers.forth(first_NW)
        noise = torch.Generator(first_NW.device)
        noise.manual_seed((self.seed + number) % (1 << 32))
        first_NW.mul_(self.layers.rate.kept(first_NW, noise))
        return self.layers.forth(first_NW, noise)


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, how: Grid, users_BW: Tensor, items_KW: Tensor, *flat: Tensor) -> Tensor:
        seed = int(torch.randint(1 << 32, ())) if how.dropout else 0
        one = _Pass(how, Layers(flat, how.dropout), users_BW, items_KW, seed)
        scores_BK = items_KW.new_empty(len(users_BW), len(items_KW))
        held: list[list[Tensor]] = []
        room = how.held
        for number, where in one.tiles():
            states = one.states(number, where)
            scores_BK[where] = one.layers.scores(states).view(scores_BK[where].shape)
            room -= sum(state.nbytes for state in states)
            if room >= 0:
                held.append(states)
        ctx.save_for_backward(users_BW, items_KW, *flat)
        ctx.one, ctx.held = one, held
        return scores_BK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        users_BW, items_KW, *flat = ctx.saved_tensors  # unchanged since: torch looks
        (given_BK,) = given
        one: _Pass = ctx.one
        users_G, items_G = torch.zeros_like(users_BW), torch.zeros_like(items_KW)
        grads = [torch.zeros_like(each) for each in flat]
        for number, where in one.tiles():
            states = ctx.held[number] if number < len(ctx.held) else one.states(number, where)
            slopes = one.layers.back(states, given_BK[where].reshape(-1), grads)
            pairs_bkW = rectified(slopes, states[0]).view(*given_BK[where].shape, -1)
            users_G[where[0]] += pairs_bkW.sum(1)
            items_G[where[1]] += pairs_bkW.sum(0)
        return None, users_G, items_G, *grads
