"""The loss that a factorisation machine learns from, with a perceptron over the same vectors or without, as one operation.

Pointwise: each instance's target should score high, one item that its user never met low; binary cross-entropy. So small a
step is mostly calls, so the way back is written out, from the loss to the table. The history's vectors are summed where they
are read; sums over fields are additions and sums of squares products with a vector, a fifth of what reductions take; the
table's gradient is added up by rows into zeros, a third of what an embedding's own takes. Holds F D + depth x W numbers a
pair for the way back. Refuses nothing: the rows are `Fields.rows`'s.
Legend: T instances, N items of their histories, F fields, D numbers of a row: a vector and, last, a weight; P = 2 T pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from student.perceptron import Layers

__all__ = ["Rows", "pairs_loss"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The rows of the table that a step reads. Users have two fields, their own row and their history's mean."""

    users_T: Tensor
    history_N: Tensor  #: history after history
    lengths_T: Tensor
    items_PF: Tensor  #: all targets, then an item never met for each

    @property
    def all(self) -> Tensor:
        """[T + N + P F] one behind the other."""
        return torch.cat([self.users_T, self.history_N, self.items_PF.flatten()])


def pairs_loss(
    table_RD: Tensor,
    bias: Tensor,
    rows: Rows,
    flat: Sequence[Tensor] = (),
    *,
    dropout: float = 0,
    tile: int | None = None,
) -> Tensor:
    """Mean binary cross-entropy, in nats, of 2 T pairs of a user and an item.

    Args:
        bias: [1] added to every score.
        flat: of the perceptron over the fields' vectors, as `Layers` takes it; none for a bare factorisation machine.
        dropout: before each layer but the last.
        tile: pairs that pass the perceptron at once; all of them without it.
    """
    loss: Tensor = _Loss.apply(table_RD, bias, rows, dropout, tile, *flat)  # type: ignore[no-untyped-call]
    return loss


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        table_RD: Tensor,
        bias: Tensor,
        rows: Rows,
        dropout: float,
        tile: int | None,
        *flat: Tensor,
    ) -> Tensor:
        x_PFD = _gathered(table_RD, rows)
        scores_P, sums_PD = _shallow(x_PFD)
        ctx.passed = None
        if flat:
            ctx.passed = _Passed(x_PFD[..., :-1], Layers(flat, dropout), tile)
            scores_P.add_(ctx.passed.scores)
        scores_P.add_(bias)
        slots = len(rows.users_T)
        # what the loss says to each score: its chance, less one where it should be high
        given_P = scores_P.sigmoid()
        given_P[:slots].sub_(1)
        scores_P[:slots].neg_()
        ctx.save_for_backward(x_PFD, sums_PD, given_P.div_(2 * slots), table_RD, bias, *flat)
        ctx.rows = rows
        return F.softplus(scores_P).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slope: Tensor) -> tuple[Tensor | None, ...]:
        x_PFD, sums_PD, given_P, table_RD, bias, *flat = ctx.saved_tensors
        given_P = given_P * slope[0]
        # a vector's slope is the sum of the others, a weight's is one
        slopes_PFD = (sums_PD[:, None] - x_PFD).mul_(given_P[:, None, None])
        slopes_PFD[..., -1] = given_P[:, None]
        grads = [torch.zeros_like(each) for each in flat]
        if ctx.passed is not None:
            slopes_PFD[..., :-1] += ctx.passed.back(given_P, grads)
        table_G = _scattered(slopes_PFD, ctx.rows, table_RD)
        return table_G, given_P.sum().expand_as(bias), None, None, None, *grads


class _Passed:
    """The perceptron's pass over the vectors [P, F, D - 1], a tile at a time."""

    def __init__(self, x_PFD: Tensor, layers: Layers, tile: int | None) -> None:
        self.layers, self.tile, self.shape = layers, tile or len(x_PFD), x_PFD.shape
        self.kept = None  #: which numbers of x the first layer was given
        if layers.rate.zeroed:
            self.kept = layers.rate.kept(x_PFD)
            x_PFD = x_PFD * self.kept
        self.states = [layers.forth(each) for each in torch.split(x_PFD.flatten(1), self.tile)]
        found = [layers.scores(states) for states in self.states]
        self.scores = found[0] if len(found) == 1 else torch.cat(found)

    def back(self, given_P: Tensor, grads: Sequence[Tensor]) -> Tensor:
        """[P, F, D - 1] slopes of the vectors; those of the layers are added to `grads`."""
        tiles = zip(self.states, torch.split(given_P, self.tile), strict=True)
        found = [self.layers.back(states, given, grads) for states, given in tiles]
        slopes = (found[0] if len(found) == 1 else torch.cat(found)).view(self.shape)
        return slopes if self.kept is None else slopes.mul_(self.kept)


def _gathered(table_RD: Tensor, rows: Rows) -> Tensor:
    """[P, F, D] the fields of each pair: the user's two, the item's."""
    slots, width = len(rows.users_T), table_RD.shape[1]
    ends_T = rows.lengths_T.cumsum(0)
    starts_T = ends_T - rows.lengths_T
    history_TD = F.embedding_bag(rows.history_N, table_RD, starts_T, mode="sum")
    x_2TFD = table_RD.new_empty(2, slots, 2 + rows.items_PF.shape[1], width)
    x_2TFD[:, :, 0] = table_RD.index_select(0, rows.users_T)
    x_2TFD[:, :, 1] = history_TD.div_(rows.lengths_T[:, None])
    items = table_RD.index_select(0, rows.items_PF.flatten())
    x_2TFD[:, :, 2:] = items.view(2, slots, -1, width)
    return x_2TFD.flatten(0, 1)


def _scattered(slopes_PFD: Tensor, rows: Rows, table_RD: Tensor) -> Tensor:
    """[R, D] the gradient of the table."""
    targets_TFD, others_TFD = slopes_PFD.chunk(2)
    users_T2D = targets_TFD[:, :2] + others_TFD[:, :2]
    each_TD = users_T2D[:, 1] / rows.lengths_T[:, None]
    owners_N = torch.repeat_interleave(rows.lengths_T, output_size=len(rows.history_N))
    items = slopes_PFD[:, 2:].reshape(-1, slopes_PFD.shape[-1])
    parts = torch.cat([users_T2D[:, 0], each_TD.index_select(0, owners_N), items])
    return torch.zeros_like(table_RD).index_add_(0, rows.all, parts)


def _shallow(x_PFD: Tensor) -> tuple[Tensor, Tensor]:
    """([P], [P, D]) the sum of all weights and of all pairs' dot products, (|sum|^2 - sum of |v|^2) / 2; the sums."""
    fields, width = x_PFD.shape[1:]
    halves = _halves(fields, width, x_PFD.dtype, x_PFD.device)
    sums_PD = x_PFD[:, 0] + x_PFD[:, 1]
    for field in range(2, fields):
        sums_PD += x_PFD[:, field]
    scores_P = torch.mv(sums_PD.square(), halves[:width])
    scores_P.sub_(torch.mv(x_PFD.square().flatten(1), halves)).add_(sums_PD[:, -1])
    return scores_P, sums_PD


@cache
def _halves(fields: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[F D] a half for each number of a vector and nothing for a weight."""
    half = torch.full((width,), 0.5, dtype=dtype, device=device)
    half[-1] = 0
    return half.repeat(fields)
