"""LightGCN (arXiv 2002.02126) as RecBole has it: embeddings smoothed over the graph of users and items, trained by BPR.

No sequence: a user has one vector, whatever the history. Several instances of one user in a batch have the same scores,
while their teachers' differ; distilling then learns the mean of what the teachers said. The graph is that of the training
parts, each pair once; it is made from the dataset and not saved. Every step smooths the whole graph: 4 passes over its
pairs at 2 layers. Legend: U users, V items, D width, B histories, T slots, C columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cache.dataset import Dataset
from encoder.packed import Packed
from student.fields import whose
from student.interactions import Negatives, training_pairs
from student.losses import dot_products
from student.protocol import Asked
from student.ranges import check_range
from student.ready import Prepared

__all__ = ["LightGCN", "LightGCNConfig", "make"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LightGCNConfig:
    """Sizes and rates; the defaults are RecBole's."""

    kd_weight: ClassVar[float] = 0.2  #: BPR has some 0.2 nats where a softmax over all items has 6

    hidden: int = 64  #: D
    layers: int = 2  #: how often a vector is replaced by its neighbours'
    reg_weight: float = 1e-5  #: of the squared norms of the embeddings that a batch touches

    def __post_init__(self) -> None:
        check_range(self, 0, math.inf, "reg_weight")


class LightGCN(nn.Module):
    """The model; 64 * (U + V) parameters at the default sizes.

    Args:
        config: sizes and rates.
        dataset: whose training parts are the graph.
    """

    attends = False

    def __init__(self, config: LightGCNConfig, dataset: Dataset) -> None:
        super().__init__()
        self.config = config
        self.user_embedding = nn.Embedding(dataset.num_users, config.hidden)
        self.item_embedding = nn.Embedding(dataset.num_items, config.hidden)
        nn.init.xavier_uniform_(self.user_embedding.weight)
        nn.init.xavier_uniform_(self.item_embedding.weight)
        self.negatives = Negatives(dataset)
        users, items, weights = _graph(dataset)
        self.items_of_users = Neighbours(users, items, weights, dataset.num_users)
        self.users_of_items = Neighbours(items, users, weights, dataset.num_items)

    def encode(self, packed: Packed) -> Tensor:
        """[B, D] the vectors of the users whose histories these are.

        Raises:
            ValueError: nobody said whose they are.
        """
        return self._smoothed()[0].index_select(0, whose(packed))

    def item_table(self) -> Tensor:
        """[V, D]."""
        return self._smoothed()[1]

    def served(self) -> nn.Module:
        """The smoothed vectors without the graph."""
        with torch.no_grad():
            return _Smoothed(*self._smoothed())

    def own_loss(self, batch: Prepared, *, logits: bool) -> tuple[Tensor, Tensor | None]:
        """BPR against one item that the user never met, plus the regulariser; and the logits [T, C]."""
        users_T, rows_T = whose(batch.packed), batch.rows_T
        negatives_T = self.negatives(users_T)
        users_UD, items_VD = self._smoothed()
        users_TD = users_UD.index_select(0, users_T)
        gap_TD = items_VD.index_select(0, rows_T) - items_VD.index_select(0, negatives_T)
        bpr = F.softplus(-(users_TD * gap_TD).sum(dim=1)).mean()
        touched = (
            self.user_embedding(users_T),
            self.item_embedding(rows_T),
            self.item_embedding(negatives_T),
        )
        squares = torch.stack([one.square().sum() for one in touched]).sum()
        base = bpr + self.config.reg_weight * squares / (2 * len(users_T))
        if not logits:
            return base, None
        return base, dot_products(users_TD, items_VD.index_select(0, batch.items_C))

    def _smoothed(self) -> tuple[Tensor, Tensor]:
        """[U, D] and [V, D]: means over 0..layers smoothings."""
        users, items = self.user_embedding.weight, self.item_embedding.weight
        users_UD, items_VD = users, items
        with torch.autocast(users.device.type, enabled=False):
            for _ in range(self.config.layers):
                users, items = (
                    _product(self.items_of_users, self.users_of_items, items),
                    _product(self.users_of_items, self.items_of_users, users),
                )
                users_UD, items_VD = users_UD + users, items_VD + items
        count = self.config.layers + 1
        return users_UD / count, items_VD / count


class _Smoothed(nn.Module):
    """What is left of the model once it is trained: a vector a user and a vector an item."""

    asks: ClassVar[tuple[Asked, ...]] = ("users",)
    users_UD: Tensor
    items_VD: Tensor

    def __init__(self, users_UD: Tensor, items_VD: Tensor) -> None:
        super().__init__()
        self.register_buffer("users_UD", users_UD)
        self.register_buffer("items_VD", items_VD)

    def padded(self, items_BL: Tensor, users_B: Tensor) -> Tensor:
        return self.users_UD.index_select(0, users_B)

    def encode(self, packed: Packed) -> Tensor:
        return self.users_UD.index_select(0, whose(packed))

    def item_table(self) -> Tensor:
        return self.items_VD


def make(config: LightGCNConfig, dataset: Dataset) -> LightGCN:
    """A new one for a dataset."""
    return LightGCN(config, dataset)


class Neighbours(nn.Module):
    """A constant sparse matrix, row by row; nothing of it is saved with a model.

    Multiplied by `embedding_bag`, which sums weighted rows: a quarter of `torch.sparse.mm`'s time on a processor.
    """

    columns: Tensor
    starts: Tensor
    weights: Tensor

    def __init__(
        self,
        rows: NDArray[np.int64],
        columns: NDArray[np.int64],
        weights: NDArray[np.float32],
        count: int,
    ) -> None:
        """`count` rows; entries in any order."""
        super().__init__()
        order = np.argsort(rows, kind="stable")
        starts = np.append(0, np.bincount(rows, minlength=count).cumsum())
        for name, values in (
            ("columns", columns[order].astype(np.int32)),
            ("starts", starts.astype(np.int32)),
            ("weights", weights[order]),
        ):
            self.register_buffer(name, torch.from_numpy(values), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The matrix times `x`."""
        return F.embedding_bag(
            self.columns,
            x,
            self.starts,
            mode="sum",
            per_sample_weights=self.weights.to(x.dtype),
            include_last_offset=True,
        )


def _product(a: Neighbours, at: Neighbours, x: Tensor) -> Tensor:
    out: Tensor = _Product.apply(a, at, x)  # type: ignore[no-untyped-call]
    return out


class _Product(torch.autograd.Function):
    """A constant sparse matrix times a dense one; its transpose is at hand for the way back."""

    @staticmethod
    def forward(ctx: Any, a: Neighbours, at: Neighbours, x: Tensor) -> Tensor:
        ctx.transposed = at
        out: Tensor = a(x)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, ctx.transposed(gradient[0])


def _graph(dataset: Dataset) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """(users, items, weights) of those who met: 1 / sqrt(neighbours of the user * neighbours of the item)."""
    users, items = training_pairs(dataset)
    degrees = (np.bincount(users)[users] * np.bincount(items)[items]).astype(np.float64)
    return users, items, (1 / np.sqrt(degrees)).astype(np.float32)
