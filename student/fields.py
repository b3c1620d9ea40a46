"""What a factorisation machine knows of a user with a history, and of an item: the fields, and their vectors.

Of a user: the id, and the mean over the items of the history. Of an item: the id, the brand, the category, each distinct
string of the dataset's columns a value (the empty one too). Legend: B histories, C items, V items in all, D width.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor, nn

from cache.dataset import Dataset
from encoder.packed import Packed
from encoder.padded import PADDING, lengths_of
from student.pairs import Rows

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
    """A vector and a weight for every value of every field, in one table, drawn as RecBole draws them (xavier, normal).

    The table holds the users, the items in histories, the items, the brands and the categories, in this order; a row is
    a vector of `width` and then the weight. One table, because a step then looks up and learns once, not ten times.
    """

    items_V3: Tensor

    def __init__(self, dataset: Dataset, width: int) -> None:
        super().__init__()
        codes_V2 = codes(dataset)
        brands, categories = (int(n) + 1 for n in codes_V2.amax(dim=0))
        sizes = [dataset.num_users, dataset.num_items, dataset.num_items, brands, categories]
        self.starts = [0, *itertools.accumulate(sizes)]
        own_V1 = torch.arange(dataset.num_items)[:, None]
        rows_V3 = torch.cat([own_V1, codes_V2], dim=1) + torch.tensor(self.starts[2:5])
        self.register_buffer("items_V3", rows_V3, persistent=False)
        self.table = nn.Embedding(sum(sizes), width + 1)
        with torch.no_grad():
            for block in torch.split(self.table.weight, sizes):
                for columns in (slice(0, width), slice(width, None)):
                    block[:, columns] = nn.init.xavier_normal_(block[:, columns].clone())

    def rows(self, packed: Packed, rows_P: Tensor) -> Rows:
        """Where the table has the users of these histories, the histories, and these items."""
        return Rows(
            users_T=whose(packed),
            history_N=packed.items + self.starts[1],
            lengths_T=packed.positions[packed.last] + 1,
            items_PF=self.items_V3.index_select(0, rows_P),
        )

    def of_users(self, packed: Packed) -> Tensor:
        """[B, 2, D + 1] the user's own and the mean over the history."""
        users_B, lengths_B = whose(packed), packed.positions[packed.last] + 1
        found = self.table(torch.cat([users_B, packed.items + self.starts[1]]))
        own_BD, items_ND = found.split([len(users_B), len(packed.items)])
        return _means(own_BD, items_ND, lengths_B)

    def of_padded(self, items_BL: Tensor, users_B: Tensor) -> Tensor:
        """[B, 2, D + 1] as `of_users`, of histories in rows with padding behind them."""
        real_BL1 = (items_BL != PADDING)[:, :, None]
        total_BD = (self.table(items_BL.clamp(min=0) + self.starts[1]) * real_BL1).sum(dim=1)
        history_BD = total_BD / lengths_of(items_BL)[:, None]
        return torch.stack([self.table(users_B), history_BD], dim=1)

    def of_items(self, rows_C: Tensor | None = None) -> Tensor:
        """[C, 3, D + 1] of these rows, or of all V."""
        found: Tensor = self.table(
            self.items_V3 if rows_C is None else self.items_V3.index_select(0, rows_C)
        )
        return found


def _means(own_BD: Tensor, items_ND: Tensor, lengths_B: Tensor) -> Tensor:
    """[B, 2, D] the user's own, and the mean of the history's items."""
    owners_N = torch.repeat_interleave(lengths_B, output_size=len(items_ND))
    sums_BD = torch.zeros_like(own_BD).index_add(0, owners_N, items_ND)
    return torch.stack([own_BD, sums_BD / lengths_B[:, None]], dim=1)
