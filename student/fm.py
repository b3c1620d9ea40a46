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
from torch.nn import functional as F

from cache.dataset import Dataset
from encoder.packed import Packed
from student.fields import Fields, whose
from student.interactions import Negatives
from student.protocol import Asked
from student.targets import Prepared

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

    asks: ClassVar[tuple[Asked, ...]] = ("items", "users")

    def __init__(self, config: FMConfig, dataset: Dataset) -> None:
        super().__init__()
        self.config = config
        self.fields = Fields(dataset, config.hidden)
        self.first_order = Fields(dataset, 1)
        self.bias = nn.Parameter(torch.zeros(1))
        self.negatives = Negatives(dataset)

    def encode(self, packed: Packed) -> Tensor:
        """[B, D + 2]: the user's fields summed, a one, and what the user's side comes to by itself."""
        return self._user_side(self.fields.of_users(packed), self.first_order.of_users(packed))

    def padded(self, items_BL: Tensor, users_B: Tensor) -> Tensor:
        """[B, D + 2] as `encode`."""
        return self._user_side(
            self.fields.of_padded(items_BL, users_B), self.first_order.of_padded(items_BL, users_B)
        )

    def item_table(self) -> Tensor:
        """[V, D + 2]."""
        return self.of_items()

    def of_items(self, rows_C: Tensor | None = None) -> Tensor:
        """[C, D + 2] of these rows, or of all V: the fields summed, the item's side by itself, and a one."""
        own_C = self.first_order.of_items(rows_C).sum(dim=(1, 2))
        return _side(self.fields.of_items(rows_C), own_C, own_last=False)

    def _user_side(self, vectors_BFD: Tensor, first_BF1: Tensor) -> Tensor:
        return _side(vectors_BFD, first_BF1.sum(dim=(1, 2)) + self.bias, own_last=True)

    def own_loss(self, batch: Prepared, *, logits: bool) -> tuple[Tensor, Tensor | None]:
        """Binary cross-entropy of the target and of one negative; and the logits [T, C]."""
        negatives_T = self.negatives(whose(batch.packed))
        users_TD = self.encode(batch.packed)
        base = pointwise(
            (users_TD * self.of_items(batch.rows_T)).sum(dim=1),
            (users_TD * self.of_items(negatives_T)).sum(dim=1),
        )
        return base, users_TD @ self.of_items(batch.items_C).T if logits else None


def make(config: FMConfig, dataset: Dataset) -> FM:
    """A new one for a dataset."""
    return FM(config, dataset)


def pointwise(positives_T: Tensor, negatives_T: Tensor) -> Tensor:
    """Mean binary cross-entropy of logits that should be high and logits that should be low."""
    return (F.softplus(-positives_T).mean() + F.softplus(negatives_T).mean()) / 2


def _side(vectors_NFD: Tensor, own_N: Tensor, *, own_last: bool) -> Tensor:
    """[N, D + 2] of one side; `own_N` is joined by the pairs within the side, (|sum|^2 - sum of |v|^2) / 2."""
    sum_ND = vectors_NFD.sum(dim=1)
    own_N = own_N + (sum_ND.square() - vectors_NFD.square().sum(dim=1)).sum(dim=1) / 2
    ends = [torch.ones_like(own_N), own_N] if own_last else [own_N, torch.ones_like(own_N)]
    return torch.cat([sum_ND, torch.stack(ends, dim=1)], dim=1)
