"""GRU4Rec (arXiv 1511.06939) as RecBole has it: one recurrent layer without biases, dot products with all items.

Differs in layout only: item rows are 0..V-1 without a padding row, and histories come packed: a step of the recurrence
runs over those histories alone that are that long, so no padding is computed, and only last states are projected.
Legend: N tokens, B histories, D width of items, G width of the state, V items.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from cache.dataset import Dataset
from encoder.dropout import Dropout
from encoder.packed import Packed
from student.recurrence import recurrence

__all__ = ["GRU4Rec", "GRU4RecConfig", "make"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GRU4RecConfig:
    """Sizes and rates; the defaults are RecBole's."""

    hidden: int = 64  #: D, of the item vectors
    inner: int = 128  #: G, of the recurrent state
    layers: int = 1
    dropout: float = 0.3  #: on the item vectors that go in


class GRU4Rec(nn.Module):
    """The model; 64 * V + about 82,000 parameters at the default sizes.

    Args:
        config: sizes and rates.
        num_items: V.
    """

    attends = False

    def __init__(self, config: GRU4RecConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.item_embedding = nn.Embedding(num_items, config.hidden)
        self.dropout = Dropout(config.dropout)
        self.gru_layers = nn.GRU(config.hidden, config.inner, config.layers, bias=False)
        self.dense = nn.Linear(config.inner, config.hidden)
        nn.init.xavier_normal_(self.item_embedding.weight)
        for weight in self.gru_layers.parameters():
            nn.init.xavier_uniform_(weight)

    def encode(self, packed: Packed) -> Tensor:
        """[B, D] the projected state after the last item of each history."""
        order_N, alive, rank_B = _by_step(packed)
        x_ND = self.dropout(self.item_embedding(packed.items.index_select(0, order_N)))
        if x_ND.device.type == "cpu" and x_ND.dtype == torch.float32:
            last_BG = self._last(x_ND, alive.tolist(), packed.positions[packed.last], rank_B)
        else:  # one kernel for all steps
            _, last = self.gru_layers(PackedSequence(x_ND, alive))
            last_BG = last[-1].index_select(0, rank_B)
        out: Tensor = self.dense(last_BG)
        return out

    def _last(self, x_ND: Tensor, alive: list[int], step_B: Tensor, rank_B: Tensor) -> Tensor:
        """[B, G] the state after each history's last item, which is its `step_B`-th from 0."""
        states_NG = x_ND
        for layer in range(self.config.layers):
            into, back = (
                getattr(self.gru_layers, f"weight_{kind}_l{layer}") for kind in ("ih", "hh")
            )
            states_NG = recurrence(states_NG, into, back, alive)
        starts = torch.tensor([0, *itertools.accumulate(alive)])
        return states_NG.index_select(0, starts[step_B] + rank_B)

    def item_table(self) -> Tensor:
        """[V, D]."""
        return self.item_embedding.weight


def make(config: GRU4RecConfig, dataset: Dataset) -> GRU4Rec:
    """A new one for a dataset."""
    return GRU4Rec(config, dataset.num_items)


def _by_step(packed: Packed) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens in the order of a recurrence: all first items, all second items, ..., the longest history first in each.

    Returns:
        (order_N, alive, rank_B): where each of these tokens stands in `packed`; on the processor, how many histories
        have a first, a second, ... item; and the place of each history within a step.
    """
    lengths_B = packed.positions[packed.last] + 1
    rank_B = lengths_B.argsort(descending=True, stable=True).argsort()
    rank_N = rank_B.repeat_interleave(lengths_B, output_size=len(packed.items))
    order_N = (packed.positions * len(lengths_B) + rank_N).argsort()
    return order_N, packed.positions.bincount().cpu(), rank_B
