"""A transformer over packed histories, causal if they are: post-norm blocks as in BERT, parameter names as in RecBole.

Linear layers, norms and feed-forwards see the packed tokens [N, D]; attention sees tiles. With `only_last` the last block
goes on with last positions alone once attention is done: for one vector a history this nearly halves a two-block encoder.
Legend: N tokens, B histories, D width, H heads, W width of a tile.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoder.dropout import Dropout, dropout
from encoder.packed import Packed, Tiles
from encoder.products import Linear, linear, rowwise

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
        self.dense = Linear(hidden, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=eps)
        self.out_dropout = Dropout(dropout)
        self.attention_dropout = attention_dropout

    def forward(self, x_ND: Tensor, packed: Packed, only_last: bool) -> Tensor:
        # one matrix product for all three: they see the same tokens
        parts = (self.query, self.key, self.value)
        qkv = linear(x_ND, torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts]))
        mixed = torch.cat([self._attend(qkv, tiles) for tiles in packed.tiles])
        places = packed.untiled
        if only_last:
            places, x_ND = places[packed.last], x_ND[packed.last]
        out: Tensor = self.LayerNorm(
            self.out_dropout(self.dense(mixed.index_select(0, places))) + x_ND
        )
        return out

    def _attend(self, qkv: Tensor, tiles: Tiles) -> Tensor:
        """[tokens of these tiles, D]."""
        rectangle = qkv.index_select(0, tiles.tokens)
        heads = rectangle.view(-1, tiles.width, 3, self.heads, qkv.shape[1] // 3 // self.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        rate = self.attention_dropout if self.training else 0.0
        mixed = _attention(query, key, value, tiles.mask, rate)
        flat = mixed.transpose(1, 2).reshape(rectangle.shape[0], -1)
        return flat.index_select(0, tiles.places)


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, rate: float) -> Tensor:
    """Masked attention of [tiles, H, W, D / H] tensors."""
    if rate == 0 or query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=rate)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return dropout(scores.masked_fill(~mask, -torch.inf).softmax(dim=-1), rate) @ value


class _FeedForward(nn.Module):
    def __init__(self, hidden: int, inner: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.dense_1 = Linear(hidden, inner)
        self.dense_2 = Linear(inner, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=eps)
        self.dropout = Dropout(dropout)

    def forward(self, x_ND: Tensor) -> Tensor:
        out: Tensor = self.LayerNorm(self.dropout(rowwise(self._hidden, x_ND)) + x_ND)
        return out

    def _hidden(self, x_ND: Tensor) -> Tensor:
        out: Tensor = self.dense_2(F.gelu(self.dense_1(x_ND)))
        return out
