"""Longformer's encoder frozen, in float32 on a processor: the same numbers at the speed of its matrix products.

Beside the products of :class:`teachers.longformer.Longformer` little is left: weights are packed once, and everything
behind attention is done for 512 tokens at a time, while they lie in the cache. Costs a second copy of the weights.
Refuses other devices and types. Legend: N tokens, B sequences, D width, H heads, E = D / H, Q queries of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teachers.longformer import Block, Longformer, windows
from teachers.packed_linear import PackedLinear
from teachers.ragged import Ragged

__all__ = ["FrozenLongformer"]

_ROWS = 512  # handled at once behind attention


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
        room = torch.empty(ragged.places.numel(), 3 * x_ND.shape[1])
        mask = torch.zeros(ragged.mask.shape).masked_fill_(~ragged.mask, -torch.inf)
        for layer in self._layers[: len(self._layers) - first_only]:
            layer(x_ND, ragged, room, mask)
        if first_only:
            return self._layers[-1].first_tokens(x_ND, ragged)
        return x_ND


class _Layer:
    def __init__(self, block: Block) -> None:
        self._attention = block.attention.self
        self._qkv, self._bias = (one.detach() for one in self._attention.fused())
        self._mix = _packed(block.attention.output.dense)
        self._norm = block.attention.output.LayerNorm
        self._inner = _packed(block.intermediate.dense)
        self._outer = _packed(block.output.dense)
        self._last_norm = block.output.LayerNorm

    def first_tokens(self, x_ND: Tensor, ragged: Ragged) -> Tensor:
        """[B, D] the block's output for first tokens."""
        first_BD = self._attention.first_tokens(x_ND, ragged)
        return self._behind(first_BD, x_ND.index_select(0, ragged.starts))

    def __call__(self, x_ND: Tensor, ragged: Ragged, room: Tensor, mask: Tensor) -> None:
        """The block's output, in place; `room` for [places, 3 D] and what is added to scores are shared by all."""
        first_BD = self._attention.first_tokens(x_ND, ragged)
        torch.addmm(self._bias, x_ND.index_select(0, ragged.places.view(-1)), self._qkv.T, out=room)
        query, key, value = windows(room, ragged, self._attention.heads)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed_ND = mixed.transpose(1, 2).reshape(-1, x_ND.shape[1])[: len(x_ND)]
        mixed_ND.index_copy_(0, ragged.starts, first_BD)
        for mixed_nD, part_nD in zip(_parts(mixed_ND), _parts(x_ND), strict=True):
            part_nD.copy_(self._behind(mixed_nD, part_nD))

    def _behind(self, mixed_ND: Tensor, x_ND: Tensor) -> Tensor:
        """Everything that follows attention."""
        x_ND = _norm(self._mix(mixed_ND).add_(x_ND), self._norm)
        inner = self._inner(x_ND)
        torch.ops.aten.gelu_(inner)  # F.gelu would take a second piece of memory
        return _norm(self._outer(inner).add_(x_ND), self._last_norm)


def _packed(dense: nn.Linear) -> PackedLinear:
    return PackedLinear(dense.weight, dense.bias)


def _parts(x_ND: Tensor) -> tuple[Tensor, ...]:
    return torch.split(x_ND, _ROWS)


def _norm(x_ND: Tensor, norm: nn.LayerNorm) -> Tensor:
    return F.layer_norm(x_ND, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
