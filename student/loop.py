"""Stage two's training loop: curriculum stages, then standard rounds, from what is stored alone.

Which batches come in which order is a pure function of (seed, epoch), and every step seeds itself from (seed, step):
a run that was killed goes on from its checkpoint to the same weights, bit for bit (same machine, same threads). The loop
prints nothing and reads no clock. Refuses a loss that is no number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cache.dataset import Dataset
from cache.errors import TeacherError, UsageError
from cache.plan import Plan
from encoder.dropout import seed_step
from encoder.packed import Packed
from student.batches import Batches, FreshBatches, instances_of
from student.hetcomp import HetComp, HetCompSettings
from student.joined import Joined
from student.losses import Direction, cross_entropy, distillation_loss, fused_loss
from student.permutations import list_loss
from student.prepared import Lists, Prepared, prepared
from student.protocol import AnyStudent, OwnLoss, Scorer, Student
from student.state import EpochRecord, RunState
from student.targets import JoinSettings, Scores

__all__ = [
    "Batching",
    "TrainSettings",
    "epoch_batches",
    "make_optimizer",
    "schedule",
    "step_loss",
    "train",
]

CrossEntropy: TypeAlias = Literal["full", "in-batch"]
Batching: TypeAlias = Literal["instance", "user"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """What decides a training run, beside the student, the plan and the score sets."""

    join: JoinSettings | HetCompSettings | None = None  #: None trains the base model
    kd_weight: float = 5.0  #: lambda of eq. 10
    kl: Direction = "teacher-student"
    ce: CrossEntropy = "full"  #: softmax over all items, or eq. 6 to the letter
    curriculum: bool = True  #: algorithm 1's stages first
    epochs_per_stage: int = 1
    epochs: int = 200  #: at most so many standard epochs
    patience: int = 10  #: standard epochs without a better validation, then stop
    learning_rate: float = 1e-3  #: of Adam
    weight_decay: float = 0.0  #: L2 inside Adam
    seed: int = 0
    amp: bool = False  #: bfloat16 autocast of the encoder; the losses stay in float32
    batch_size: int = 0  #: of batches drawn afresh each epoch; 0 takes the plan's own batches
    batching: Batching = "instance"  #: of fresh ones: instances mixed, or a user's together


def schedule(
    settings: TrainSettings, plan: Plan, epoch: int
) -> tuple[str, NDArray[np.int64]] | None:
    """The name and the batches of an epoch, in order; None past the last.

    Stage r of algorithm 1 trains on buckets 1..r; later epochs take the standard rounds in turn.
    """
    staged = plan.num_buckets * settings.epochs_per_stage if settings.curriculum else 0
    if epoch >= staged + settings.epochs:
        return None
    if epoch < staged:
        stage = 1 + epoch // settings.epochs_per_stage
        name, batches = f"stage {stage}/{plan.num_buckets}", plan.stage(stage)
    else:
        number = 1 + (epoch - staged) % plan.num_rounds
        name, batches = f"round {number}", plan.round(number)
    bits = np.random.Philox(key=np.array([settings.seed, epoch], np.uint64))
    return name, batches[np.argsort(bits.random_raw(len(batches)), kind="stable")]


def epoch_batches(
    settings: TrainSettings, plan: Plan, epoch: int
) -> tuple[str, Batches, NDArray[np.int64]] | None:
    """The name of an epoch, where its batches come from and which of them in which order; None past the last.

    Fresh batches mix all instances that the epoch is about: of a stage, those of all its buckets.
    """
    now = schedule(settings, plan, epoch)
    if now is None or not settings.batch_size:
        return now and (now[0], plan, now[1])
    name, order = now
    fresh = FreshBatches(
        plan,
        instances_of(plan, order),
        settings.batch_size,
        seed=settings.seed,
        epoch=epoch,
        by_user=settings.batching == "user",
    )
    return "fresh" if name.startswith("round") else name, fresh, np.arange(len(fresh))


def step_loss(
    model: AnyStudent, batch: Prepared, settings: TrainSettings, workspace: Tensor | None = None
) -> tuple[Tensor, ...]:
    """(total, base loss, divergence) of one batch, eqs. 6-10; `workspace` as `fused_loss` has it."""
    if isinstance(model, OwnLoss):
        return _sum(*model.own_loss(batch, logits=batch.target is not None), batch, settings)
    if not isinstance(model, Student):
        return _sum(*_cross_entropy(model, batch, settings), batch, settings)
    users_TD = model.encode(batch.packed)
    table_VD = model.item_table()
    in_batch = settings.ce == "in-batch"
    target = batch.target
    _refuse_mixed(batch, settings)
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
        workspace=None if in_batch else workspace,
    )


def _refuse_mixed(batch: Prepared, settings: TrainSettings) -> None:
    if settings.ce == "in-batch" and batch.all_items:
        raise UsageError(
            "--ce in-batch has no logits over all items, which --kd-items all needs; leave one away.",
            code="fit.mixed_items",
        )


def _by_lists(
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


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Adam:
    """Adam, all parameters in one fused kernel."""
    return torch.optim.Adam(
        model.parameters(),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def train(
    model: AnyStudent,
    dataset: Dataset,
    plan: Plan,
    readers: Sequence[Scores],
    settings: TrainSettings,
    *,
    validate: Callable[[], float],
    state: RunState | None = None,
    optimizer: torch.optim.Adam | None = None,
    on_epoch: Callable[[RunState], None] = lambda state: None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    device: torch.device | str = "cpu",
    kept: Joined | None = None,
) -> RunState:
    """Train `model` until validation stops improving; its best weights are in the returned state.

    Args:
        validate: NDCG@10 of the model as it stands.
        state: where a former run stood; `model` and `optimizer` must hold what they held then.
        on_epoch: told after every epoch; the place to keep a checkpoint.
        on_step: told (steps done in this epoch, steps in this epoch).
        kept: holds the joined targets of epochs before this call, and those to come.

    Raises:
        TeacherError: ``model.not_finite`` when the loss is no number.
        UsageError: ``fit.own_loss`` for an in-batch cross-entropy of a student that has none.
        StoreError: a score set that is damaged or does not fit.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"a torch.nn.Module expected, found {type(model).__name__}")
    if isinstance(model, OwnLoss) and settings.ce != "full":
        raise UsageError(
            f"--ce {settings.ce}: {type(model).__name__} is trained by a loss of its own; leave it away.",
            code="fit.own_loss",
        )
    if isinstance(model, OwnLoss) and settings.join and settings.join.items == "all":
        raise UsageError(
            f"--kd-items all: {type(model).__name__} scores the items of a batch alone; leave it away.",
            code="fit.own_loss",
        )
    if settings.batching == "user" and not getattr(model, "causal_states", False):
        raise UsageError(
            f"--batching user: {type(model).__name__} gives no states along a sequence; leave it away.",
            code="fit.not_causal",
        )
    state = state or RunState()
    optimizer = optimizer or make_optimizer(model, settings)
    staged = plan.num_buckets * settings.epochs_per_stage if settings.curriculum else 0
    workspace = None
    # elsewhere than on a processor the allocator keeps such blocks at hand
    join, hetcomp = settings.join, None
    if isinstance(join, HetCompSettings):
        hetcomp, join = (
            HetComp(
                plan,
                readers,
                join,
                num_items=dataset.num_items,
                memory=state.memory,
                device=device,
            ),
            None,
        )
    elif torch.device(device).type == "cpu" and settings.ce == "full":
        most = min(settings.batch_size or plan.batch_size, plan.num_instances)
        workspace = torch.empty(most, dataset.num_items)
    kept = Joined() if kept is None else kept
    while not state.finished and (now := epoch_batches(settings, plan, state.epoch)):
        name, source, order = now
        model.train()
        sums = torch.zeros(2, device=device)
        slots = 0
        made = prepared(
            dataset,
            source,
            order,
            readers,
            join,
            device=device,
            tiled=getattr(model, "attends", True),
            own=settings.ce == "in-batch",
            lists=hetcomp.lists if hetcomp else None,
            kept=kept,
        )
        # closed whatever ends the epoch: a thread that is in the middle of a tensor when the program ends aborts it
        with contextlib.closing(made) as batches:
            for done, batch in enumerate(batches, start=1):
                seed_step(settings.seed, state.step)
                with torch.autocast(
                    torch.device(device).type, torch.bfloat16, enabled=settings.amp
                ):
                    if hetcomp is None or batch.lists is None:
                        total, ce, kd = step_loss(model, batch, settings, workspace)
                    else:
                        total, ce, kd, logits = _by_lists(model, batch, batch.lists, settings)
                        hetcomp.hear(batch.lists, logits, state.epoch)
                optimizer.zero_grad(set_to_none=True)
                total.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                sums += torch.stack([ce, kd]).float() * batch.slots
                slots += batch.slots
                state.step += 1
                on_step(done, len(order))
        ce_mean, kd_mean = (sums / slots).tolist()
        if not np.isfinite(ce_mean + kd_mean):
            raise TeacherError(
                f"epoch {state.epoch}: the loss is not a number; "
                "start again with a smaller --learning-rate.",
                code="model.not_finite",
            )
        if hetcomp is not None:
            name += f", teachers at {hetcomp.progress:.0%}"
            hetcomp.turn()
            state.memory = hetcomp.memory
        model.eval()
        value = validate()
        state.history.append(
            EpochRecord(
                epoch=state.epoch,
                stage=name,
                instances=slots,
                ce=ce_mean,
                kd=kd_mean,
                validation=value,
            )
        )
        if value > state.best:
            state.best, state.best_epoch, state.stale = value, state.epoch, 0
            state.best_weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
        elif state.epoch >= staged:
            state.stale += 1
        state.epoch += 1
        over = schedule(settings, plan, state.epoch) is None
        state.finished = over or state.stale >= settings.patience
        on_epoch(state)
    return state
