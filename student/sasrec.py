"""SASRec (arXiv 1808.09781) as RecBole has it: learned positions, post-norm causal blocks, dot products with all items.

Differs in layout only: item rows are 0..V-1 without a padding row, and histories come packed.
Legend: N tokens, B histories, D width, V items.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from cache.dataset import Dataset
from encoder.dropout import Dropout
from encoder.packed import Packed
from encoder.transformer import CausalTransformer

__all__ = ["SASRec", "SASRecConfig", "make"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SASRecConfig:
    """Sizes and rates; the defaults are RecBole's."""

    hidden: int = 64  #: D
    layers: int = 2
    heads: int = 2
    inner: int = 256  #: width inside the feed-forward
    dropout: float = 0.5  #: everywhere, attention weights included
    max_length: int = 50  #: longest history


class SASRec(nn.Module):
    """The model; 64 * V + about 100,000 parameters at the default sizes.

    Args:
        config: sizes and rates.
        num_items: V.
    """

    causal_states = True

    def __init__(self, config: SASRecConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.item_embedding = nn.Embedding(num_items, config.hidden)
        self.position_embedding = nn.Embedding(config.max_length, config.hidden)
        self.LayerNorm = nn.LayerNorm(config.hidden, eps=1e-12)
        self.dropout = Dropout(config.dropout)
        self.trm_encoder = CausalTransformer(
            hidden=config.hidden,
            layers=config.layers,
            heads=config.heads,
            inner=config.inner,
            dropout=config.dropout,
            attention_dropout=config.dropout,
        )
        self.apply(_init)

    def encode(self, packed: Packed) -> Tensor:
        """[B, D] the state after the last item of each history."""
        x_ND = self.item_embedding(packed.items) + self.position_embedding(packed.positions)
        out: Tensor = self.trm_encoder(self.dropout(self.LayerNorm(x_ND)), packed, True)
        return out

    def item_table(self) -> Tensor:
        """[V, D]."""
        return self.item_embedding.weight


def make(config: SASRecConfig, dataset: Dataset) -> SASRec:
    """A new one for a dataset."""
    return SASRec(config, dataset.num_items)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
