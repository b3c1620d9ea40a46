"""What a student's loop must know of a teacher's score set or factor set: two protocols, which the readers in `cache` have.

Structural, so that a loop of one's own can hand in arrays. Legend: T slots, C columns of a batch, D width.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Factors", "Scores"]


class Scores(Protocol):
    """One teacher's score set: log-probabilities of each batch's columns at temperature `tau`."""

    @property
    def name(self) -> str:
        """The teacher's."""

    @property
    def tau(self) -> float:
        """Temperature that the stored log-probabilities have."""

    @property
    def quality(self) -> float | None:
        """The teacher's validation NDCG@10, where it is known."""

    def __getitem__(self, index: int, /) -> NDArray[np.floating[Any]]:
        """[T, C] of batch `index`."""


@runtime_checkable
class Factors(Protocol):
    """What a teacher's factor set has beyond `Scores`: its answer about any history and any items."""

    def history_vectors(self, instances: NDArray[np.int32], /) -> NDArray[np.float16]:
        """[T, D] of instances of the plan."""

    def item_vectors(self, items: NDArray[Any] | None = None, /) -> NDArray[np.float16]:
        """[C, D] of items, all of them by default."""
