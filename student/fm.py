"""Factorisation machine (Rendle, ICDM 2010) as RecBole has it: a weight for each field's value, a dot product for each pair.

With the fields of student/fields.py. A pair of fields is within the user, within the item, or across, and the sum over the
pairs across is one dot product: so all items are ranked by a matrix product of width D + 2. Trained pointwise: each
instance's target is a positive, and one item that the user never met a negative. A score is the logit before the sigmoid.
Legend: B histories, T slots, C columns, V items, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cache.dataset import Dataset
from encoder.packed import Packed
from student.fields import Fields, whose
from student.interactions import Negatives
from student.protocol import Asked
from student.ready import Prepared

__all__ = ["FM", "FMConfig", "make", "pointwise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FMConfig:
    """Sizes; the defaults are RecBole's."""

    hidden: int = 10  #: D


class FM(nn.Module):
    """The model; 11 parameters for each user, brand and category and 22 for each item at the default size.

    Args:
        config: sizes.
        dataset: whose users, items and attributes have vectors.
    """

    attends = False
    asks: ClassVar[tuple[Asked, ...]] = ("items", "users")

    def __init__(self, config: FMConfig, dataset: Dataset) -> None:
        super().__init__()
        self.config = config
        self.fields = Fields(dataset, config.hidden)
        self.bias = nn.Parameter(torch.zeros(1))
        self.negatives = Negatives(dataset)

    def encode(self, packed: Packed) -> Tensor:
        """[B, D + 2]: the user's fields summed, a one, and what the user's side comes to by itself."""
        return self._user_side(self.fields.of_users(packed))

    def padded(self, items_BL: Tensor, users_B: Tensor) -> Tensor:
        """[B, D + 2] as `encode`."""
        return self._user_side(self.fields.of_padded(items_BL, users_B))

    def item_table(self) -> Tensor:
        """[V, D + 2]."""
        return self.of_items()

    def of_items(self, rows_C: Tensor | None = None) -> Tensor:
        """[C, D + 2] of these rows, or of all V: the fields summed, the item's side by itself, and a one."""
        sum_CD, own_C = side(self.fields.of_items(rows_C))
        return torch.cat([sum_CD, own_C, torch.ones_like(own_C)], dim=1)

    def _user_side(self, fields_B2D: Tensor) -> Tensor:
        sum_BD, own_B1 = side(fields_B2D)
        return torch.cat([sum_BD, torch.ones_like(own_B1), own_B1 + self.bias], dim=1)

    def own_loss(self, batch: Prepared, *, logits: bool) -> tuple[Tensor, Tensor | None]:
        """Binary cross-entropy of the target and of one negative; and the logits [T, C]."""
        negatives_T = self.negatives(whose(batch.packed))
        rows_2T = torch.cat([batch.rows_T, negatives_T])
        # all of it is sums and products of what the table holds: there is no encoder to be rounded
        with torch.autocast(rows_2T.device.type, enabled=False):
            users, items = self.fields.of_both(batch.packed, rows_2T)
            base = pointwise(pairs(users, items) + self.bias)
            if not logits:
                return base, None
            return base, self.encode(batch.packed) @ self.of_items(batch.items_C).T


def make(config: FMConfig, dataset: Dataset) -> FM:
    """A new one for a dataset."""
    return FM(config, dataset)


def pointwise(logits_2T: Tensor) -> Tensor:
    """Mean binary cross-entropy of logits that should be high, in the first row, and logits that should be low."""
    signs_21 = logits_2T.new_tensor([[-1.0], [1.0]])
    return F.softplus(logits_2T * signs_21).mean()


def side(fields_NFD: Tensor) -> tuple[Tensor, Tensor]:
    """([N, D], [N, 1]) of one side, from vectors and weights: the sum of the vectors, and what it comes to by itself.

    That is the weights and the pairs within the side, (|sum|^2 - sum of |v|^2) / 2.
    """
    vectors_NFD, sum_ND = fields_NFD[..., :-1], fields_NFD.sum(dim=1)
    pairs_N1 = sum_ND[:, :-1].square().sum(1, keepdim=True) - vectors_NFD.square().sum(
        (1, 2), keepdim=True
    ).squeeze(2)
    return sum_ND[:, :-1], sum_ND[:, -1:] + pairs_N1 / 2


def pairs(users_T2D: Tensor, items_2T3D: Tensor) -> Tensor:
    """[2, T] scores, but for the bias, of each of T users with two items, from what `Fields.of_both` gives.

    The numbers of `side`, with the way back written out: a dozen operations instead of fifty, which is what a step of so
    small a model consists of.
    """
    scores: Tensor = _Pairs.apply(users_T2D, items_2T3D)  # type: ignore[no-untyped-call]
    return scores


class _Pairs(torch.autograd.Function):
    """Sums over so few fields are additions, sums of squares products with a vector: reductions take five times as long."""

    @staticmethod
    def forward(ctx: Any, users_T2D: Tensor, items_2T3D: Tensor) -> Tensor:
        slots, width = len(users_T2D), users_T2D.shape[-1]
        items = items_2T3D.view(2, slots, *items_2T3D.shape[1:])
        user_TD = users_T2D[:, 0] + users_T2D[:, 1]
        both_2TD = (items[:, :, 0] + items[:, :, 1]).add_(items[:, :, 2]).add_(user_TD)
        ctx.save_for_backward(users_T2D, items, both_2TD)
        # all pairs of the five fields at once: (|sum|^2 - sum of |v|^2) / 2; the last number is the weight
        half_3D = users_T2D.new_full((3, width), 0.5)
        half_3D[:, -1] = 0
        scores_2T = torch.mv(both_2TD.square().view(2 * slots, -1), half_3D[0])
        scores_2T.sub_(torch.mv(items_2T3D.square().flatten(1), half_3D.flatten()))
        user_T = torch.mv(users_T2D.square().flatten(1), half_3D[:2].flatten())
        return scores_2T.view(2, slots).sub_(user_T).add_(both_2TD[..., -1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, Tensor]:
        users_T2D, items, both_2TD = ctx.saved_tensors
        (given_2T,) = gradient
        # a vector's slope is the sum of the four others, a weight's is one
        items_G = (both_2TD[:, :, None] - items).mul_(given_2T[..., None, None])
        items_G[..., -1] = given_2T[..., None]
        given_T = given_2T[0] + given_2T[1]
        sums_2TD = both_2TD * given_2T[..., None]
        sums_TD = sums_2TD[0].add_(sums_2TD[1])
        users_G = torch.addcmul(sums_TD[:, None], users_T2D, given_T[:, None, None], value=-1)
        users_G[..., -1] = given_T[:, None]
        return users_G, items_G.flatten(0, 1)
