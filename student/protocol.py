"""What a model must offer to be trained from a score store and ranked.

Structural: a `torch.nn.Module` with these methods is a student, whoever wrote it.
Legend: B histories, D width, V items.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from encoder.packed import Packed

__all__ = ["Student"]


class Student(Protocol):
    """A ranking model whose score of an item is a dot product: `encode(histories) @ item_table().T`."""

    def encode(self, packed: Packed) -> Tensor:
        """[B, D] one vector for each history."""

    def item_table(self) -> Tensor:
        """[V, D] one vector for each item, differentiable."""
