"""What decides a training run, and which batches come in which order: a pure function of (settings, plan, epoch).

Curriculum stages first (algorithm 1), then standard rounds; the plan's own batches, or fresh ones of another size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cache.plan import Plan
from student.batches import Batches, FreshBatches, instances_of
from student.hetcomp import HetCompSettings
from student.losses import Direction
from student.targets import JoinSettings

__all__ = ["Batching", "CrossEntropy", "TrainSettings", "epoch_batches", "schedule"]

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
    validate_every: int = 1  #: epochs from one validation to the next; the last is always validated
    learning_rate: float = 1e-3  #: of Adam
    weight_decay: float = 0.0  #: L2 inside Adam
    seed: int = 0
    amp: bool = False  #: bfloat16 autocast of the encoder; the losses stay in float32
    batch_size: int = 0  #: of batches drawn afresh each epoch; 0 takes the plan's own batches
    batching: Batching = "instance"  #: of fresh ones: instances mixed, or a user's together

    def staged(self, plan: Plan) -> int:
        """Epochs of the curriculum, before the standard ones."""
        return plan.num_buckets * self.epochs_per_stage if self.curriculum else 0

    def most(self, plan: Plan) -> int:
        """Epochs in all, where nothing stops the run earlier."""
        return self.staged(plan) + self.epochs


def schedule(
    settings: TrainSettings, plan: Plan, epoch: int
) -> tuple[str, NDArray[np.int64]] | None:
    """The name and the batches of an epoch, in order; None past the last.

    Stage r of algorithm 1 trains on buckets 1..r; later epochs take the standard rounds in turn.
    """
    staged = settings.staged(plan)
    if epoch >= settings.most(plan):
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
