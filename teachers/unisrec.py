"""UniSRec: text vectors, a whitening adaptor and a causal transformer; scores are cosines.

Architecture of arXiv 2206.05941 with the parameter names of its public implementation, so that official weights load. One
difference of layout: there is no padding row, item rows are 0..V-1. An item's vector is the adapted text (inductive), plus
an id embedding (transductive); the same vector enters the sequence and stands as candidate. Legend: V items, D hidden width,
W text width, N tokens of packed histories.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from encoder.dropout import Dropout
from encoder.packed import Packed
from encoder.transformer import CausalTransformer
from teachers.whitening import MoEAdaptor

__all__ = ["Architecture", "UniSRec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Widths and rates of a UniSRec; the defaults are those of the public configuration.

    Attributes:
        text_width: W, width of the text vectors.
        hidden: D.
        inner: width inside the feed-forward blocks.
        positions: longest history the model can read.
        temperature: what cosines are divided by while training.
    """

    text_width: int
    hidden: int = 300
    inner: int = 256
    layers: int = 2
    heads: int = 2
    experts: int = 8
    positions: int = 50
    dropout: float = 0.5
    attention_dropout: float = 0.5
    adaptor_dropout: float = 0.2
    temperature: float = 0.07


class UniSRec(nn.Module):
    """The model.

    Args:
        architecture: widths and rates.
        vectors_VW: frozen text vectors of the target's items; None while pre-training, when they come with each batch.
        with_ids: add a learned embedding of each item (transductive); needs `vectors_VW`.
    """

    def __init__(
        self,
        architecture: Architecture,
        vectors_VW: Tensor | None = None,
        *,
        with_ids: bool = False,
    ) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.position_embedding = nn.Embedding(a.positions, a.hidden)
        self.trm_encoder = CausalTransformer(
            hidden=a.hidden,
            layers=a.layers,
            heads=a.heads,
            inner=a.inner,
            dropout=a.dropout,
            attention_dropout=a.attention_dropout,
            eps=1e-12,
        )
        self.LayerNorm = nn.LayerNorm(a.hidden, eps=1e-12)
        self.dropout = Dropout(a.dropout)
        self.moe_adaptor = MoEAdaptor(a.experts, a.text_width, a.hidden, a.adaptor_dropout)
        self.plm_embedding: nn.Embedding | None = None
        self.item_embedding: nn.Embedding | None = None
        if vectors_VW is not None:
            items, width = vectors_VW.shape
            self.plm_embedding = nn.Embedding(items, width, _weight=vectors_VW, _freeze=True)
            if with_ids:
                self.item_embedding = nn.Embedding(len(vectors_VW), a.hidden)
        self.apply(_init)

    def item_table(self) -> Tensor:
        """[V, D] vectors of the target's items, not yet normalised."""
        if self.plm_embedding is None:
            raise RuntimeError("a UniSRec without a target's text vectors has no item table")
        table_VD: Tensor = self.moe_adaptor(self.plm_embedding.weight)
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
        scale = 1 / self.architecture.temperature
        # the temperature rides on the smaller factor, never on the [N, C] product
        return (F.normalize(states_ND, dim=-1) * scale) @ F.normalize(table_CD, dim=-1).T

    def freeze_encoder(self) -> None:
        """Keep the positions and the transformer as pre-training left them."""
        self.position_embedding.requires_grad_(False)
        self.trm_encoder.requires_grad_(False)


def _init(module: nn.Module) -> None:
    # the canonical initialisation; text vectors are frozen and stay what they are
    if isinstance(module, nn.Linear) or (
        isinstance(module, nn.Embedding) and module.weight.requires_grad
    ):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
