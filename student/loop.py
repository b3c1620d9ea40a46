"""Stage two's training loop: curriculum stages, then standard rounds, from what is stored alone.

Which batches come in which order is a pure function of (seed, epoch), and every step seeds itself from (seed, step):
a run that was killed goes on from its checkpoint to the same weights, bit for bit (same machine, same threads). The loop
prints nothing and reads no clock. Refuses a loss that is no number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cache.dataset import Dataset
from cache.errors import TeacherError, UsageError
from cache.plan import Plan
from encoder.dropout import seed_step
from student.hetcomp import HetComp, HetCompSettings
from student.kept import Kept
from student.prepared import prepared
from student.protocol import AnyStudent, OwnLoss
from student.ready import Prepared
from student.schedule import TrainSettings, epoch_batches
from student.state import EpochRecord, RunState
from student.steps import lists_loss, step_loss
from student.targets import Scores

__all__ = ["check_settings", "make_optimizer", "train"]


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
    kept: Kept | None = None,
) -> RunState:
    """Train `model` until validation stops improving; its best weights are in the returned state.

    Args:
        validate: NDCG@10 of the model as it stands.
        state: where a former run stood; `model` and `optimizer` must hold what they held then.
        on_epoch: told after every epoch; the place to keep a checkpoint.
        on_step: told (steps done in this epoch, steps in this epoch).
        kept: holds the batches of epochs before this call, and those to come.

    Raises:
        TeacherError: ``model.not_finite`` when the loss is no number.
        UsageError: what :func:`check_settings` refuses.
        StoreError: a score set that is damaged or does not fit.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"a torch.nn.Module expected, found {type(model).__name__}")
    check_settings(model, settings)
    state = state or RunState()
    join, hetcomp = settings.join, None
    if isinstance(join, HetCompSettings):
        hetcomp = HetComp(
            plan, readers, join, num_items=dataset.num_items, memory=state.memory, device=device
        )
        join = None
    learner = _Learner(
        model=model,
        optimizer=optimizer or make_optimizer(model, settings),
        settings=settings,
        hetcomp=hetcomp,
        device=torch.device(device),
    )
    kept = Kept() if kept is None else kept
    while not state.finished and (now := epoch_batches(settings, plan, state.epoch)):
        name, source, order = now
        model.train()
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
        # closed whatever ends the epoch, so that no thread goes on with what nobody waits for
        with contextlib.closing(made) as batches:
            ce, kd, slots = learner.epoch(batches, len(order), state, on_step)
        if hetcomp is not None:
            name += f", teachers at {hetcomp.progress:.0%}"
            hetcomp.turn()
            state.memory = hetcomp.memory
        model.eval()
        last = state.epoch + 1 == settings.most(plan)
        found = validate() if last or (state.epoch + 1) % settings.validate_every == 0 else None
        record = EpochRecord(
            epoch=state.epoch, stage=name, instances=slots, ce=ce, kd=kd, validation=found
        )
        state.take(record, model.state_dict(), staged=state.epoch < settings.staged(plan))
        state.finished = last or (found is not None and state.stale >= settings.patience)
        on_epoch(state)
    return state


def check_settings(model: AnyStudent, settings: TrainSettings) -> None:
    """Refuse settings that the student has no way to follow.

    Raises:
        UsageError: ``fit.own_loss`` for an in-batch cross-entropy, or teachers of all items, of a student that has none;
            ``fit.not_causal``.
    """
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Learner:
    """What stays the same from step to step."""

    model: AnyStudent
    optimizer: torch.optim.Adam
    settings: TrainSettings
    hetcomp: HetComp | None
    device: torch.device

    def epoch(
        self,
        batches: Iterable[Prepared],
        steps: int,
        state: RunState,
        on_step: Callable[[int, int], None],
    ) -> tuple[float, float, int]:
        """(base loss, divergence, slots) of an epoch: means over its slots; counts the steps in `state`."""
        sums_2 = torch.zeros(2, device=self.device)
        slots = 0
        for done, batch in enumerate(batches, start=1):
            seed_step(self.settings.seed, state.step)
            total, losses_2 = self._losses(batch, state.epoch)
            self._forget()
            total.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            sums_2 += losses_2.float() * batch.slots
            slots += batch.slots
            state.step += 1
            on_step(done, steps)
        ce, kd = (sums_2 / slots).tolist()
        if not np.isfinite(ce + kd):
            raise TeacherError(
                f"epoch {state.epoch}: the loss is not a number; "
                "start again with a smaller --learning-rate.",
                code="model.not_finite",
            )
        return ce, kd, slots

    def _forget(self) -> None:
        """No gradient: the optimizer's own `zero_grad` does the same and tells the profiler, 0.1 ms where FM's step is one."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _losses(self, batch: Prepared, epoch: int) -> tuple[Tensor, Tensor]:
        """What is minimised, and its two parts [2]."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.amp):
            if self.hetcomp is None or batch.lists is None:
                total, ce, kd = step_loss(self.model, batch, self.settings)
            else:
                total, ce, kd, logits = lists_loss(self.model, batch, batch.lists, self.settings)
                self.hetcomp.hear(batch.lists, logits, epoch)
        return total, torch.stack([ce, kd])
