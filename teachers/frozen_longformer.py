"""Longformer's encoder frozen, in float32 on a processor: the same numbers at the speed of its matrix products.

Beside the products of :class:`teachers.longformer.Longformer` little is left: weights are packed once, and everything
behind attention is done for 512 tokens at a time, while they lie in the cache. Keys and values are never gathered: a
block's are read in place, through overlapping windows of one buffer. Only the far first token needs a place in the
window: the row before it, which no query of the block may see. The rows it is lent from belong to other blocks, so
every fourth block goes at a time, and the rows are put back afterwards. Costs a second copy of the weights. Refuses
other devices and types. Legend: N tokens, B sequences, D width, H heads, E = D / H, Q queries and C keys of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teachers.longformer import Block, Longformer
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
        windows = _Windows.of(ragged, x_ND.shape[1])
        for layer in self._layers[: len(self._layers) - first_only]:
            layer(x_ND, ragged, windows)
        if first_only:
            return self._layers[-1].first_tokens(x_ND, ragged)
        return x_ND


@dataclass(frozen=True, slots=True, kw_only=True)
class _Windows:
    """The buffer that all layers share, and where windows stand in it."""

    buffer: Tensor  #: [front + blocks * Q + behind, 3 D] queries, keys and values; zeros outside the tokens
    mixed: Tensor  #: [blocks * Q, D] what attention gives
    front: int  #: rows before the first token
    turns: int  #: blocks so many apart do not overlap
    far: Tensor  #: [blocks] row of the first token of column 0
    masks: tuple[Tensor, ...]  #: [blocks of a turn, 1, Q, C] what is added to scores

    @classmethod
    def of(cls, ragged: Ragged, hidden: int) -> _Windows:
        columns = ragged.keys.shape[1]
        front = ragged.reach + 1
        turns = -(-columns // ragged.block)
        rows = (ragged.blocks - 1) * ragged.block + max(columns, front + ragged.block)
        masks = (
            torch.zeros(part.shape).masked_fill_(~part, -torch.inf)
            for part in (ragged.mask[turn::turns] for turn in range(turns))
        )
        return cls(
            buffer=torch.zeros(rows, 3 * hidden),
            mixed=torch.empty(ragged.blocks * ragged.block, hidden),
            front=front,
            turns=turns,
            far=ragged.keys[:, 0] + front,
            masks=tuple(masks),
        )


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

    def __call__(self, x_ND: Tensor, ragged: Ragged, windows: _Windows) -> None:
        """The block's output, in place."""
        first_BD = self._attention.first_tokens(x_ND, ragged)
        tokens = windows.buffer[windows.front : windows.front + len(x_ND)]
        torch.addmm(self._bias, x_ND, self._qkv.T, out=tokens)
        _attend(windows, ragged, self._attention.heads)
        mixed_ND = windows.mixed[: len(x_ND)]
        mixed_ND.index_copy_(0, ragged.starts, first_BD)
        for mixed, part_ND in zip(_parts(mixed_ND), _parts(x_ND), strict=True):
            part_ND.copy_(self._behind(mixed, part_ND))

    def _behind(self, mixed_ND: Tensor, x_ND: Tensor) -> Tensor:
        """Everything that follows attention."""
        x_ND = _norm(self._mix(mixed_ND).add_(x_ND), self._norm)
        inner = self._inner(x_ND)
        torch.ops.aten.gelu_(inner)  # F.gelu would take a second piece of memory
        return _norm(self._outer(inner).add_(x_ND), self._last_norm)


def _attend(windows: _Windows, ragged: Ragged, heads: int) -> None:
    """Fill `windows.mixed` from `windows.buffer`."""
    buffer, block, turns = windows.buffer, ragged.block, windows.turns
    hidden = windows.mixed.shape[1]
    size, row, columns = hidden // heads, 3 * hidden, ragged.keys.shape[1]
    mixed = windows.mixed.view(ragged.blocks, block, heads, size)
    far = buffer[:, hidden:].index_select(0, windows.far)
    for turn, mask in enumerate(windows.masks):
        count, corner, step = len(mask), turn * block * row, turns * block * row
        if not count:
            continue
        lent = buffer.as_strided((count, 2 * hidden), (step, 1), corner + hidden)
        kept = lent.clone()
        lent.copy_(far[turn::turns])
        strides = (step, size, row, 1)
        key = buffer.as_strided((count, heads, columns, size), strides, corner + hidden)
        value = buffer.as_strided((count, heads, columns, size), strides, corner + 2 * hidden)
        query = buffer.as_strided(
            (count, heads, block, size), strides, corner + windows.front * row
        )
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed[turn::turns] = found.transpose(1, 2)
        lent.copy_(kept)


def _packed(dense: nn.Linear) -> PackedLinear:
    return PackedLinear(dense.weight, dense.bias)


def _parts(x_ND: Tensor) -> tuple[Tensor, ...]:
    return torch.split(x_ND, _ROWS)


def _norm(x_ND: Tensor, norm: nn.LayerNorm) -> Tensor:
    return F.layer_norm(x_ND, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
