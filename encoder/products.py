"""Products of float32 matrices on the processor by oneDNN, where torch's own `mm` takes MKL.

MKL leaves AVX-512 alone on processors that are not Intel's: on an AMD EPYC of family 26 oneDNN multiplies two to three times
as fast, on others as fast or a tenth faster. Its operator takes rows or columns without gaps; it is the one that torch's own
compiler emits, and where this torch lacks it, or an exporter looks on, the plain product stands in. oneDNN makes a kernel for
each new shape, which costs half a millisecond and keeps a megabyte or two: `product` is for shapes that come back, `linear`,
`filled`, `rowwise` and `widened` fill up others. `product` has no gradient. Refuses nothing.
Legend: M, N, K sizes of a product; I numbers in, O out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = [
    "Linear",
    "filled",
    "has_onednn",
    "linear",
    "product",
    "rowwise",
    "slopes_of_weight",
    "widened",
]

_COLUMNS = 64
_STEP = 32  #: rows
# of a weight's slopes, summed over at once: what oneDNN lays out anew stays in the cache
_ROWS = 1 << 10


def product(a_MK: Tensor, b_KN: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """[M, N] `a @ b`, and the bias added; without a way back."""
    if _goes_to_onednn(a_MK) and b_KN.dtype == torch.float32 and _dense(a_MK) and _dense(b_KN):
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            a_MK.detach(), b_KN.detach().T, bias_N, "none", [], "none"
        )
        return out
    return a_MK @ b_KN if bias_N is None else torch.addmm(bias_N, a_MK, b_KN)


def slopes_of_weight(slopes_MO: Tensor, x_MI: Tensor) -> Tensor:
    """[O, I] of the weight of a linear layer, from the slopes of what it gave; contiguous, without a way back."""
    if not _goes_to_onednn(x_MI):
        return slopes_MO.T @ x_MI
    narrow = x_MI.shape[1] < slopes_MO.shape[1]  # the wide one is laid out faster as the second
    first, second = (x_MI, slopes_MO) if narrow else (slopes_MO, x_MI)
    found = first.new_zeros(first.shape[1], second.shape[1])
    for start in range(0, len(x_MI), _ROWS):
        found += product(first[start : start + _ROWS].T, second[start : start + _ROWS])
    return found.T.contiguous() if narrow else found


def widened(table_VD: Tensor) -> Tensor:
    """[V, D] or [V] with rows of zeros up to a multiple of 64, for products whose rows are as long.

    Such a product of narrow vectors is mostly writing: rows that begin anywhere in a cache line take twice to three times
    as long. And batches with as many columns each as they have items are served by a few kernels.
    """
    missing = -len(table_VD) % _COLUMNS
    return F.pad(table_VD, (0, 0) * (table_VD.dim() - 1) + (0, missing)) if missing else table_VD


def filled(x_MI: Tensor) -> Tensor:
    """[M or more, I] with rows of zeros up to a number that comes back: at most 16 numbers between one and its double."""
    if not _meets_onednn(x_MI):
        return x_MI
    rows = len(x_MI)
    step = max(_STEP, 1 << max(0, (rows - 1).bit_length() - 4))
    return _lengthened(x_MI, rows + -rows % step)


def rowwise(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """[..., O] what `function` makes of each row of [..., I], layers and activations, without dropout.

    torch's GELU is oneDNN's too, and its products of bfloat16 are: a kernel and a megabyte or more for each number of rows.
    """
    if not _meets_onednn(x):
        return function(x)
    rows = x.flatten(0, -2)
    return function(filled(rows))[: len(rows)].view(*x.shape[:-1], -1)


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
    """[..., O] of [..., I] as `F.linear`, with a way back; as many rows as a batch has tokens.

    Rows are filled up to one of a few numbers, so that a kernel made once serves most batches.
    """
    if not _goes_to_onednn(x) or torch.is_autocast_enabled("cpu"):
        return rowwise(lambda rows: F.linear(rows, weight_OI, bias_O), x)
    found: Tensor = _Linear.apply(x.flatten(0, -2), weight_OI, bias_O)  # type: ignore[no-untyped-call]
    return found.view(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """`nn.Linear` by :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., O] of [..., I]."""
        return linear(x, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MI: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
        rows_MI = filled(x_MI)
        ctx.save_for_backward(rows_MI, weight_OI)
        return product(rows_MI, weight_OI.T, bias_O.detach())[: len(x_MI)]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        (slopes_MO,) = slopes
        rows_MI, weight_OI = ctx.saved_tensors
        full_MO = _lengthened(slopes_MO, len(rows_MI))
        to_x = product(full_MO, weight_OI)[: len(slopes_MO)] if ctx.needs_input_grad[0] else None
        to_weight = slopes_of_weight(full_MO, rows_MI) if ctx.needs_input_grad[1] else None
        return to_x, to_weight, slopes_MO.sum(0) if ctx.needs_input_grad[2] else None


def _lengthened(x_MI: Tensor, rows: int) -> Tensor:
    missing = rows - len(x_MI)
    return F.pad(x_MI, (0, 0, 0, missing)) if missing else x_MI.contiguous()


def _dense(x: Tensor) -> bool:
    return x.is_contiguous() or x.T.is_contiguous()  # oneDNN's fast kernels know no gaps


def _goes_to_onednn(x: Tensor) -> bool:
    return x.dtype == torch.float32 and _meets_onednn(x)


def _meets_onednn(x: Tensor) -> bool:
    """Whether torch takes it there by itself, in some of its operations."""
    return (
        x.dtype in (torch.float32, torch.bfloat16)
        and x.device.type == "cpu"
        and x.numel() > 0
        and has_onednn()
        and not torch.compiler.is_compiling()
    )


@cache
def has_onednn() -> bool:
    """Whether this torch brings oneDNN and the two operators that are used of it."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(available) and all(
        hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    )
