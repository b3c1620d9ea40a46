"""A perceptron's layers over rows of numbers, forth and back, written out: what DeepFM adds to a factorisation machine.

Dropout is as in encoder/dropout.py: units of what a layer is given become zero, and what makes up for them is put into the
layer's weights. A rectifier leaves zeros too, so that what it left tells the way back of both. Calls count here as much as
numbers do (a step is a few milliseconds of both): so there is one for each thing that happens. Refuses nothing: the shapes
are the caller's. Holds depth x W numbers a row between the two ways. Legend: N rows, F numbers of a row, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from encoder.dropout import Rate
from encoder.products import product, slopes_of_weight

__all__ = ["Layers", "rectified"]


class Layers:
    """The layers as one step sees them.

    Args:
        flat: weight and bias of each layer in turn, [W, F], [W], [W, W], ..., and last [1, W], [1].
        dropout: before each layer but the last, 0 where nothing is to be dropped.
    """

    def __init__(self, flat: Sequence[Tensor], dropout: float) -> None:
        self.rate = Rate(dropout if len(flat) > 2 else 0)
        self.weights = [weight * self.rate.scale for weight in flat[:-2:2]]
        self.biases = flat[1:-2:2]
        (self.last_W,), self.last_bias = flat[-2:]

    def forth(self, x_NF: Tensor, noise: torch.Generator | None = None) -> list[Tensor]:
        """What each layer is given and the last hidden one leaves, rectified: [N, F], [N, W], ..., dropped units zero.

        Args:
            x_NF: what the first layer is given, its units dropped already.
            noise: says which units are dropped; torch's default generator without it.
        """
        states = [x_NF]
        for place, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if place and self.rate.zeroed:
                states[-1].mul_(self.rate.kept(states[-1], noise))
            states.append(product(states[-1], weight.T, bias).relu_())
        return states

    def scores(self, states: Sequence[Tensor]) -> Tensor:
        """[N] what the last layer makes of them."""
        return torch.addmv(self.last_bias, states[-1], self.last_W)

    def back(self, states: Sequence[Tensor], given_N: Tensor, grads: Sequence[Tensor]) -> Tensor:
        """[N, F] slopes of what the first layer was given, from those of the scores; adds those of `flat` to `grads`."""
        ones_N = torch.ones_like(given_N)
        grads[-1].add_(given_N.sum())
        grads[-2][0].addmv_(states[-1].T, given_N)
        slopes = torch.outer(given_N, self.last_W)
        for place in range(len(self.weights) - 1, -1, -1):
            slopes = rectified(slopes, states[place + 1])
            grads[2 * place].add_(slopes_of_weight(slopes, states[place]), alpha=self.rate.scale)
            grads[2 * place + 1].addmv_(slopes.T, ones_N)
            slopes = product(slopes, self.weights[place])
        return slopes


def rectified(slopes: Tensor, state: Tensor) -> Tensor:
    """The slopes before the rectifier and the dropout, written over: nothing where the state is nothing."""
    found: Tensor = torch.ops.aten.threshold_backward.grad_input(
        slopes, state, 0, grad_input=slopes
    )
    return found
