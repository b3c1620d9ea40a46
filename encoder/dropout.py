"""Dropout that does not outweigh the layer it follows.

On a CPU torch draws a double a number (about 13 ns each); here one 64-bit draw serves eight, at 0.4 ns each. The rate is
thereby rounded to 1/256 and the kept values are scaled by what the rounded rate asks for, so the expectation is exact. On
other devices torch's own dropout runs. Draws from torch's default generator: `seed_step` rules it.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Dropout", "Rate", "dropout", "seed_step"]

_LEVELS = 256


def seed_step(seed: int, step: int) -> None:
    """Seed torch's default generator for one step of a run, so that a resumed run draws what it would have drawn.

    The processor's generator looks at the lowest 32 bits only. Runs start at multiples of the golden ratio there, which lie
    apart: a thousand seeds share no draw within a million steps.
    """
    number = (seed * 0x9E3779B1 + step) % (1 << 32)
    if _accelerated():
        torch.manual_seed(number)
    else:  # the same numbers a hundred times as quick: nobody is asked whether he is there
        torch.default_generator.manual_seed(number)


@cache
def _accelerated() -> bool:
    return torch.accelerator.is_available()


def dropout(x: Tensor, rate: float) -> Tensor:
    """Zero a share `rate` of x's entries and scale up the others; any shape."""
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    chosen = Rate(rate)
    if chosen.zeroed == 0:
        return x
    return x * chosen.kept(x).mul_(chosen.scale)


class Rate:
    """A rate in 256ths: the levels of a byte that are dropped, and what makes up for them."""

    def __init__(self, rate: float) -> None:
        self.zeroed = round(rate * _LEVELS)
        self.scale = _LEVELS / max(1, _LEVELS - self.zeroed)

    def kept(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """1 for each number of x that is kept and 0 for each that is dropped; x's shape and type."""
        words = x.new_empty((x.numel() + 7) // 8, dtype=torch.int64)
        words.random_(-(1 << 63), None, generator=generator)
        # levels from `zeroed` on become one, those below nothing, while they are bytes; booleans take four times as long
        levels = words.view(torch.uint8).clamp_(min=self.zeroed - 1).sub_(self.zeroed - 1)
        return levels.clamp_(max=1)[: x.numel()].view(x.shape).to(x.dtype)


class Dropout(nn.Module):
    """:func:`dropout` while training, nothing otherwise."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return dropout(x, self.rate) if self.training else x
