"""DeepFM's perceptron over given pairs, each instance's target and its negative, with the way back written out.

Where users meet items in a grid, student/perceptron.py has less to multiply and more to arrange; a step without teachers is so
small that arranging is what it would consist of. At 512 instances and the default sizes this is 3.7 of its 5.9 ms, 2.6 of
them matrix products. Dropout is as in encoder/dropout.py, unit by unit of each pair, its scale put into the weights that
follow. Keeps F + depth x W numbers a pair for the way back. Refuses nothing: the shapes are the caller's.
Legend: T users, F fields' numbers of a pair, D width of a field and its weight, W width of a layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from encoder.dropout import Rate
from student.fields import ITEM_FIELDS, USER_FIELDS
from student.perceptron import Layers, rectified

__all__ = ["deep"]


def deep(
    users_T2D: Tensor, items_2T3D: Tensor, layers: Layers, *, dropout: float, tile: int
) -> Tensor:
    """[2, T] scores of each of T users with two items, from what `Fields.of_both` gives; weights of fields are left out.

    Args:
        layers: (weight, bias) each, the one that comes to a number last.
        dropout: before each but the last, 0 where nothing is to be dropped.
        tile: pairs that pass at once.
    """
    some = max(1, tile // 2)
    flat = [one for layer in layers for one in layer]
    items_2T3D = items_2T3D.view(2, len(users_T2D), *items_2T3D.shape[1:])
    parts = zip(torch.split(users_T2D, some), torch.split(items_2T3D, some, dim=1), strict=True)
    found = [_Deep.apply(users, items, dropout, *flat) for users, items in parts]  # type: ignore[no-untyped-call]
    scores: Tensor = found[0] if len(found) == 1 else torch.cat(found, dim=1)
    return scores


class _Deep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, users_T2D: Tensor, items_2T3D: Tensor, dropout: float, *flat: Tensor
    ) -> Tensor:
        slots, width = len(users_T2D), users_T2D.shape[-1] - 1
        pairs = items_2T3D.new_empty(2, slots, USER_FIELDS + ITEM_FIELDS, width)
        pairs[:, :, :USER_FIELDS] = users_T2D[..., :width]
        pairs[:, :, USER_FIELDS:] = items_2T3D[..., :width]
        rate, (last_1W, last_bias) = Rate(dropout), flat[-2:]
        states = [pairs.view(2 * slots, -1)]
        weights = [weight * rate.scale for weight in flat[:-2:2]]
        kept = None
        for weight, bias in zip(weights, flat[1:-2:2], strict=True):
            if rate.zeroed:
                mask = rate.kept(states[-1])
                kept = mask if kept is None else kept  # what a rectifier leaves tells of itself
                states[-1].mul_(mask)
            states.append(torch.addmm(bias, states[-1], weight.T).relu_())
        ctx.save_for_backward(kept, last_1W, *weights, *states)
        ctx.scale, ctx.layers = rate.scale, len(weights)
        return torch.addmv(last_bias, states[-1], last_1W[0]).view(2, slots)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        kept, last_1W, *rest = ctx.saved_tensors
        weights, states = rest[: ctx.layers], rest[ctx.layers :]
        given_N = given[0].reshape(-1)
        ones_N = torch.ones_like(given_N)
        grads = [given_N.sum()[None], torch.mv(states[-1].T, given_N)[None]]  # the last layer first
        slopes = torch.outer(given_N, last_1W[0])
        for place in range(ctx.layers - 1, -1, -1):
            slopes = rectified(slopes, states[place + 1])
            grads.append(torch.mv(slopes.T, ones_N))
            grads.append(torch.mm(slopes.T, states[place]).mul_(ctx.scale))
            slopes = slopes @ weights[place]
        if kept is not None:
            slopes.mul_(kept)
        slots = given[0].shape[1]
        pairs = slopes.view(2, slots, USER_FIELDS + ITEM_FIELDS, -1)
        users_G = pairs.new_zeros(slots, USER_FIELDS, pairs.shape[-1] + 1)
        items_G = pairs.new_zeros(2, slots, ITEM_FIELDS, pairs.shape[-1] + 1)
        torch.add(pairs[0, :, :USER_FIELDS], pairs[1, :, :USER_FIELDS], out=users_G[..., :-1])
        items_G[..., :-1] = pairs[:, :, USER_FIELDS:]
        return users_G, items_G, None, *reversed(grads)
