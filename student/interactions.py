"""Who met what in the training parts; and items that a user never met there, drawn as negatives.

Held in memory: 8 bytes a distinct pair of user and item. Validation and test items are as unknown as any other.
Legend: U users, V items, T slots.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cache.dataset import Dataset

__all__ = ["Negatives", "training_pairs"]

_TRIES = 100


def training_pairs(dataset: Dataset) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(users, items): the distinct pairs of the training parts, in order of user, then item."""
    positions = np.arange(len(dataset.flat)) - np.repeat(dataset.offsets[:-1], dataset.lengths)
    kept = positions < np.repeat(dataset.train_lengths, dataset.lengths)
    owners = np.repeat(np.arange(dataset.num_users), dataset.lengths)
    keys = np.unique(owners[kept] * dataset.num_items + dataset.flat[kept])
    users, items = np.divmod(keys, dataset.num_items)
    return users, items


class Negatives(nn.Module):
    """Uniform draws from the items that a user has not met. Nothing of it is saved with a model."""

    keys: Tensor

    def __init__(self, dataset: Dataset) -> None:
        super().__init__()
        users, items = training_pairs(dataset)
        self.num_items = dataset.num_items
        keys = torch.from_numpy(users * dataset.num_items + items)
        self.register_buffer("keys", keys, persistent=False)

    def forward(self, users_T: Tensor) -> Tensor:
        """[T] an item for each user; any item for one who has met (nearly) all."""
        items_T = torch.randint(self.num_items, users_T.shape, device=users_T.device)
        for _ in range(_TRIES):
            keys_T = users_T * self.num_items + items_T
            places_T = torch.searchsorted(self.keys, keys_T).clamp_(max=len(self.keys) - 1)
            met_T = self.keys[places_T] == keys_T
            if not bool(met_T.any()):
                break
            again = torch.randint(self.num_items, users_T.shape, device=users_T.device)
            items_T = torch.where(met_T, again, items_T)
        return items_T
