"""DeepFM's perceptron over pairs of a user and an item while it learns, with the way back written out.

The first layer is linear in the fields: its part of a user and its part of an item come ready and are summed for a pair. A
tile of pairs at a time passes all layers, and all of them back: `tile` pairs, whose numbers a core's cache holds. What the
way back needs of a pair, depth x W numbers, is held for the first tiles, up to `held` bytes, and computed again for the
others, with the same units dropped. Dropout is as in encoder/dropout.py, its scale put into the weights that follow.
Refuses nothing: the shapes are the caller's. Legend: B users, K items a user, W width, N pairs of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from encoder.dropout import Rate

__all__ = ["Perceptron"]

_Where = tuple[slice, slice]


@dataclass(frozen=True, slots=True, kw_only=True)
class Perceptron:
    """How pairs pass, and what is held of them."""

    dropout: (
        float  #: before each layer but the first and the last, 0 where nothing is to be dropped
    )
    tile: int  #: pairs
    held: int  #: bytes

    def scores(
        self, users_BW: Tensor, items: Tensor, layers: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """[B, K].

        Args:
            items: [K, W] that all users share, or each one's own [B, K, W].
            layers: (weight, bias) of each after the first, the one that comes to a number last.
        """
        flat = [one for layer in layers for one in layer]
        dtype = flat[0].dtype  # autocast may have rounded what the first layer made
        with torch.autocast(users_BW.device.type, enabled=False):
            found: Tensor = _Scores.apply(self, users_BW.to(dtype), items.to(dtype), *flat)  # type: ignore[no-untyped-call]
        return found


@dataclass(frozen=True, slots=True)
class _Pass:
    """One pass: what both ways need. The seed is drawn from torch's generator, a tile's units from one of its own."""

    how: Perceptron
    users_BW: Tensor
    items: Tensor
    flat: Sequence[Tensor]
    seed: int

    @property
    def weights(self) -> list[Tensor]:
        """[W, W] of the hidden layers, times what makes up for the units dropped before them."""
        return [weight * Rate(self.how.dropout).scale for weight in self.flat[:-2:2]]

    def tiles(self) -> Iterator[tuple[int, _Where]]:
        """(number, which users and which of their items)."""
        users, each = len(self.users_BW), self.items.shape[-2]
        rows = max(1, self.how.tile // each)
        places = [
            (slice(start, start + rows), slice(first, first + self.how.tile))
            for start in range(0, users, rows)
            for first in range(0, each, self.how.tile)
        ]
        return enumerate(places)

    def of(self, items: Tensor, where: _Where) -> Tensor:
        """The items of a tile, [k, W] or [b, k, W]."""
        users, some = where
        return items[some] if items.dim() == 2 else items[users, some]

    def states(self, number: int, where: _Where, weights: Sequence[Tensor]) -> list[Tensor]:
        """[N, W] what leaves each layer, rectified, the dropped units nothing."""
        users_bW, items = self.users_BW[where[0]], self.of(self.items, where)
        width = users_bW.shape[1]
        pairs_bkW = users_bW.new_empty(len(users_bW), items.shape[-2], width)
        torch.add(users_bW[:, None], items, out=pairs_bkW)
        states = [pairs_bkW.view(-1, width).relu_()]
        rate = Rate(self.how.dropout)
        noise = torch.Generator(users_bW.device) if rate.zeroed else None
        if noise:
            noise.manual_seed((self.seed + number) % (1 << 32))
        for weight, bias in zip(weights, self.flat[1:-2:2], strict=True):
            if noise:
                states[-1].mul_(rate.kept(states[-1], noise))
            states.append(torch.addmm(bias, states[-1], weight.T).relu_())
        return states


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, how: Perceptron, users_BW: Tensor, items: Tensor, *flat: Tensor
    ) -> Tensor:
        seed = int(torch.randint(1 << 32, ())) if how.dropout else 0
        one = _Pass(how, users_BW, items, flat, seed)
        scores_BK = users_BW.new_empty(len(users_BW), items.shape[-2])
        weights, last_W = one.weights, flat[-2][0]
        held: list[list[Tensor]] = []
        room = how.held
        for number, where in one.tiles():
            states = one.states(number, where, weights)
            scores_BK[where] = torch.mv(states[-1], last_W).view(scores_BK[where].shape)
            room -= sum(state.nbytes for state in states)
            if room >= 0:
                held.append(states)
        ctx.save_for_backward(users_BW, items, *flat)
        ctx.how, ctx.seed, ctx.held = how, seed, held
        return scores_BK.add_(flat[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        users_BW, items, *flat = ctx.saved_tensors
        (given_BK,) = given
        one = _Pass(ctx.how, users_BW, items, flat, ctx.seed)
        weights, last_W = one.weights, flat[-2][0]
        users_G, items_G = torch.zeros_like(users_BW), torch.zeros_like(items)
        grads = [torch.zeros_like(each) for each in flat]
        ones = users_BW.new_ones(min(ctx.how.tile, given_BK.numel()))
        for number, where in one.tiles():
            known = number < len(ctx.held)
            states = ctx.held[number] if known else one.states(number, where, weights)
            given_N = given_BK[where].reshape(-1)
            grads[-2][0].addmv_(states[-1].T, given_N)
            slopes = _rectified(torch.outer(given_N, last_W), states[-1])
            for place in range(len(weights) - 1, -1, -1):
                grads[2 * place].addmm_(slopes.T, states[place])
                grads[2 * place + 1].addmv_(slopes.T, ones[: len(slopes)])
                slopes = _rectified(slopes @ weights[place], states[place])
            pairs_bkW = slopes.view(*given_BK[where].shape, -1)
            users_G[where[0]] += pairs_bkW.sum(1)
            one.of(items_G, where).add_(pairs_bkW if items.dim() == 3 else pairs_bkW.sum(0))
        grads[-1] += given_BK.sum()
        for weight in grads[:-2:2]:
            weight.mul_(Rate(ctx.how.dropout).scale)
        return None, users_G, items_G, *grads


def _rectified(slopes: Tensor, state: Tensor) -> Tensor:
    """The slopes before the rectifier and the dropout, written over: nothing where the state is nothing."""
    found: Tensor = torch.ops.aten.threshold_backward.grad_input(
        slopes, state, 0, grad_input=slopes
    )
    return found
