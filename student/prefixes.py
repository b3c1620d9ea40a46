"""Many instances of one user in one causal pass: histories that begin alike are laid out once, states are asked for along them.

A student whose state after an item hangs on no later one (`causal_states`) gives for the first e items of a sequence what
it gives for a history of e. Histories of more than the longest length begin later in the sequence, so each keeps tokens
of its own. Legend: T slots, B sequences laid out, N tokens, C columns of the batch.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from cache.dataset import Dataset
from cache.plan import Batch
from encoder.packed import Packed

__all__ = ["own_items", "shared"]


def shared(dataset: Dataset, batch: Batch, device: torch.device | str = "cpu") -> Packed:
    """The histories of a batch whose instances stand user by user, by time: `last` names a token for each slot."""
    longest = dataset.max_length
    alone = batch.ends > longest
    # a sequence goes on until another user's, or one that begins elsewhere
    closes = alone | np.append((np.diff(batch.users) != 0) | alone[1:], True)
    flat, lengths_B = dataset.histories(batch.users[closes], batch.ends[closes])
    sequence_T = np.cumsum(closes) - closes
    starts_B = np.cumsum(lengths_B, dtype=np.int64) - lengths_B
    asked_T = starts_B[sequence_T] + np.minimum(batch.ends, longest) - 1
    return Packed.of(flat, lengths_B, device, users=batch.users, asked=asked_T)


def own_items(dataset: Dataset, batch: Batch) -> NDArray[np.bool_]:
    """[T, C] which columns are items of the slot's own user, its target apart: they are no negatives.

    Of its own training sequence up to the last target in the batch, at most the longest history's worth.
    """
    begins_U = np.flatnonzero(np.diff(batch.users, prepend=-1))
    owner_T = np.cumsum(np.diff(batch.users, prepend=-1) != 0) - 1
    ends_U = np.append(begins_U[1:], len(batch.users)) - 1  # the slot of each user's last target
    flat, lengths_U = dataset.histories(batch.users[ends_U], batch.ends[ends_U])
    column_V = np.full(dataset.num_items, -1, np.int64)
    column_V[batch.items] = np.arange(len(batch.items))
    seen_N, owner_N = column_V[flat], np.repeat(np.arange(len(ends_U)), lengths_U)
    own_UC = np.zeros((len(ends_U), len(batch.items)), bool)
    own_UC[owner_N[seen_N >= 0], seen_N[seen_N >= 0]] = True
    own_UC[owner_T, batch.columns] = True
    own_TC: NDArray[np.bool_] = own_UC[owner_T]
    own_TC[np.arange(len(own_TC)), batch.columns] = False
    return own_TC
