"""GRU4Rec (arXiv 1511.06939) as RecBole has it: one recurrent layer without biases, dot products with all items.

Differs in layout only: item rows are 0..V-1 without a padding row, and histories come packed: a step of the recurrence
runs over those histories alone that are that long, so no padding is computed, and only last states are projected.
Legend: N tokens, B histories, D width of items, G width of the state, V items.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from cache.dataset import Dataset
from encoder.dropout import Dropout
from encoder.packed import Packed
from encoder.padded import lengths_of
from student.protocol import Asked
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
    asks: ClassVar[tuple[Asked, ...]] = ("items",)

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

    def padded(self, items_BL: Tensor, users_B: Tensor) -> Tensor:
        """[B, D] as `encode`, by a loop over places that a tracer keeps as a loop."""
        x_BLD = self.item_embedding(items_BL.clamp(min=0))
        lengths_B = lengths_of(items_BL)
        layers = range(self.config.layers)
        inner = [getattr(self.gru_layers, f"weight_ih_l{layer}") for layer in layers]
        across = [getattr(self.gru_layers, f"weight_hh_l{layer}") for layer in layers]

        def more(place: Tensor, *states: Tensor) -> Tensor:
            return place < items_BL.shape[1]

        def step(place: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
            x = x_BLD.index_select(1, place[None])[:, 0]
            alive_B1 = (place < lengths_B)[:, None]  # beyond its end a history changes nothing
            new = []
            for state, into, over in zip(states, inner, across, strict=True):
                x = torch.where(alive_B1, _cell(x @ into.T, state @ over.T, state), state)
                new.append(x)
            return place + 1, *new

        start = x_BLD.new_zeros(items_BL.shape[0], self.config.inner)
        first = torch.zeros((), dtype=torch.int64, device=items_BL.device)
        states = (first, *(start.clone() for _ in layers))
        *_, last = torch.while_loop(more, step, states)  # type: ignore[no-untyped-call]
        out: Tensor = self.dense(last)
        return out

    def item_table(self) -> Tensor:
        """[V, D]."""
        return self.item_embedding.weight


def make(config: GRU4RecConfig, dataset: Dataset) -> GRU4Rec:
    """A new one for a dataset."""
    return GRU4Rec(config, dataset.num_items)


def _cell(x: Tensor, h: Tensor, state: Tensor) -> Tensor:
    """[B, G] the next state, from what the gates (reset, update, new) get from input and state, [B, 3 G] each."""
    (x_reset, x_update, x_new), (h_reset, h_update, h_new) = x.chunk(3, dim=1), h.chunk(3, dim=1)
    update = torch.sigmoid(x_update + h_update)
    new = torch.tanh(x_new + torch.sigmoid(x_reset + h_reset) * h_new)
    return new + update * (state - new)


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
