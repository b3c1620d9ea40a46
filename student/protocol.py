"""What a model must offer to be trained from a score store and ranked.

Structural: a `torch.nn.Module` with these methods is a student, whoever wrote it. It scores in one of two ways: by vectors
(`Student`) or, where a score is no dot product, by itself (`Scorer`). Its base loss is the cross-entropy over all items,
unless it brings its own (`OwnLoss`). Two attributes are optional. `attends = False`: histories come without the layout for
attention, which takes half the time to make. `causal_states = True`: states may be asked for along a sequence, `encode` gives
the one after each token that `packed.last` names, whatever lies behind it. Legend: B histories, T slots, C columns of a
batch, D width, V items.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

from encoder.packed import Packed

if TYPE_CHECKING:
    from cache.dataset import Dataset
    from student.ready import Prepared

__all__ = ["AnyStudent", "Asked", "OwnLoss", "Padded", "Scorer", "Served", "Student", "TwoDomains"]

Asked: TypeAlias = Literal["items", "users"]
"""What a request to a served student holds: rows of items, rows of users."""


@runtime_checkable
class Student(Protocol):
    """A ranking model whose score of an item is a dot product: `encode(histories) @ item_table().T`."""

    def encode(self, packed: Packed) -> Tensor:
        """[B, D] one vector for each history; `packed.users` says whose they are."""

    def item_table(self) -> Tensor:
        """[V, D] one vector for each item, differentiable."""


@runtime_checkable
class Scorer(Protocol):
    """A ranking model with any other score."""

    def logits(self, packed: Packed, items_C: Tensor | None = None) -> Tensor:
        """[B, C] scores of these item rows, or [B, V] of all items; differentiable, of any scale."""


@runtime_checkable
class OwnLoss(Protocol):
    """A student that is not trained by a cross-entropy over all items: either kind may bring this."""

    def own_loss(self, batch: Prepared, *, logits: bool) -> tuple[Tensor, Tensor | None]:
        """The base model's loss, a mean in nats, and the logits [T, C] of the batch's columns if `logits`.

        Both at once, so that what they share is computed once. Randomness comes from torch's default generator.
        """


@runtime_checkable
class TwoDomains(Protocol):
    """A student that learns from another domain's dataset too; its settings have the fields source and source_items."""

    def learn_from(self, source: Dataset) -> None:
        """Take what training needs of it. Called once before training, never where a trained one is loaded."""


@runtime_checkable
class Padded(Protocol):
    """A student whose own way of scoring cannot be traced, or that asks for more than items, says here how it is exported.

    Others are exported as they are: `encode` or `logits` of the layout that encoder/padded.py makes.
    """

    asks: ClassVar[tuple[Asked, ...]]  #: what a served request holds

    def padded(self, items_BL: Tensor, users_B: Tensor) -> Tensor:
        """What `encode` gives, [B, D], or `logits`, [B, V]; by tensor operations alone, at any B and L.

        Args:
            items_BL: rows of items, a history at the beginning of each row, -1 behind it; at least one item. A row may
                be wider than the longest history.
            users_B: rows of users. Of these two, what is not in `asks` is empty.
        """


@runtime_checkable
class Served(Protocol):
    """A student that is exported as another module than the one that is trained."""

    def served(self) -> nn.Module:
        """What is exported instead: a module with methods of this file, and the same scores."""


AnyStudent: TypeAlias = Student | Scorer
