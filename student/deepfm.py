"""DeepFM (arXiv 1703.04247) as RecBole has it: a factorisation machine plus a perceptron over the same fields' vectors.

The perceptron's score is no dot product: each pair of a history and an item passes it. Two things bound what that costs.
The first layer is linear in the fields, so a user's part and an item's part are computed once each and summed for a pair;
where teachers are heard, its dropout is therefore drawn once for a user's side and once for an item's side. And pairs pass
a few at a time, which a core's cache holds (student/grid.py): 512 x 512 of them at the default sizes take 0.4 GiB.
Trained pointwise as FM is. Legend: B histories, T slots, C columns, V items, D width of a field, W width of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cache.dataset import Dataset
from encoder.dropout import Dropout
from encoder.packed import Packed
from encoder.products import Linear
from student.fields import ITEM_FIELDS, USER_FIELDS, whose
from student.fm import FM, FMConfig
from student.grid import Grid
from student.losses import dot_products
from student.pairs import pairs_loss
from student.protocol import Asked
from student.ranges import check_range
from student.ready import Prepared

__all__ = ["DeepFM", "DeepFMConfig", "make"]

_CHUNK = 1 << 12  # ranked pairs: 2 MB a layer of 128
_TILE = 1 << 11  # pairs that are learnt from
_CHUNK_ELSEWHERE = 1 << 14  # of both, where each call costs a launch
_HELD_BYTES = 1 << 29  # of layers, for the way back


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepFMConfig:
    """Sizes and rates; the defaults are RecBole's."""

    hidden: int = 10  #: D
    inner: int = 128  #: W
    depth: int = 3  #: layers of the perceptron, without the last one
    dropout: float = 0.2  #: before each of them

    def __post_init__(self) -> None:
        check_range(self, 1, 64, "depth")


class DeepFM(nn.Module):
    """The model; FM's parameters and about 40,000 at the default sizes.

    Args:
        config: sizes and rates.
        dataset: whose users, items and attributes have vectors.
    """

    attends = False
    asks: ClassVar[tuple[Asked, ...]] = ("items", "users")

    def __init__(self, config: DeepFMConfig, dataset: Dataset) -> None:
        super().__init__()
        self.config = config
        self.fm = FM(FMConfig(hidden=config.hidden), dataset)
        self.dropout = Dropout(config.dropout)
        into = (USER_FIELDS + ITEM_FIELDS) * config.hidden
        self.first = nn.Linear(into, config.inner)
        self.layer = nn.ModuleList(
            Linear(config.inner, config.inner) for _ in range(config.depth - 1)
        )
        self.predict = nn.Linear(config.inner, 1)
        for module in (self.first, *self.layer, self.predict):
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)

    def logits(self, packed: Packed, items_C: Tensor | None = None) -> Tensor:
        """[B, C] of these item rows, or [B, V] of all."""
        return self._pairs(packed, items_C)

    def padded(self, items_BL: Tensor, users_B: Tensor) -> Tensor:
        """[B, V] as `logits`; 4 W V bytes for each history."""
        user_part_BW = self._user_part(self.fm.fields.of_padded(items_BL, users_B))
        shallow_BV = self.fm.padded(items_BL, users_B) @ self.fm.of_items().T
        return shallow_BV + self._grid(user_part_BW, self._item_part(self.fm.fields.of_items()))

    def own_loss(self, batch: Prepared, *, logits: bool) -> tuple[Tensor, Tensor | None]:
        """Binary cross-entropy of the target and of one negative; and the logits [T, C]."""
        packed, rows_T = batch.packed, batch.rows_T
        rows_2T = torch.cat([rows_T, self.fm.negatives(whose(packed))])
        with torch.autocast(rows_T.device.type, enabled=False):
            base = pairs_loss(
                self.fm.fields.table.weight,
                self.fm.bias,
                self.fm.fields.rows(packed, rows_2T),
                self._flat(),
                dropout=self._rate,
                tile=_tile(rows_T),
            )
        return base, self._pairs(packed, batch.items_C) if logits else None

    def _pairs(self, packed: Packed, items_C: Tensor | None) -> Tensor:
        """[B, C]."""
        fields = self.fm.fields
        user_part_BW = self._user_part(fields.of_users(packed))
        item_part_CW = self._item_part(fields.of_items(items_C))
        shallow_BC = dot_products(self.fm.encode(packed), self.fm.of_items(items_C))
        how = self._learnt if torch.is_grad_enabled() else self._chunks
        return shallow_BC + how(user_part_BW, item_part_CW)

    def _learnt(self, user_part_BW: Tensor, item_part_CW: Tensor) -> Tensor:
        """[B, C] with a way back."""
        grid = Grid(dropout=self._rate, tile=_tile(user_part_BW), held=_HELD_BYTES)
        return grid.scores(user_part_BW, item_part_CW, self._flat()[2:])

    @property
    def _rate(self) -> float:
        return self.config.dropout if self.training else 0

    def _flat(self) -> list[Tensor]:
        """Weight and bias of each layer in turn."""
        layers = (self.first, *self.layer, self.predict)
        return [one for linear in layers for one in (linear.weight, linear.bias)]

    def _chunks(self, user_part_BW: Tensor, item_part_CW: Tensor) -> Tensor:
        """[B, C], a few histories at a time."""
        rows = max(1, _chunk(item_part_CW) // len(item_part_CW))
        some = torch.split(user_part_BW, rows)
        return torch.cat([self._grid(some_bW, item_part_CW) for some_bW in some])

    def _grid(self, user_part_bW: Tensor, item_part_CW: Tensor) -> Tensor:
        """[b, C]; also where a single history has more items than a chunk holds."""
        chunk = _chunk(item_part_CW)
        if len(item_part_CW) <= chunk:
            return self._deep(user_part_bW[:, None] + item_part_CW)
        parts = [
            self._deep(user_part_bW[:, None] + some) for some in torch.split(item_part_CW, chunk)
        ]
        return torch.cat(parts, dim=1)

    def _user_part(self, fields_BFD: Tensor) -> Tensor:
        """[B, W] what the first layer makes of the user's fields."""
        return self._part(fields_BFD, slice(0, USER_FIELDS))

    def _item_part(self, fields_CFD: Tensor) -> Tensor:
        """[C, W] what it makes of the item's fields, and its bias."""
        fields = slice(USER_FIELDS, USER_FIELDS + ITEM_FIELDS)
        return self._part(fields_CFD, fields) + self.first.bias

    def _part(self, fields_NFD: Tensor, fields: slice) -> Tensor:
        width = self.config.hidden
        weight = self.first.weight[:, fields.start * width : fields.stop * width]
        out: Tensor = self._dropped(fields_NFD) @ weight.T
        return out

    def _dropped(self, fields_NFD: Tensor) -> Tensor:
        """[N, F D] the vectors, without their weights, as the first layer is given them."""
        out: Tensor = self.dropout(fields_NFD[..., : self.config.hidden].flatten(1))
        return out

    def _deep(self, x: Tensor) -> Tensor:
        """[..., W], the first layer's output before its rectifier, written over, to [...]."""
        x = torch.relu_(x)
        for linear in self.layer:
            x = torch.relu_(linear(self.dropout(x)))
        out: Tensor = self.predict(x)[..., 0]
        return out


def _chunk(part: Tensor) -> int:
    return _CHUNK if part.device.type == "cpu" else _CHUNK_ELSEWHERE


def _tile(part: Tensor) -> int:
    return _TILE if part.device.type == "cpu" else _CHUNK_ELSEWHERE


def make(config: DeepFMConfig, dataset: Dataset) -> DeepFM:
    """A new one for a dataset."""
    return DeepFM(config, dataset)
