"""One step's loss, eqs. 6-10, from a batch that was made ready and a student of any of the three kinds of student/protocol.py.

Refuses in-batch cross-entropy together with teachers that are heard over all items. Legend: B histories, T slots, C columns
of the batch, V items, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cache.errors import UsageError
from encoder.packed import Packed
from student.losses import cross_entropy, distillation_loss, fused_loss
from student.permutations import list_loss
from student.protocol import AnyStudent, OwnLoss, Scorer, Student
from student.ready import Lists, Prepared
from student.schedule import TrainSettings

__all__ = ["lists_loss", "step_loss"]


def step_loss(model: AnyStudent, batch: Prepared, settings: TrainSettings) -> tuple[Tensor, ...]:
    """(total, base loss, divergence) of one batch, eqs. 6-10."""
    if isinstance(model, OwnLoss):
        return _sum(*model.own_loss(batch, logits=batch.target is not None), batch, settings)
    _refuse_mixed(batch, settings)
    if not isinstance(model, Student):
        return _sum(*_cross_entropy(model, batch, settings), batch, settings)
    users_TD = model.encode(batch.packed)
    table_VD = model.item_table()
    in_batch = settings.ce == "in-batch"
    target = batch.target
    # whether the target's columns are the very rows of the table
    own_columns = in_batch or (target is not None and target.all_items)
    return fused_loss(
        users_TD,
        table_VD.index_select(0, batch.items_C) if in_batch else table_VD,
        batch.columns_T if in_batch else batch.rows_T,
        items_C=None if own_columns else batch.items_C,
        target_TC=target.q_TC if target else None,
        entropy=target.entropy if target else 0.0,
        weight=settings.kd_weight if target else 0.0,
        kl=settings.kl,
        left_out_TV=batch.own_TC if in_batch else None,
    )


def _refuse_mixed(batch: Prepared, settings: TrainSettings) -> None:
    if settings.ce == "in-batch" and batch.all_items:
        raise UsageError(
            "--ce in-batch has no logits over all items, which --kd-items all needs; leave one away.",
            code="fit.mixed_items",
        )


def lists_loss(
    model: AnyStudent, batch: Prepared, lists: Lists, settings: TrainSettings
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(total, base loss, loss of the lists, logits) where teachers are joined by rank; a mean over slots each."""
    if isinstance(model, OwnLoss):
        base, logits = model.own_loss(batch, logits=True)
        if logits is None:
            raise TypeError("own_loss gave no logits though they were asked for")
    else:
        _refuse_mixed(batch, settings)
        scorer = _Products(model) if isinstance(model, Student) else model
        base, logits = _cross_entropy(scorer, batch, settings)
    base, logits = base.float(), logits.float()
    kd = list_loss(logits, lists.order_TL, lists.final_T)
    return base + settings.kd_weight * kd, base.detach(), kd.detach(), logits.detach()


class _Products:
    """A student of vectors as a `Scorer`; float32 even under autocast."""

    def __init__(self, model: Student) -> None:
        self._model = model

    def logits(self, packed: Packed, items_C: Tensor | None = None) -> Tensor:
        """[B, C] or [B, V]."""
        users_BD, table_VD = self._model.encode(packed), self._model.item_table()
        table_CD = table_VD if items_C is None else table_VD.index_select(0, items_C)
        with torch.autocast(users_BD.device.type, enabled=False):
            return users_BD.float() @ table_CD.float().T


def _cross_entropy(
    model: Scorer, batch: Prepared, settings: TrainSettings
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of scores that are no dot products, and those that the target has columns for."""
    if settings.ce == "in-batch":
        logits_TC = model.logits(batch.packed, batch.items_C).float()
        own_TC = batch.own_TC
        rivals_TC = logits_TC if own_TC is None else logits_TC.masked_fill(own_TC, -torch.inf)
        return cross_entropy(rivals_TC, batch.columns_T), logits_TC
    logits_TV = model.logits(batch.packed).float()
    loss = cross_entropy(logits_TV, batch.rows_T)
    if batch.all_items:
        return loss, logits_TV
    return loss, logits_TV.index_select(1, batch.items_C)


def _sum(
    base: Tensor, logits_TC: Tensor | None, batch: Prepared, settings: TrainSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. 10 from a base loss and logits."""
    base = base.float()
    if batch.target is None:
        return base, base.detach(), base.new_zeros(())
    if logits_TC is None:  # never on with the base loss alone
        raise TypeError("own_loss gave no logits though they were asked for")
    kd = distillation_loss(logits_TC.float(), batch.target.q_TC, settings.kl)
    return base + settings.kd_weight * kd, base.detach(), kd.detach()
