"""UniM2Rec, a RECONSTRUCTION: its paper published no code, so this is a design of ours from what is publicly said of it.

Text vectors and image vectors, each through its own whitening adaptor; a gate for each dimension mixes the two (gated
multimodal unit, arXiv 1702.01992, without its tanh: the adaptors stand there); an id embedding may be added; then what UniSRec
does (teachers/backbone.py). A feature row of zeros means that the modality is missing: a learned vector stands in, which
training also sees in place of present ones. Costs two adaptors a step where UniSRec has one. R rows, D hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from teachers.backbone import Backbone
from teachers.whitening import MoEAdaptor

__all__ = ["Architecture", "Fusion", "UniM2Rec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Widths and rates; the defaults are UniSRec's where it has them.

    Attributes:
        text_width: width of the text vectors.
        image_width: width of the image vectors.
        hidden: D.
        inner: width inside the feed-forward blocks.
        experts: of each modality's adaptor.
        positions: longest history the model can read.
        modality_dropout: how often a present modality is taken for missing while training, unless it is the item's last.
        temperature: what cosines are divided by while training.
    """

    text_width: int
    image_width: int
    hidden: int = 300
    inner: int = 256
    layers: int = 2
    heads: int = 2
    experts: int = 8
    positions: int = 50
    dropout: float = 0.5
    attention_dropout: float = 0.5
    adaptor_dropout: float = 0.2
    modality_dropout: float = 0.3
    temperature: float = 0.07


class Fusion(nn.Module):
    """`z t + (1 - z) v` with `z = sigmoid(W [t, v] + b)`, one gate a dimension (arXiv 1702.01992, eqs. 1 to 4)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * hidden, hidden)

    def forward(self, texts_RD: Tensor, images_RD: Tensor) -> Tensor:
        """[R, D]."""
        gates_RD = torch.sigmoid(self.gate(torch.cat([texts_RD, images_RD], dim=-1)))
        return images_RD + gates_RD.to(images_RD.dtype) * (texts_RD - images_RD)


class UniM2Rec(Backbone):
    """The model.

    Args:
        architecture: widths and rates.
        texts_VW: frozen text vectors of the target's items; None while pre-training.
        images_VW: the same of images; both or neither.
        with_ids: add a learned embedding of each item (transductive); needs the vectors.
    """

    plm_embedding: nn.Embedding | None
    img_embedding: nn.Embedding | None

    def __init__(
        self,
        architecture: Architecture,
        texts_VW: Tensor | None = None,
        images_VW: Tensor | None = None,
        *,
        with_ids: bool = False,
    ) -> None:
        super().__init__(architecture)
        a = self.architecture = architecture
        self.text_adaptor = MoEAdaptor(a.experts, a.text_width, a.hidden, a.adaptor_dropout)
        self.image_adaptor = MoEAdaptor(a.experts, a.image_width, a.hidden, a.adaptor_dropout)
        self.fusion = Fusion(a.hidden)
        self.missing_text = nn.Parameter(torch.empty(a.hidden).normal_(std=0.02))
        self.missing_image = nn.Parameter(torch.empty(a.hidden).normal_(std=0.02))
        self.finish({"plm_embedding": texts_VW, "img_embedding": images_VW}, with_ids=with_ids)

    def adapt(self, *features_RW: Tensor) -> Tensor:
        """[R, D] item vectors of text and image vectors; a row of zeros is missing."""
        texts_RW, images_RW = features_RW
        seen_RM = torch.stack([texts_RW.any(dim=-1), images_RW.any(dim=-1)], dim=-1)
        if self.training:
            seen_RM = dropped(seen_RM, self.architecture.modality_dropout)
        texts_RD = torch.where(seen_RM[:, :1], self.text_adaptor(texts_RW), self.missing_text)
        images_RD = torch.where(seen_RM[:, 1:], self.image_adaptor(images_RW), self.missing_image)
        fused_RD: Tensor = self.fusion(texts_RD, images_RD)
        return fused_RD


def dropped(present_RM: Tensor, rate: float) -> Tensor:
    """[R, M] what training sees of the modalities that are present: each leaves by `rate`, but never all of an item's."""
    left_RM = present_RM & (torch.rand(present_RM.shape, device=present_RM.device) >= rate)
    return torch.where(left_RM.any(dim=-1, keepdim=True), left_RM, present_RM)
