"""BERT4Rec (arXiv 1904.06690) as RecBole 1.2 has it: attention both ways, a mask token where the next item is asked for.

Its own loss is the Cloze one: a sequence is a history and its target, and a cross-entropy over all items is taken at the
places that are masked. One draw a batch decides: with chance `ft_ratio` the target alone is masked, which is the task
itself; else each place with chance `mask_ratio`, at least one in each sequence. Teachers speak of the place after the
history, so distilling reads the mask token there: in a batch that masks it alone from the same pass, else from a second.

Differs from RecBole: item rows are 0..V-1 (the mask is row V), histories come packed, and no sequence goes without a mask.
The logits of a batch's masked places are in memory at once, 4 V bytes each. Legend: N tokens, B histories, D width, V
items, M masked places, T slots, C columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cache.dataset import Dataset
from encoder.dropout import Dropout
from encoder.packed import Packed
from encoder.padded import laid_out, lengths_of
from encoder.products import rowwise
from encoder.transformer import CausalTransformer
from student.losses import dot_products, fused_loss
from student.protocol import Asked
from student.ranges import check_range
from student.ready import Prepared

__all__ = ["BERT4Rec", "BERT4RecConfig", "cloze_places", "make"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BERT4RecConfig:
    """Sizes and rates; the defaults are those of RecBole 1.2."""

    hidden: int = 64  #: D
    layers: int = 2
    heads: int = 2
    inner: int = 256  #: width inside the feed-forward
    dropout: float = 0.2  #: everywhere, attention weights included
    mask_ratio: float = 0.2  #: share of places that are masked
    ft_ratio: float = 0.5  #: share of batches that mask the target alone
    max_length: int = 50  #: longest history; the mask stands one place further

    def __post_init__(self) -> None:
        check_range(self, 0, 1, "mask_ratio", "ft_ratio")


class BERT4Rec(nn.Module):
    """The model; 65 * V + about 108,000 parameters at the default sizes.

    Args:
        config: sizes and rates.
        num_items: V.
    """

    asks: ClassVar[tuple[Asked, ...]] = ("items",)

    def __init__(self, config: BERT4RecConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.mask = num_items
        self.item_embedding = nn.Embedding(num_items + 1, config.hidden)
        self.position_embedding = nn.Embedding(config.max_length + 1, config.hidden)
        self.LayerNorm = nn.LayerNorm(config.hidden, eps=1e-12)
        self.dropout = Dropout(config.dropout)
        # attention looks where the packed layout lets it: both ways here
        self.trm_encoder = CausalTransformer(
            hidden=config.hidden,
            layers=config.layers,
            heads=config.heads,
            inner=config.inner,
            dropout=config.dropout,
            attention_dropout=config.dropout,
        )
        self.output_ffn = nn.Linear(config.hidden, config.hidden)
        self.output_ln = nn.LayerNorm(config.hidden, eps=1e-12)
        self.output_bias = nn.Parameter(torch.zeros(num_items))
        self.apply(_init)

    def encode(self, packed: Packed) -> Tensor:
        """[B, D + 1] what the mask token after each history makes of it, and a one for the item's bias."""
        return self._asked(_with_room(packed, self.mask))

    def padded(self, items_BL: Tensor, users_B: Tensor) -> Tensor:
        """[B, D + 1] as `encode`: the mask token takes the first free place, of which each row is given one."""
        lengths_B = lengths_of(items_BL)
        room_BL = torch.cat([items_BL.clamp(min=0), torch.zeros_like(items_BL[:, :1])], dim=1)
        room_BL = room_BL.scatter(1, lengths_B[:, None], self.mask)
        layout = laid_out(room_BL, lengths_B + 1, causal=False)
        # padding may reach further than there are positions
        positions = layout.positions.clamp(max=self.config.max_length)
        return self._asked(replace(layout, positions=positions))

    def item_table(self) -> Tensor:
        """[V, D + 1] item vectors and biases."""
        return torch.cat([self.item_embedding.weight[:-1], self.output_bias[:, None]], dim=1)

    def own_loss(self, batch: Prepared, *, logits: bool) -> tuple[Tensor, Tensor | None]:
        """The Cloze loss, and the logits [T, C] at the place after the history."""
        layout = _with_room(batch.packed, self.mask)
        table = self.item_table()
        asked: Tensor | None = None
        if torch.rand(()).item() < self.config.ft_ratio:
            asked = self._asked(layout)
            base = fused_loss(asked, table, batch.rows_T)[0]
        else:
            items_N = layout.items.index_copy(0, layout.last, batch.rows_T)
            draws_N = torch.rand(len(items_N), device=items_N.device)
            places_M = cloze_places(draws_N, layout, self.config.mask_ratio)
            masked = replace(
                layout, items=items_N.index_fill(0, places_M, self.mask), last=places_M
            )
            base = fused_loss(self._asked(masked), table, items_N[places_M])[0]
        if not logits:
            return base, None
        if asked is None:
            asked = self._asked(layout)
        return base, dot_products(asked, table.index_select(0, batch.items_C))

    def _asked(self, layout: Packed) -> Tensor:
        """[B or M, D + 1] at the places that `layout.last` names."""
        x_ND = self.item_embedding(layout.items) + self.position_embedding(layout.positions)
        states = self.trm_encoder(self.dropout(self.LayerNorm(x_ND)), layout, True)
        out: Tensor = self.output_ln(rowwise(F.gelu, self.output_ffn(states)))
        return torch.cat([out, torch.ones_like(out[:, :1])], dim=1)


def make(config: BERT4RecConfig, dataset: Dataset) -> BERT4Rec:
    """A new one for a dataset."""
    return BERT4Rec(config, dataset.num_items)


def cloze_places(draws_N: Tensor, layout: Packed, ratio: float) -> Tensor:
    """[M] the places whose draw, uniform in [0, 1), is below `ratio`, and the least draw of each sequence."""
    lengths_B = layout.positions[layout.last] + 1
    owner_N = torch.arange(len(lengths_B), device=draws_N.device).repeat_interleave(lengths_B)
    least_B = torch.ones_like(lengths_B, dtype=draws_N.dtype)
    least_B = least_B.scatter_reduce(0, owner_N, draws_N, "amin")
    return ((draws_N < ratio) | (draws_N == least_B[owner_N])).nonzero()[:, 0]


def _with_room(packed: Packed, item: int) -> Packed:
    """The same histories with `item` after each, attention both ways; `last` names the new places."""
    last = packed.last.cpu().numpy()
    flat = np.insert(packed.items.cpu().numpy(), last + 1, item)
    lengths = np.diff(last, prepend=-1) + 1
    return Packed.of(flat, lengths, packed.items.device, causal=False)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
