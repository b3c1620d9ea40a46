"""What a teacher must offer to be asked about a store. Structural: a plug-in need not import this package.

numpy at the border, so that a teacher may be written in anything. Legend: V items, D width, n histories, C columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cache.dataset import Dataset, Ints

__all__ = ["Floats", "SomeItems", "Teacher", "Watched"]

Floats = NDArray[np.float32]


class Teacher(Protocol):
    """A frozen recommender that can say how much each history likes each item."""

    @property
    def name(self) -> str:
        """Such as ``unisrec``; the default name of its score set."""

    @property
    def factorises(self) -> bool:
        """Whether a history's vector does not depend on the items, and `score` is the product of the two vectors."""

    @property
    def digest(self) -> str:
        """Digest of everything that decides the scores: weights, settings, texts."""

    @property
    def quality(self) -> Mapping[str, float]:
        """Its validation metrics on the dataset, such as ``{"ndcg@10": 0.07}``; empty if unknown."""

    def encode_items(self, dataset: Dataset) -> Floats:
        """[V, D], asked once a build."""

    def encode_histories(self, dataset: Dataset, users: Ints, ends: Ints) -> Floats:
        """[n, D] for the instances (users, ends); may depend on nothing else."""

    def score(self, users_vec: Floats, items_vec: Floats) -> Floats:
        """[n, C] bare scores of histories and items. No temperature, no softmax: the store does that."""


@runtime_checkable
class SomeItems(Protocol):
    """What a teacher may offer beside, so that extending a store asks about new items alone.

    Two more attributes are looked at where they are there: `inductive`, False for a teacher that knows nothing of an item
    that it was not tuned on, and `vector_sets`, names of the item vectors that it reads from beside the dataset.
    """

    def encode_some_items(self, dataset: Dataset, items: Ints) -> Floats:
        """[n, D] vectors of some items, those rows of :meth:`Teacher.encode_items`."""


@runtime_checkable
class Watched(Protocol):
    """What a slow teacher may offer beside, so that a build says how far it is within a block of histories."""

    def encode_histories_watched(
        self, dataset: Dataset, users: Ints, ends: Ints, watch: Callable[[float], None]
    ) -> Floats:
        """[n, D] what :meth:`Teacher.encode_histories` gives; `watch` hears the share of it that is done, rising to 1."""
