"""The losses, eqs. 6-10: cross-entropy of the base model and the divergence from the teachers' joined scores.

Legend: T slots, C columns of the batch, V items, D width. Every loss is a mean over slots. Pure functions on tensors:
use them in a loop of your own. `fused_loss` is the loop's hot path: the same numbers with one [T, V] matrix in memory; on a
processor the next call finds it there.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from encoder.room import Scratch, aligned

__all__ = ["Direction", "cross_entropy", "distillation_loss", "dot_products", "fused_loss"]

Direction: TypeAlias = Literal["teacher-student", "student-teacher"]

_SCRATCH = Scratch()


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
    """Turns the logits into their own gradient in place, and multiplies it out at once: the room is free again.

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
        own = items_C is None  # the batch's columns are the table's, and read as they stand
        width = columns if own and target_TC is not None else aligned(columns)
        room = _SCRATCH.room(slots, width, like=users_TD)
        logits = torch.mm(users_TD, table_VD.T, out=room[:, :columns])
        room[:, columns:] = -torch.inf  # no item: its probability is nothing
        batch_TC, table_CD, g_TC, kd = logits, table_VD, None, logits.new_zeros(())
        if target_TC is not None:
            if items_C is not None:
                # a small product: columns of a large matrix lie far apart, and collecting them takes three times as long
                table_CD = table_VD.index_select(0, items_C)
                batch_TC = users_TD @ table_CD.T
            logp = torch.log_softmax(batch_TC, dim=-1)
            g_TC, kd = _divergence(logp, target_TC, entropy, kl)
            g_TC.mul_(weight / slots)
        if left_out_TV is not None:
            logits.masked_fill_(left_out_TV, -torch.inf)
        probabilities = torch.softmax(room, dim=-1, out=room)
        # reported only: saturates at 87 nats, the gradient does not
        at_target = probabilities.gather(1, rows_T[:, None])
        ce = at_target.clamp(min=torch.finfo(logits.dtype).tiny).log_().mean().neg_()
        ctx.mark_non_differentiable(ce, kd)
        if learns:
            gradient = probabilities.div_(slots)[:, :columns]
            gradient.scatter_add_(1, rows_T[:, None], gradient.new_full((slots, 1), -1 / slots))
            if g_TC is not None and own:
                gradient.add_(g_TC)
            to_users, to_table = gradient @ table_VD, gradient.T @ users_TD
            if g_TC is not None and items_C is not None:
                # two small products are cheaper than a scatter into [T, V]
                to_users.addmm_(g_TC, table_CD)
                to_table.index_add_(0, items_C, g_TC.T @ users_TD)
            ctx.save_for_backward(to_users, to_table)
        return ce + weight * kd, ce, kd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        to_users, to_table = ctx.saved_tensors
        return to_users * upstream[0], to_table * upstream[0], *[None] * 8


def _divergence(
    logp_TC: Tensor, target_TC: Tensor, entropy: float, kl: Direction
) -> tuple[Tensor, Tensor]:
    """Gradient of the slots' divergences with respect to the logits, and their mean."""
    if kl == "student-teacher":
        p = logp_TC.exp()
        gap = logp_TC.sub_(target_TC.log())
        each = (p * gap).sum(dim=-1, keepdim=True)
        return p.mul_(gap.sub_(each)), each.mean()
    crossed = torch.dot(target_TC.flatten(), logp_TC.flatten())
    kd = -crossed / len(target_TC) - entropy
    return logp_TC.exp_().sub_(target_TC), kd
