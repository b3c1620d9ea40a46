"""What a factorisation machine knows of a user with a history, and of an item: the fields, and their vectors.

Of a user: the id, and the mean over the items of the history. Of an item: the id, the brand, the category, each distinct
string of the dataset's columns a value (the empty one too). Legend: B histories, C items, V items in all, D width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cache.dataset import Dataset
from encoder.packed import Packed
from encoder.padded import PADDING, lengths_of

__all__ = ["ITEM_FIELDS", "USER_FIELDS", "Fields", "codes", "whose"]

USER_FIELDS, ITEM_FIELDS = 2, 3
_ATTRIBUTES = ("brand", "category")


def codes(dataset: Dataset) -> Tensor:
    """[V, 2] which brand and which category each item has, numbered in the order of their names."""
    columns = [
        np.unique(np.array(dataset.items[name].to_pylist(), dtype=str), return_inverse=True)[1]
        for name in _ATTRIBUTES
    ]
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.int64))


def whose(packed: Packed) -> Tensor:
    """[B] the users of these histories.

    Raises:
        ValueError: nobody said whose they are.
    """
    if packed.users is None:
        raise ValueError(
            "the users whose histories these are expected in `packed.users`, found none"
        )
    return packed.users


class Fields(nn.Module):
    """A vector of `width` for every value of every field, drawn as RecBole draws them (xavier, normal)."""

    codes_V2: Tensor

    def __init__(self, dataset: Dataset, width: int) -> None:
        super().__init__()
        codes_V2 = codes(dataset)
        self.register_buffer("codes_V2", codes_V2, persistent=False)
        brands, categories = (int(n) + 1 for n in codes_V2.amax(dim=0))
        self.user = nn.Embedding(dataset.num_users, width)
        self.history = nn.Embedding(dataset.num_items, width)
        self.item = nn.Embedding(dataset.num_items, width)
        self.brand = nn.Embedding(brands, width)
        self.category = nn.Embedding(categories, width)
        for table in (self.user, self.history, self.item, self.brand, self.category):
            nn.init.xavier_normal_(table.weight)

    def of_users(self, packed: Packed) -> Tensor:
        """[B, 2, D]."""
        starts_B = packed.last - packed.positions[packed.last]
        history_BD = F.embedding_bag(packed.items, self.history.weight, starts_B, mode="mean")
        return torch.stack([self.user(whose(packed)), history_BD], dim=1)

    def of_padded(self, items_BL: Tensor, users_B: Tensor) -> Tensor:
        """[B, 2, D] as `of_users`, of histories in rows with padding behind them."""
        real_BL1 = (items_BL != PADDING)[:, :, None]
        total_BD = (self.history(items_BL.clamp(min=0)) * real_BL1).sum(dim=1)
        history_BD = total_BD / lengths_of(items_BL)[:, None]
        return torch.stack([self.user(users_B), history_BD], dim=1)

    def of_items(self, rows_C: Tensor | None = None) -> Tensor:
        """[C, 3, D] of these rows, or of all V."""
        items_CD = self.item.weight if rows_C is None else self.item(rows_C)
        codes_C2 = self.codes_V2 if rows_C is None else self.codes_V2.index_select(0, rows_C)
        return torch.stack(
            [items_CD, self.brand(codes_C2[:, 0]), self.category(codes_C2[:, 1])], dim=1
        )
