"""A linear layer whose weights were laid out beforehand for the processor's matrix product; no gradients.

oneDNN keeps its own blocked copy of the weight and multiplies some 5% faster than `torch.mm` at width 768 (AMD,
AVX2). The operator is the one that torch's own compiler emits; it has no public name, so where this torch lacks it
the plain product stands in. Costs a second copy of the weight.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

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
        if not self._packed:
            return F.linear(x_NI, self._weight, self._bias)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x_NI, self._weight, self._bias, "none", [], ""
        )
        return out


def has_onednn() -> bool:
    """Whether this torch brings the two operators."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(available) and all(
        hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    )
