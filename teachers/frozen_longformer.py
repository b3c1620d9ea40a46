"""Longformer's encoder frozen, in float32 on a processor: the same numbers at the speed of its matrix products.

Beside the products of :class:`teachers.longformer.Longformer` little is left: weights are packed once, and everything
but attention is done for 512 tokens at a time, while they lie in the cache. Costs a second copy of the weights.
Refuses other devices and types. Legend: N tokens, B sequences, D width, H heads, E = D / H, Q queries and C keys of a
block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teachers.longformer import Block, Longformer, windows
from teachers.packed_linear import PackedLinear
from teachers.ragged import Ragged

__all__ = ["FrozenLongformer"]

_ROWS = 512  # handled at once before and behind attention


class FrozenLongformer:
    """Another way through `encoder` as it is now; make another when its weights change.

    Raises:
        ValueError: weights that are not float32 on the processor.
    """

    def __init__(self, encoder: Longformer) -> None:
        if any(p.device.type != "cpu" or p.dtype != torch.float32 for p in encoder.parameters()):
            raise ValueError("an encoder in float32 on the processor expected")
        self._layers = [_Layer(block) for block in encoder.layer if isinstance(block, Block)]

    @torch.no_grad()
    def __call__(self, x_ND: Tensor, ragged: Ragged, first_only: bool = False) -> Tensor:
        """As :meth:`teachers.longformer.Longformer.forward` in evaluation; `x_ND` is used up."""
        room = _Room.of(ragged, 3 * x_ND.shape[1])
        for layer in self._layers[: len(self._layers) - first_only]:
            layer(x_ND, ragged, room)
        if first_only:
            return self._layers[-1].first_tokens(x_ND, ragged)
        return x_ND


class _Layer:
    def __init__(self, block: Block) -> None:
        self._attention = block.attention.self
        self._qkv = PackedLinear(*self._attention.fused())
        self._mix = _packed(block.attention.output.dense)
        self._norm = block.attention.output.LayerNorm
        self._inner = _packed(block.intermediate.dense)
        self._outer = _packed(block.output.dense)
        self._last_norm = block.output.LayerNorm

    def first_tokens(self, x_ND: Tensor, ragged: Ragged) -> Tensor:
        """[B, D] the block's output for first tokens."""
        first_BD = self._attention.first_tokens(x_ND, ragged)
        return self._behind(first_BD, x_ND.index_select(0, ragged.starts))

    def __call__(self, x_ND: Tensor, ragged: Ragged, room: _Room) -> None:
        """The block's output, in place; `room` is shared by all."""
        first_BD = self._attention.first_tokens(x_ND, ragged)
        room.fill(x_ND, self._qkv)
        query, key, value = windows(room.rows, ragged, self._attention.heads)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=room.mask)
        mixed_ND = mixed.transpose(1, 2).reshape(-1, x_ND.shape[1])[: len(x_ND)]
        mixed_ND.index_copy_(0, ragged.starts, first_BD)
        for mixed_nD, part_nD in zip(_parts(mixed_ND), _parts(x_ND), strict=True):
            part_nD.copy_(self._behind(mixed_nD, part_nD))

    def _behind(self, mixed_ND: Tensor, x_ND: Tensor) -> Tensor:
        """Everything that follows attention."""
        x_ND = _norm(self._mix(mixed_ND).add_(x_ND), self._norm)
        return _norm(self._outer(self._inner.gelu(x_ND)).add_(x_ND), self._last_norm)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Room:
    """Queries, keys and values in the places of :class:`Ragged`, those that somebody looks at; the others stay zero."""

    rows: Tensor  #: [blocks + 2, Q + 1, 3 D]
    mask: Tensor  #: [blocks, 1, Q, C] what is added to scores
    led: Tensor  #: blocks that look at the place that leads them
    firsts: Tensor  #: first tokens that stand there, each once
    which: Tensor  #: of them, for each led block

    @classmethod
    def of(cls, ragged: Ragged, width: int) -> _Room:
        size = ragged.places.shape[1]
        led = ragged.mask[:, 0, :, size].any(dim=1).nonzero().view(-1) + 1
        firsts, which = torch.unique(ragged.places[led, 0], return_inverse=True)
        return cls(
            rows=torch.zeros(*ragged.places.shape, width),
            mask=torch.zeros(ragged.mask.shape).masked_fill_(~ragged.mask, -torch.inf),
            led=led,
            firsts=firsts,
            which=which,
        )

    def fill(self, x_ND: Tensor, product: PackedLinear) -> None:
        """Every token goes through `product` once, and each first token of `firsts` once more."""
        blocks, queries = self.rows[1:-1, 1:], self.rows.shape[1] - 1
        together = max(1, _ROWS // queries)
        parts = torch.split(x_ND, together * queries)
        for part_nD, room in zip(parts, torch.split(blocks, together), strict=True):
            part_n3D = product(part_nD)
            whole, rest = divmod(len(part_nD), queries)
            room[:whole] = part_n3D[: whole * queries].view_as(room[:whole])
            if rest:
                room[whole, :rest] = part_n3D[-rest:]
        if len(self.led):
            self.rows[self.led, 0] = product(x_ND[self.firsts])[self.which]


def _packed(dense: nn.Linear) -> PackedLinear:
    return PackedLinear(dense.weight, dense.bias)


def _parts(rows: Tensor) -> tuple[Tensor, ...]:
    return torch.split(rows, _ROWS)


def _norm(x_ND: Tensor, norm: nn.LayerNorm) -> Tensor:
    return F.layer_norm(x_ND, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
