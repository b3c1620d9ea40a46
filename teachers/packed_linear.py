"""A linear layer whose weights were laid out beforehand for the processor's matrix product; no gradients.

oneDNN keeps its own blocked copy of the weight and multiplies faster than `torch.mm`: by some 5% with AVX2, 10% with
AVX-512 (AMD). The operator is the one that torch's own compiler emits; it has no public name, so where this torch lacks it
the plain product stands in. Costs a second copy of the weight.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from encoder.products import filled, has_onednn

__all__ = ["PackedLinear"]


class PackedLinear:
    """`x @ weight.T + bias` for float32 tensors on the processor.

    Args:
        weight_OI: [O, I]; later changes of it are not seen.
        bias_O: [O].
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor) -> None:
        self._weight = weight_OI.detach().contiguous()
        self._bias = bias_O.detach().clone()
        self._packed = has_onednn()
        if self._packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight)

    def __call__(self, x_NI: Tensor) -> Tensor:
        """[N, O] of a contiguous [N, I]."""
        return self._product(x_NI, "none")

    def gelu(self, x_NI: Tensor) -> Tensor:
        """[N, O] the exact GELU of the product, taken while it lies in the cache."""
        if self._packed:
            return self._product(x_NI, "gelu")
        out: Tensor = torch.ops.aten.gelu_(self(x_NI))  # F.gelu would take a second piece of memory
        return out

    def _product(self, x_NI: Tensor, then: str) -> Tensor:
        if not self._packed:
            return F.linear(x_NI, self._weight, self._bias)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            filled(x_NI), self._weight, self._bias, then, [], "none"
        )
        return out[: len(x_NI)]
