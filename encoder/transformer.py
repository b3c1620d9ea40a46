"""A causal transformer over packed histories: post-norm blocks as in BERT, parameter names as in RecBole.

Linear layers, norms and feed-forwards see the packed tokens [N, D]; attention sees rectangles of like length.
With `only_last` the last block asks its queries, and runs what follows them, at last positions only: for one-vector-
a-history uses this halves a two-block encoder. Legend: N tokens, B histories, D width, G rows of a group, L longest, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoder.packed import Group, Packed

__all__ = ["CausalTransformer"]


class CausalTransformer(nn.Module):
    """Stacked blocks `layer.{i}` of attention and feed-forward.

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
        eps: float = 1e-12,
    ) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            _Block(hidden, heads, inner, dropout, attention_dropout, eps) for _ in range(layers)
        )

    def forward(self, x_ND: Tensor, packed: Packed, only_last: bool = False) -> Tensor:
        """[N, D] to [N, D], or to [B, D] with `only_last`."""
        blocks = list(self.layer)
        for block in blocks[:-1]:
            x_ND = block(x_ND, packed, False)
        out: Tensor = blocks[-1](x_ND, packed, only_last)
        return out


class _Block(nn.Module):
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
        self.multi_head_attention = _Attention(hidden, heads, dropout, attention_dropout, eps)
        self.feed_forward = _FeedForward(hidden, inner, dropout, eps)

    def forward(self, x_ND: Tensor, packed: Packed, only_last: bool) -> Tensor:
        out: Tensor = self.feed_forward(self.multi_head_attention(x_ND, packed, only_last))
        return out


class _Attention(nn.Module):
    def __init__(
        self, hidden: int, heads: int, dropout: float, attention_dropout: float, eps: float
    ) -> None:
        super().__init__()
        if hidden % heads:
            raise ValueError(f"hidden {hidden} is not a multiple of heads {heads}")
        self.heads = heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.dense = nn.Linear(hidden, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=eps)
        self.out_dropout = nn.Dropout(dropout)
        self.attention_dropout = attention_dropout

    def forward(self, x_ND: Tensor, packed: Packed, only_last: bool) -> Tensor:
        asked = x_ND.index_select(0, packed.last) if only_last else x_ND
        query = self.query(asked)
        # one matrix product for both: they see the same tokens
        key, value = F.linear(
            x_ND,
            torch.cat([self.key.weight, self.value.weight]),
            torch.cat([self.key.bias, self.value.bias]),
        ).chunk(2, dim=-1)
        mixed = torch.cat(
            [self._attend(query, key, value, group, only_last) for group in packed.groups]
        )
        places = torch.cat([_places(group, only_last) for group in packed.groups])
        mixed = torch.empty_like(mixed).index_copy(0, places, mixed)
        out: Tensor = self.LayerNorm(self.out_dropout(self.dense(mixed)) + asked)
        return out

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, group: Group, only_last: bool
    ) -> Tensor:
        """Attention inside one group: [kept tokens, D], or [G, D] with `only_last`."""
        rows, width = group.tokens.shape
        dropout = self.attention_dropout if self.training else 0.0
        flat = group.tokens.flatten()
        if width == 1 and not dropout:
            return value.index_select(0, flat)  # a softmax over one entry
        k, v = (self._heads(t.index_select(0, flat), rows, width) for t in (key, value))
        if not only_last:
            q = self._heads(query.index_select(0, flat), rows, width)
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
            mixed = out.transpose(1, 2).reshape(rows * width, -1)
            return mixed if group.kept is None else mixed.index_select(0, group.kept)
        q = self._heads(query.index_select(0, group.histories), rows, 1)
        mask = None
        if group.kept is not None:
            within = torch.arange(width, device=q.device)
            mask = (within <= group.last[:, None])[:, None, None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return out.reshape(rows, -1)

    def _heads(self, x: Tensor, rows: int, width: int) -> Tensor:
        """[G * L, D] to [G, H, L, D / H]."""
        return x.view(rows, width, self.heads, -1).transpose(1, 2)


class _FeedForward(nn.Module):
    def __init__(self, hidden: int, inner: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.dense_1 = nn.Linear(hidden, inner)
        self.dense_2 = nn.Linear(inner, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_ND: Tensor) -> Tensor:
        hidden = self.dense_2(F.gelu(self.dense_1(x_ND)))
        out: Tensor = self.LayerNorm(self.dropout(hidden) + x_ND)
        return out


def _places(group: Group, only_last: bool) -> Tensor:
    """Where the group's outputs belong among the packed tokens, or among the histories."""
    if only_last:
        return group.histories
    flat = group.tokens.flatten()
    return flat if group.kept is None else flat.index_select(0, group.kept)
