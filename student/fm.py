"""Factorisation machine (Rendle, ICDM 2010) as RecBole has it: a weight for each field's value, a dot product for each pair.

With the fields of student/fields.py. A pair of fields is within the user, within the item, or across, and the sum over the
pairs across is one dot product: so all items are ranked by a matrix product of width D + 2. Trained pointwise: each
instance's target is a positive, and one item that the user never met a negative. A score is the logit before the sigmoid.
Legend: B histories, T slots, C columns, V items, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cache.dataset import Dataset
from encoder.packed import Packed
from student.fields import Fields, whose
from student.interactions import Negatives
from student.pairs import pairs_loss
from student.protocol import Asked
from student.ready import Prepared

__all__ = ["FM", "FMConfig", "make"]


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
            rows = self.fields.rows(batch.packed, rows_2T)
            base = pairs_loss(self.fields.table.weight, self.bias, rows)
            if not logits:
                return base, None
            return base, self.encode(batch.packed) @ self.of_items(batch.items_C).T


def make(config: FMConfig, dataset: Dataset) -> FM:
    """A new one for a dataset."""
    return FM(config, dataset)


def side(fields_NFD: Tensor) -> tuple[Tensor, Tensor]:
    """([N, D], [N, 1]) of one side, from vectors and weights: the sum of the vectors, and what it comes to by itself.

    That is the weights and the pairs within the side, (|sum|^2 - sum of |v|^2) / 2.
    """
    vectors_NFD, sum_ND = fields_NFD[..., :-1], fields_NFD.sum(dim=1)
    pairs_N1 = sum_ND[:, :-1].square().sum(1, keepdim=True) - vectors_NFD.square().sum(
        (1, 2), keepdim=True
    ).squeeze(2)
    return sum_ND[:, :-1], sum_ND[:, -1:] + pairs_N1 / 2
