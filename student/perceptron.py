"""DeepFM's perceptron over every user with every item while it learns, with the way back written out.

The first layer, which is linear in the fields, comes ready: its part of each user and its part of each item, summed for a
pair. A tile of pairs at a time passes all layers, and all of them back: `tile` pairs, whose numbers a core's cache holds.
What the way back needs of a pair, depth x W numbers, is held for the first tiles, up to `held` bytes, and computed again for
the others, with the same units dropped. Dropout is as in encoder/dropout.py, its scale put into the weights that follow.
Refuses nothing: the shapes are the caller's. Legend: B users, K items, W width, N pairs of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from encoder.dropout import Rate

__all__ = ["Layers", "Perceptron", "rectified"]

#: (weight, bias) each, the one that comes to a number last
Layers = Sequence[tuple[Tensor, Tensor]]
_Where = tuple[slice, slice]


@dataclass(frozen=True, slots=True, kw_only=True)
class Perceptron:
    """How pairs pass, and what is held of them."""

    dropout: float  #: before each of these layers but the last, 0 where nothing is to be dropped
    tile: int  #: pairs
    held: int  #: bytes

    def scores(self, users_BW: Tensor, items_KW: Tensor, layers: Layers) -> Tensor:
        """[B, K] of every user with every item, by the layers after the first."""
        flat = [one for layer in layers for one in layer]
        dtype = flat[0].dtype  # autocast may have rounded what comes in
        with torch.autocast(items_KW.device.type, enabled=False):
            found: Tensor = _Scores.apply(self, users_BW.to(dtype), items_KW.to(dtype), *flat)  # type: ignore[no-untyped-call]
        return found


@dataclass(frozen=True, slots=True)
class _Pass:
    """One pass: what both ways need. The seed is drawn from torch's generator, a tile's units from one of its own."""

    how: Perceptron
    users_BW: Tensor
    items_KW: Tensor
    flat: Sequence[Tensor]
    seed: int

    @property
    def rate(self) -> Rate:
        """What is dropped before each hidden layer."""
        return Rate(self.how.dropout)

    @property
    def weights(self) -> list[Tensor]:
        """[W, W] of the hidden layers, times what makes up for the units dropped before them."""
        return [weight * self.rate.scale for weight in self.flat[:-2:2]]

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

    def states(self, number: int, where: _Where, weights: Sequence[Tensor]) -> list[Tensor]:
        """[N, W] what each layer is given and the last one leaves: rectified, the dropped units nothing."""
        pairs_bkW = self.users_BW[where[0]][:, None] + self.items_KW[where[1]]
        states = [pairs_bkW.view(-1, pairs_bkW.shape[-1]).relu_()]
        noise = torch.Generator(pairs_bkW.device) if self.how.dropout else None
        if noise:
            noise.manual_seed((self.seed + number) % (1 << 32))
        for weight, bias in zip(weights, self.flat[1:-2:2], strict=True):
            if noise and self.rate.zeroed:
                states[-1].mul_(self.rate.kept(states[-1], noise))
            states.append(torch.addmm(bias, states[-1], weight.T).relu_())
        return states


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, how: Perceptron, users_BW: Tensor, items_KW: Tensor, *flat: Tensor
    ) -> Tensor:
        seed = int(torch.randint(1 << 32, ())) if how.dropout else 0
        one = _Pass(how, users_BW, items_KW, flat, seed)
        scores_BK = items_KW.new_empty(len(users_BW), len(items_KW))
        weights, last_W = one.weights, flat[-2][0]
        held: list[list[Tensor]] = []
        room = how.held
        for number, where in one.tiles():
            states = one.states(number, where, weights)
            scores_BK[where] = torch.mv(states[-1], last_W).view(scores_BK[where].shape)
            room -= sum(state.nbytes for state in states)
            if room >= 0:
                held.append(states)
        ctx.save_for_backward(users_BW, items_KW, *flat)
        ctx.how, ctx.seed, ctx.weights, ctx.held = how, seed, weights, held
        return scores_BK.add_(flat[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        users_BW, items_KW, *flat = ctx.saved_tensors
        (given_BK,) = given
        one = _Pass(ctx.how, users_BW, items_KW, flat, ctx.seed)
        weights, last_W = ctx.weights, flat[-2][0]
        users_G, items_G = torch.zeros_like(users_BW), torch.zeros_like(items_KW)
        grads = [torch.zeros_like(each) for each in flat]
        ones = items_KW.new_ones(min(ctx.how.tile, given_BK.numel()))
        for number, where in one.tiles():
            known = number < len(ctx.held)
            states = ctx.held[number] if known else one.states(number, where, weights)
            given_N = given_BK[where].reshape(-1)
            grads[-2][0].addmv_(states[-1].T, given_N)
            slopes = torch.outer(given_N, last_W)
            for place in range(len(weights) - 1, -1, -1):
                slopes = rectified(slopes, states[place + 1])
                grads[2 * place].addmm_(slopes.T, states[place])
                grads[2 * place + 1].addmv_(slopes.T, ones[: len(slopes)])
                slopes = slopes @ weights[place]
            pairs_bkW = rectified(slopes, states[0]).view(*given_BK[where].shape, -1)
            users_G[where[0]] += pairs_bkW.sum(1)
            items_G[where[1]] += pairs_bkW.sum(0)
        grads[-1] += given_BK.sum()
        for weight in grads[:-2:2]:
            weight.mul_(one.rate.scale)
        return None, users_G, items_G, *grads


def rectified(slopes: Tensor, state: Tensor) -> Tensor:
    """The slopes before the rectifier and the dropout, written over: nothing where the state is nothing."""
    found: Tensor = torch.ops.aten.threshold_backward.grad_input(
        slopes, state, 0, grad_input=slopes
    )
    return found
