"""What the teachers of cosines share: item vectors in, positions, a causal transformer, cosines over a temperature out.

A teacher adds how an item's features become one vector (`adapt`). The same vector enters the sequence and stands as candidate;
there is no padding row, item rows are 0..V-1. Parameter names are those of UniSRec's public implementation. Legend: V items,
D hidden width, N tokens of packed histories, C candidates, R rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from encoder.dropout import Dropout
from encoder.packed import Packed
from encoder.transformer import CausalTransformer

__all__ = ["Backbone", "Shape"]


class Shape(Protocol):
    """The widths and rates that the shared part asks for."""

    @property
    def hidden(self) -> int:
        """D."""

    @property
    def inner(self) -> int:
        """Width inside the feed-forward blocks."""

    @property
    def layers(self) -> int:
        """Transformer blocks."""

    @property
    def heads(self) -> int:
        """Of each block; divides D."""

    @property
    def positions(self) -> int:
        """Longest history the model can read."""

    @property
    def dropout(self) -> float:
        """On inputs and on what each block adds."""

    @property
    def attention_dropout(self) -> float:
        """On attention weights."""

    @property
    def temperature(self) -> float:
        """What cosines are divided by while training."""


class Backbone(nn.Module):
    """The shared part. A teacher's own constructor adds its adaptors, then calls :meth:`finish`.

    Args:
        shape: widths and rates.
    """

    item_embedding: nn.Embedding | None

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.position_embedding = nn.Embedding(shape.positions, shape.hidden)
        self.trm_encoder = CausalTransformer(
            hidden=shape.hidden,
            layers=shape.layers,
            heads=shape.heads,
            inner=shape.inner,
            dropout=shape.dropout,
            attention_dropout=shape.attention_dropout,
            eps=1e-12,
        )
        self.LayerNorm = nn.LayerNorm(shape.hidden, eps=1e-12)
        self.dropout = Dropout(shape.dropout)

    def finish(self, features: Mapping[str, Tensor | None], *, with_ids: bool) -> None:
        """Add the target's frozen features [V, W] under their names, ids if wanted, and draw all weights.

        Features are None while pre-training, when they come with each batch; then there are no ids either.
        """
        self._names = tuple(features)
        for name, table_VW in features.items():
            one = None
            if table_VW is not None:
                items, width = table_VW.shape
                one = nn.Embedding(items, width, _weight=table_VW, _freeze=True)
            setattr(self, name, one)
        self.item_embedding = None
        if with_ids and all(table_VW is not None for table_VW in features.values()):
            self.item_embedding = nn.Embedding(items, self.shape.hidden)
        self.apply(_init)

    def adapt(self, *features_RW: Tensor) -> Tensor:
        """[R, D] item vectors of feature rows, one matrix a modality."""
        raise NotImplementedError

    @property
    def features(self) -> list[Tensor]:
        """[V, W] the target's frozen features, one matrix a modality."""
        tables = [getattr(self, name) for name in self._names]
        if None in tables:
            raise RuntimeError(
                f"a {type(self).__name__} without its target's features has no item table"
            )
        return [table.weight for table in tables]

    def item_table(self) -> Tensor:
        """[V, D] vectors of the target's items, not yet normalised."""
        table_VD = self.adapt(*self.features)
        return table_VD if self.item_embedding is None else table_VD + self.item_embedding.weight

    def states(self, inputs_ND: Tensor, packed: Packed, *, only_last: bool = False) -> Tensor:
        """State after each token of packed histories, whose item vectors are `inputs_ND`.

        Returns:
            [N, D], or with `only_last` [B, D]; not yet normalised.
        """
        x_ND = self.LayerNorm(inputs_ND + self.position_embedding(packed.positions))
        states: Tensor = self.trm_encoder(self.dropout(x_ND), packed, only_last)
        return states

    def logits(self, states_ND: Tensor, table_CD: Tensor) -> Tensor:
        """[N, C] cosines over the temperature, as training wants them."""
        scale = 1 / self.shape.temperature
        # the temperature rides on the smaller factor, never on the [N, C] product
        return (F.normalize(states_ND, dim=-1) * scale) @ F.normalize(table_CD, dim=-1).T

    def freeze_encoder(self) -> None:
        """Keep the positions and the transformer as pre-training left them."""
        self.position_embedding.requires_grad_(False)
        self.trm_encoder.requires_grad_(False)


def _init(module: nn.Module) -> None:
    # the canonical initialisation; features are frozen and stay what they are
    if isinstance(module, nn.Linear) or (
        isinstance(module, nn.Embedding) and module.weight.requires_grad
    ):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
