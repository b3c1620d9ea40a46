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
        # one more, behind them all: every place that is looked for is there
        beyond = dataset.num_users * dataset.num_items
        keys = torch.from_numpy(np.append(users * dataset.num_items + items, beyond))
        self.register_buffer("keys", keys, persistent=False)

    def forward(self, users_T: Tensor) -> Tensor:
        """[T] an item for each user; any item for one who has met (nearly) all."""
        starts_T = users_T * self.num_items
        items_T = torch.randint(self.num_items, users_T.shape, device=users_T.device)
        met_N = self._met(starts_T + items_T).nonzero()[:, 0]
        for _ in range(_TRIES):
            if not len(met_N):
                break
            again_T = torch.randint(self.num_items, users_T.shape, device=users_T.device)
            items_T[met_N] = again_T[met_N]
            met_N = met_N[self._met(starts_T[met_N] + items_T[met_N])]
        return items_T

    def _met(self, keys_N: Tensor) -> Tensor:
        """[N] whether these pairs are known."""
        return self.keys[torch.searchsorted(self.keys, keys_N)] == keys_N
