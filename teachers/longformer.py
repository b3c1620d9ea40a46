"""Longformer's encoder over ragged sequences: a sliding window, and one global token at the front of each.

Architecture of arXiv 2004.05150 with the parameter names of its public implementation, so that official weights load.
Post-norm blocks; a token sees half a window on either side and its sequence's first token through the local
projections, the first token sees everything through projections of its own. Of those, keys and values are never made:
a query is taken back through the key matrix and compared with the states themselves, and states are pooled before
they go through the value matrix. That is the same number, for 2 D H instead of 2 D^2 multiply-adds a token. Asked for
first tokens alone, the last block costs a few per cent of another. Legend: N tokens, B sequences, D width, H heads, E
= D / H, Q queries and C keys of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoder.dropout import Dropout, dropout
from encoder.products import rowwise
from teachers.ragged import Ragged

__all__ = ["Block", "Longformer", "windows"]


class Longformer(nn.Module):
    """Stacked blocks `layer.{i}`.

    Args:
        hidden: D, a multiple of `heads`.
        inner: width inside the feed-forward.
        dropout: on the outputs of attention and feed-forward.
        attention_dropout: on attention weights.
        eps: of the layer norms.
    """

    def __init__(
        self,
        *,
        hidden: int,
        layers: int,
        heads: int,
        inner: int,
        dropout: float,
        attention_dropout: float,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            Block(hidden, heads, inner, dropout, attention_dropout, eps) for _ in range(layers)
        )

    def forward(self, x_ND: Tensor, ragged: Ragged, first_only: bool = False) -> Tensor:
        """[N, D] to [N, D], or to [B, D] with `first_only`."""
        blocks = list(self.layer)
        for block in blocks[:-1]:
            x_ND = block(x_ND, ragged, False)
        out: Tensor = blocks[-1](x_ND, ragged, first_only)
        return out


class Block(nn.Module):
    """One block."""

    def __init__(
        self,
        hidden: int,
        heads: int,
        inner: int,
        dropout: float,
        attention_dropout: float,
        eps: float,
    ) -> None:
        super().__init__()
        self.attention = _Attention(hidden, heads, dropout, attention_dropout, eps)
        self.intermediate = _Inner(hidden, inner)
        self.output = _Residual(inner, hidden, dropout, eps)

    def forward(self, x_ND: Tensor, ragged: Ragged, first_only: bool) -> Tensor:
        """[N, D] to [N, D], or to [B, D]."""
        x_ND = self.attention(x_ND, ragged, first_only)
        out: Tensor = self.output(self.intermediate(x_ND), x_ND)
        return out


class _Inner(nn.Module):
    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, inner)

    def forward(self, x_ND: Tensor) -> Tensor:
        return rowwise(F.gelu, self.dense(x_ND))


class _Residual(nn.Module):
    def __init__(self, width: int, hidden: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=eps)
        self.dropout = Dropout(dropout)

    def forward(self, inner_NI: Tensor, x_ND: Tensor) -> Tensor:
        out: Tensor = self.LayerNorm(self.dropout(self.dense(inner_NI)) + x_ND)
        return out


class _Attention(nn.Module):
    def __init__(
        self, hidden: int, heads: int, dropout: float, attention_dropout: float, eps: float
    ) -> None:
        super().__init__()
        self.self = SelfAttention(hidden, heads, attention_dropout)
        self.output = _Residual(hidden, hidden, dropout, eps)

    def forward(self, x_ND: Tensor, ragged: Ragged, first_only: bool) -> Tensor:
        mixed_ND = self.self.first_tokens(x_ND, ragged)
        if first_only:
            x_ND = x_ND.index_select(0, ragged.starts)
        else:
            local_ND = self.self.local(x_ND, ragged)
            mixed_ND = local_ND.index_copy(0, ragged.starts, mixed_ND.to(local_ND.dtype))
        out: Tensor = self.output(mixed_ND, x_ND)
        return out


class SelfAttention(nn.Module):
    """Local attention of all tokens, and the first tokens' attention to everything."""

    def __init__(self, hidden: int, heads: int, attention_dropout: float) -> None:
        super().__init__()
        if hidden % heads:
            raise ValueError(f"hidden {hidden} is not a multiple of heads {heads}")
        self.heads = heads
        self.rate = attention_dropout
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.query_global = nn.Linear(hidden, hidden)
        self.key_global = nn.Linear(hidden, hidden)
        self.value_global = nn.Linear(hidden, hidden)

    def fused(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of one product for queries, keys and values of local attention."""
        parts = (self.query, self.key, self.value)
        return torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts])

    def local(self, x_ND: Tensor, ragged: Ragged) -> Tensor:
        """[N, D]; the rows of first tokens mean nothing."""
        tokens, hidden = x_ND.shape
        placed = x_ND.index_select(0, ragged.places.view(-1))
        query, key, value = windows(F.linear(placed, *self.fused()), ragged, self.heads)
        rate = self.rate if self.training else 0.0
        mixed = _attention(query, key, value, ragged.mask, rate)
        return mixed.transpose(1, 2).reshape(-1, hidden)[:tokens]

    def first_tokens(self, x_ND: Tensor, ragged: Ragged) -> Tensor:
        """[B, D] what each sequence's first token gathers from all its tokens."""
        first_BD = x_ND.index_select(0, ragged.starts)
        heads = (self.heads, -1, x_ND.shape[1])
        query_HBE = self.query_global(first_BD).view(len(first_BD), self.heads, -1).transpose(0, 1)
        # q . (W x + b) = (W^T q) . x + q . b, and the softmax cancels what all tokens share
        asked_HBD = query_HBE @ self.key_global.weight.view(heads).to(query_HBE.dtype)
        asked_BHD = asked_HBD.transpose(0, 1) * query_HBE.shape[-1] ** -0.5
        pooled_BHD, mass_BH = self._pooled(x_ND, asked_BHD.to(x_ND.dtype), ragged)
        weight_HDE = self.value_global.weight.view(heads).transpose(1, 2)
        value_HBE = pooled_BHD.transpose(0, 1) @ weight_HDE.to(pooled_BHD.dtype)
        # dropout leaves weights that no longer sum to one
        bias_BD = mass_BH[:, :, None] * self.value_global.bias.view(self.heads, -1)
        return value_HBE.transpose(0, 1).reshape(first_BD.shape) + bias_BD.view(first_BD.shape)

    def _pooled(self, x_ND: Tensor, asked_BHD: Tensor, ragged: Ragged) -> tuple[Tensor, Tensor]:
        """([B, H, D], [B, H]) states averaged by attention, and the attention's sum."""
        rate = self.rate if self.training else 0.0
        if ragged.grids:
            found = [
                _pool(x_ND[grid.tokens], asked_BHD[grid.members], grid.inside, rate)
                for grid in ragged.grids
            ]
        else:
            pieces = torch.split(x_ND, [count * length for count, length in ragged.runs])
            asked = torch.split(asked_BHD, [count for count, _ in ragged.runs])
            found = [
                _pool(piece.view(*run, -1), one, None, rate)
                for piece, one, run in zip(pieces, asked, ragged.runs, strict=True)
            ]
        pooled_BHD, mass_BH = (torch.cat(parts) for parts in zip(*found, strict=True))
        if ragged.grids:
            back = torch.cat([grid.members for grid in ragged.grids]).argsort()
            return pooled_BHD[back], mass_BH[back]
        return pooled_BHD, mass_BH


def windows(qkv: Tensor, ragged: Ragged, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """[blocks, H, Q, E] queries and [blocks, H, C, E] keys and values, from [places, 3 D].

    Views: three neighbouring blocks are one stretch of memory.
    """
    placed = qkv.view(*ragged.places.shape, 3, heads, -1)
    query = placed[1:-1, 1:, 0].transpose(1, 2)
    key, value = placed[:, :, 1:].unfold(0, 3, 1).permute(2, 0, 3, 5, 1, 4).flatten(3, 4)
    return query, key, value


def _pool(
    x_BLD: Tensor, asked_BHD: Tensor, inside: Tensor | None, rate: float
) -> tuple[Tensor, Tensor]:
    scores_BHL = torch.bmm(asked_BHD, x_BLD.transpose(1, 2)).float()
    if inside is not None:
        scores_BHL = scores_BHL.masked_fill(~inside, -torch.inf)
    weights_BHL = scores_BHL.softmax(dim=-1)
    if rate:
        weights_BHL = dropout(weights_BHL, rate)
    return torch.bmm(weights_BHL.to(x_BLD.dtype), x_BLD), weights_BHL.sum(dim=-1)


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, rate: float) -> Tensor:
    """Masked attention of [blocks, H, Q, E] queries and [blocks, H, C, E] keys and values."""
    if rate == 0 or query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=rate)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return dropout(scores.masked_fill(~mask, -torch.inf).softmax(dim=-1), rate) @ value
