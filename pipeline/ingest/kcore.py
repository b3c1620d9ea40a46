"""The k-core: users and items with fewer than k interactions are dropped until none is left that has fewer.

The largest such set is unique, so the result does not depend on the order of dropping or of rows. Each pass costs two
counts over the interactions that are left; ten to thirty passes are usual.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["k_core"]


def k_core(
    users: NDArray[np.integer[Any]], items: NDArray[np.integer[Any]], k: int
) -> NDArray[np.intp]:
    """Indices, ascending, of the interactions in the k-core.

    Args:
        users: [n] user codes >= 0.
        items: [n] item codes >= 0.
        k: least number of interactions of each user and each item that stays; 0 and 1 keep everything.
    """
    kept: NDArray[np.intp] = np.arange(len(users))
    if k < 2:  # every code that occurs has one interaction
        return kept
    while len(kept):
        before = len(kept)
        for codes in (users, items):
            mine = codes[kept]
            kept = kept[np.bincount(mine)[mine] >= k]
            if not len(kept):
                return kept
        if len(kept) == before:
            break
    return kept
