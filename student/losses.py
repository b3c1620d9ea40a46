"""The losses, eqs. 6-10: cross-entropy of the base model and the divergence from the teachers' joined scores.

Every loss is a mean over slots. Pure functions on tensors: use them in a loop of your own. `fused_loss` is the loop's hot
path: the same numbers with one [T, V] matrix in memory, on a processor at most 28 MB of it. Legend: T slots, b of them at a
time, f with rows of zeros, C columns of the batch, V items, W either and a few more, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from encoder.products import filled, product, widened

__all__ = ["Direction", "cross_entropy", "distillation_loss", "dot_products", "fused_loss"]

Direction: TypeAlias = Literal["teacher-student", "student-teacher"]

# logits in memory at a time: pieces above 32 MB are asked of the kernel afresh each time, which costs as much as a softmax
_BLOCK_ENTRIES = 7 << 20


def dot_products(users_TD: Tensor, table_CD: Tensor) -> Tensor:
    """[T, C] logits in float32 or wider even under autocast: as `fused_loss` has them."""
    wide = torch.promote_types(torch.promote_types(users_TD.dtype, table_CD.dtype), torch.float32)
    with torch.autocast(users_TD.device.type, enabled=False):
        return users_TD.to(wide) @ table_CD.to(wide).T


def cross_entropy(logits_TC: Tensor, columns_T: Tensor) -> Tensor:
    """Eq. 6 over whatever the columns are: the batch's items to the letter, or all items as the base model has it."""
    return F.cross_entropy(logits_TC, columns_T)


def distillation_loss(
    student_logits_TC: Tensor, target_TC: Tensor, kl: Direction = "teacher-student"
) -> Tensor:
    """Divergence between the student's softmax p (eq. 8) and the teachers' target q (eq. 7).

    Args:
        student_logits_TC: the student's scores of the batch's items, any scale.
        target_TC: q, each row summing to one, every entry above zero.
        kl: ``student-teacher`` is `sum p log(p / q)`, eq. 9 to the letter; ``teacher-student`` is `sum q log(q / p)`,
            Hinton's direction and the one that measures better.
    """
    logp = torch.log_softmax(student_logits_TC, dim=-1)
    logq = target_TC.log()
    if kl == "student-teacher":
        return (logp.exp() * (logp - logq)).sum(dim=-1).mean()
    return (target_TC * (logq - logp)).sum(dim=-1).mean()


def fused_loss(
    users_TD: Tensor,
    table_VD: Tensor,
    rows_T: Tensor,
    *,
    items_C: Tensor | None = None,
    target_TC: Tensor | None = None,
    entropy: float = 0.0,
    weight: float = 0.0,
    kl: Direction = "teacher-student",
    left_out_TV: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. 10: cross-entropy over the table's items plus `weight` times the divergence over the batch's.

    Computed in float32 or wider even under autocast: a logit of 20 has a rounding error of 0.06 in bfloat16.

    Args:
        users_TD: the student's vectors.
        table_VD: the student's item vectors: all items, or the batch's for eq. 6 to the letter.
        rows_T: the row of `table_VD` that is each slot's target.
        items_C: rows of `table_VD` that are the batch's columns; None if the table is just them.
        target_TC: q; None for the base model.
        entropy: mean entropy of q's rows, in nats; shifts the teacher-student divergence, never its gradient.
        left_out_TV: True where an item is no negative of the slot's cross-entropy; never its target.

    Returns:
        (total, cross-entropy, divergence): only the total carries a gradient. A slot counts for at most 87 nats of
        cross-entropy (708 in float64), where its probability underflows; its gradient is right there too.
    """
    wide = torch.promote_types(torch.promote_types(users_TD.dtype, table_VD.dtype), torch.float32)
    if target_TC is not None:
        target_TC = target_TC.to(wide)
    with torch.autocast(users_TD.device.type, enabled=False):
        total, ce, kd = _Fused.apply(
            users_TD.to(wide),
            table_VD.to(wide),
            rows_T,
            items_C,
            target_TC,
            entropy,
            weight,
            kl,
            left_out_TV,
            torch.is_grad_enabled(),
        )  # type: ignore[no-untyped-call]
    return total, ce, kd


class _Fused(torch.autograd.Function):
    """Turns the logits into their own gradient in place, a few slots at a time, and multiplies it out at once.

    What the teachers add to it concerns the batch's columns alone and stays a small matrix of its own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        users_TD: Tensor,
        table_VD: Tensor,
        rows_T: Tensor,
        items_C: Tensor | None,
        target_TC: Tensor | None,
        entropy: float,
        weight: float,
        kl: Direction,
        left_out_TV: Tensor | None,
        learns: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        slots, columns = len(users_TD), len(table_VD)
        kd, ce = users_TD.new_zeros(()), users_TD.new_zeros(())
        heard_WD, g_TW = table_VD, None
        if items_C is not None and target_TC is not None:
            # a small product: columns of a large matrix lie far apart, and collecting them takes three times as long
            heard_WD = widened(table_VD.index_select(0, items_C))
            logits_TW = product(filled(users_TD), heard_WD.T, _no_item(heard_WD, len(items_C)))[
                :slots
            ]
            g_TW, kd = _divergence(logits_TW, target_TC, entropy, kl)
        all_WD = widened(table_VD)
        no_item_W = _no_item(all_WD, columns)
        to_users, to_table_DW = torch.empty_like(users_TD), all_WD.new_zeros(all_WD.T.shape)
        for where in _blocks(slots, len(all_WD), users_TD.device):
            some_fD, rows_b1 = filled(users_TD[where]), rows_T[where, None]
            logits_fW = product(some_fD, all_WD.T, no_item_W)
            logits_bW = logits_fW[: len(rows_b1)]
            own_bW = None
            if items_C is None and target_TC is not None:  # the teachers' columns are the table's
                own_bW, part = _divergence(logits_bW, target_TC[where], entropy, kl)
                kd += part * (len(logits_bW) / slots)
            if left_out_TV is not None:
                logits_bW[:, :columns].masked_fill_(left_out_TV[where], -torch.inf)
            probabilities = torch.softmax(logits_bW, dim=-1, out=logits_bW)
            # reported only: saturates at 87 nats, the gradient does not
            at_target = probabilities.gather(1, rows_b1)
            ce -= at_target.clamp_(min=torch.finfo(logits_bW.dtype).tiny).log_().sum() / slots
            if learns:
                gradient = probabilities.div_(slots)
                gradient.scatter_add_(1, rows_b1, gradient.new_full(rows_b1.shape, -1 / slots))
                if own_bW is not None:
                    gradient.add_(own_bW, alpha=weight / slots)
                logits_fW[len(rows_b1) :] = 0
                to_users[where] = product(logits_fW, all_WD)[: len(rows_b1)]
                to_table_DW += product(some_fD.T, logits_fW)
        ctx.mark_non_differentiable(ce, kd)
        if learns:
            to_table = to_table_DW[:, :columns].T.contiguous()
            if g_TW is not None and items_C is not None:
                # two small products are cheaper than a scatter into [T, V]
                share = weight / slots
                g_fW = filled(g_TW)
                to_users.add_(product(g_fW, heard_WD)[:slots], alpha=share)
                heard_CD = product(filled(users_TD).T, g_fW)[:, : len(items_C)].T
                to_table.index_add_(0, items_C, heard_CD, alpha=share)
            ctx.save_for_backward(to_users, to_table)
        return ce + weight * kd, ce, kd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        to_users, to_table = ctx.saved_tensors
        return to_users * upstream[0], to_table * upstream[0], *[None] * 8


def _blocks(slots: int, columns: int, device: torch.device) -> Iterator[slice]:
    """Slots whose logits are in memory at a time."""
    blocks = -(-slots * columns // _BLOCK_ENTRIES) if device.type == "cpu" else 1
    rows = max(1, -(-slots // max(1, blocks)))
    for start in range(0, slots, rows):
        yield slice(start, start + rows)


def _no_item(table_WD: Tensor, columns: int) -> Tensor:
    """[W] what makes the probability of a column beyond the items nothing, added to logits."""
    return F.pad(table_WD.new_zeros(columns), (0, len(table_WD) - columns), value=-torch.inf)


def _divergence(
    logits_TW: Tensor, target_TC: Tensor, entropy: float, kl: Direction
) -> tuple[Tensor, Tensor]:
    """[T, W] the gradient of each slot's divergence with respect to its logits, nothing beyond C; and their mean.

    What lies beyond C in `logits_TW` is -inf: it belongs to no item.
    """
    slots, columns = target_TC.shape
    p_TW = torch.softmax(logits_TW, dim=-1)
    p_TC, logits_TC = p_TW[:, :columns], logits_TW[:, :columns]
    # log p = logits - shift; taken from the likeliest item, whose probability cannot underflow
    shift_T1 = logits_TW.amax(dim=-1, keepdim=True) - p_TW.amax(dim=-1, keepdim=True).log()
    if kl == "student-teacher":
        gap_TC = logits_TC - shift_T1 - target_TC.log()
        each_T1 = (p_TC * gap_TC).sum(dim=-1, keepdim=True)
        p_TC.mul_(gap_TC.sub_(each_T1))
        return p_TW, each_T1.mean()
    crossed = (target_TC * logits_TC).sum() - shift_T1.sum()
    p_TC.sub_(target_TC)
    return p_TW, -crossed / slots - entropy
