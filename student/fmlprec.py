"""FMLP-Rec (arXiv 2202.13556): blocks of a learnable filter in the frequency domain and a feed-forward, no attention.

A block multiplies the orthonormal real Fourier transform of the sequence by a complex weight, entry by entry, which is a
circular convolution over all `max_length` places. So here, and only here, a history is padded, at its beginning, and every
place of the first blocks is computed: that is the model. The last block filters for the last place alone, a weighted sum
over places, and only its feed-forward runs. Trained by the cross-entropy over all items as the other sequential students
are; its paper draws one negative. Legend: B histories, L places, D width, V items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cache.dataset import Dataset
from encoder.dropout import Dropout
from encoder.packed import Packed
from encoder.padded import lengths_of
from encoder.products import Linear
from student.protocol import Asked

__all__ = ["FMLPRec", "FMLPRecConfig", "make"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FMLPRecConfig:
    """Sizes and rates; the defaults are the paper's."""

    hidden: int = 64  #: D
    layers: int = 2
    inner: int | None = None  #: width inside the feed-forward; by default 4 * hidden
    dropout: float = 0.5
    max_length: int = 50  #: L, longest history


class FMLPRec(nn.Module):
    """The model; 64 * V + about 76,000 parameters at the default sizes. Names are those of its authors' checkpoints.

    Args:
        config: sizes and rates.
        num_items: V.
    """

    attends = False
    asks: ClassVar[tuple[Asked, ...]] = ("items",)

    def __init__(self, config: FMLPRecConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.item_embeddings = nn.Embedding(num_items, config.hidden)
        self.position_embeddings = nn.Embedding(config.max_length, config.hidden)
        self.LayerNorm = nn.LayerNorm(config.hidden, eps=1e-12)
        self.dropout = Dropout(config.dropout)
        self.item_encoder = _Encoder(config)
        self.apply(_init)

    def encode(self, packed: Packed) -> Tensor:
        """[B, D] the state at the last place of each history.

        Raises:
            IndexError: a history longer than `max_length`.
        """
        longest = self.config.max_length
        lengths_B = packed.positions[packed.last] + 1
        if int(lengths_B.max()) > longest:
            raise IndexError(
                f"a history of {int(lengths_B.max())} items, at most {longest} expected"
            )
        # the last item stands at the last place; an empty place has no item vector, but a position
        spare_B = torch.arange(1, len(lengths_B) + 1, device=lengths_B.device) * longest - lengths_B
        places_N = spare_B.repeat_interleave(lengths_B) + packed.positions
        items_ND = self.item_embeddings(packed.items)
        items = items_ND.new_zeros(len(lengths_B) * longest, items_ND.shape[1])
        items_BLD = items.index_copy(0, places_N, items_ND).view(-1, longest, items_ND.shape[1])
        return self._last(items_BLD)

    def padded(self, items_BL: Tensor, users_B: Tensor) -> Tensor:
        """[B, D] as `encode`."""
        longest = self.config.max_length
        first_B1 = longest - lengths_of(items_BL)[:, None]
        places_BL = torch.arange(longest, device=items_BL.device) - first_B1
        rows_BL = items_BL.gather(1, places_BL.clamp(min=0)).clamp(min=0)
        items_BLD = self.item_embeddings(rows_BL) * (places_BL >= 0)[:, :, None]
        return self._last(items_BLD)

    def _last(self, items_BLD: Tensor) -> Tensor:
        x_BLD = self.dropout(self.LayerNorm(items_BLD + self.position_embeddings.weight))
        out: Tensor = self.item_encoder(x_BLD)
        return out

    def item_table(self) -> Tensor:
        """[V, D]."""
        return self.item_embeddings.weight


def make(config: FMLPRecConfig, dataset: Dataset) -> FMLPRec:
    """A new one for a dataset."""
    return FMLPRec(config, dataset.num_items)


class _Encoder(nn.Module):
    def __init__(self, config: FMLPRecConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Block(config) for _ in range(config.layers))

    def forward(self, x_BLD: Tensor) -> Tensor:
        blocks = list(self.layer)
        for block in blocks[:-1]:
            x_BLD = block(x_BLD, False)
        out: Tensor = blocks[-1](x_BLD, True)
        return out


class _Block(nn.Module):
    def __init__(self, config: FMLPRecConfig) -> None:
        super().__init__()
        self.filterlayer = _Filter(config)
        self.intermediate = _FeedForward(config)

    def forward(self, x_BLD: Tensor, only_last: bool) -> Tensor:
        """[B, L, D], or [B, D] with `only_last`."""
        out: Tensor = self.intermediate(self.filterlayer(x_BLD, only_last))
        return out


class _Filter(nn.Module):
    def __init__(self, config: FMLPRecConfig) -> None:
        super().__init__()
        shape = (1, config.max_length // 2 + 1, config.hidden, 2)
        self.complex_weight = nn.Parameter(torch.randn(shape) * 0.02)
        self.LayerNorm = nn.LayerNorm(config.hidden, eps=1e-12)
        self.out_dropout = Dropout(config.dropout)

    def forward(self, x_BLD: Tensor, only_last: bool) -> Tensor:
        with torch.autocast(x_BLD.device.type, enabled=False):  # no transform in bfloat16
            mixed = _filtered(x_BLD.float(), self.complex_weight, only_last)
        if only_last:
            x_BLD = x_BLD[:, -1]
        out: Tensor = self.LayerNorm(self.out_dropout(mixed) + x_BLD)
        return out


def _filtered(x_BLD: Tensor, weight: Tensor, only_last: bool) -> Tensor:
    """The filter's output at every place, or at the last one alone."""
    length = x_BLD.shape[1]
    if torch.compiler.is_exporting():  # transforms in ONNX are slow, and off by 1e-5
        return _convolved(x_BLD, weight, only_last)
    response = torch.view_as_complex(weight)
    if only_last:
        # y[t] = sum over s of kernel[(t - s) mod L] x[s], at t = L - 1
        kernel_1LD = torch.fft.irfft(response, n=length, dim=1)
        last_BD: Tensor = (x_BLD * kernel_1LD.flip(1)).sum(dim=1)
        return last_BD
    spectrum = torch.fft.rfft(x_BLD, dim=1, norm="ortho") * response
    out: Tensor = torch.fft.irfft(spectrum, n=length, dim=1, norm="ortho")
    return out


def _convolved(x_BLD: Tensor, weight: Tensor, only_last: bool) -> Tensor:
    """The same by real sums: the kernel from cosines and sines, then the circular convolution as a product."""
    length = x_BLD.shape[1]
    angles_LK = torch.outer(torch.arange(length), torch.arange(length // 2 + 1)) * (
        2 * torch.pi / length
    )
    # all frequencies but the first, and in an even length the last, stand for two
    twice_K = torch.full((length // 2 + 1,), 2.0)
    twice_K[0] = 1.0
    if length % 2 == 0:
        twice_K[-1] = 1.0
    real_KD, imaginary_KD = weight[0, :, :, 0], weight[0, :, :, 1]
    kernel_LD = (
        (angles_LK.cos() * twice_K) @ real_KD - (angles_LK.sin() * twice_K) @ imaginary_KD
    ) / length
    if only_last:
        return (x_BLD * kernel_LD.flip(0)).sum(dim=1)
    places_L = torch.arange(length)
    circle_DLL = kernel_LD[(places_L[:, None] - places_L) % length].permute(2, 0, 1)
    mixed_DLB = circle_DLL @ x_BLD.permute(2, 1, 0)
    return mixed_DLB.permute(2, 1, 0)


class _FeedForward(nn.Module):
    def __init__(self, config: FMLPRecConfig) -> None:
        super().__init__()
        inner = config.inner or 4 * config.hidden
        self.dense_1 = Linear(config.hidden, inner)
        self.dense_2 = Linear(inner, config.hidden)
        self.LayerNorm = nn.LayerNorm(config.hidden, eps=1e-12)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        hidden = self.dense_2(F.gelu(self.dense_1(x)))
        out: Tensor = self.LayerNorm(self.dropout(hidden) + x)
        return out


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
