"""UniSRec: text vectors, a whitening adaptor and a causal transformer; scores are cosines.

Architecture of arXiv 2206.05941 with the parameter names of its public implementation, so that official weights load. One
difference of layout: there is no padding row, item rows are 0..V-1. An item's vector is the adapted text (inductive), plus
an id embedding (transductive); all that follows stands in teachers/backbone.py. Legend: V items, D hidden width, W text
width, R rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from teachers.backbone import Backbone
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


class UniSRec(Backbone):
    """The model.

    Args:
        architecture: widths and rates.
        vectors_VW: frozen text vectors of the target's items; None while pre-training, when they come with each batch.
        with_ids: add a learned embedding of each item (transductive); needs `vectors_VW`.
    """

    plm_embedding: nn.Embedding | None

    def __init__(
        self,
        architecture: Architecture,
        vectors_VW: Tensor | None = None,
        *,
        with_ids: bool = False,
    ) -> None:
        super().__init__(architecture)
        a = self.architecture = architecture
        self.moe_adaptor = MoEAdaptor(a.experts, a.text_width, a.hidden, a.adaptor_dropout)
        self.finish({"plm_embedding": vectors_VW}, with_ids=with_ids)

    def adapt(self, *features_RW: Tensor) -> Tensor:
        """[R, D] item vectors of text vectors, the only features there are."""
        (texts_RW,) = features_RW
        adapted_RD: Tensor = self.moe_adaptor(texts_RW)
        return adapted_RD
