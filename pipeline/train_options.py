"""Options of `kd-student fit` that say how it trains, and the settings that they come to.

Combinations that contradict each other are refused before anything is opened. A plan's own batches are the default; those
drawn afresh each epoch are asked for by any of three options.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import torch
import typer

from cache.errors import UsageError
from cache.plan import Plan
from encoder.precision import bfloat16_is_fast
from pipeline.student_options import note_batches, preset_value
from student.registry import StudentKind
from student.schedule import Batching, TrainSettings

__all__ = [
    "DEFAULT",
    "BatchSizeOption",
    "BatchingOption",
    "Bfloat16Option",
    "CeOption",
    "CurriculumOption",
    "DeviceOption",
    "EpochsOption",
    "EpochsPerStageOption",
    "FreshBatchesOption",
    "KdWeightOption",
    "KlOption",
    "LearningRateOption",
    "PatienceOption",
    "ValidateEveryOption",
    "WeightDecayOption",
    "check_training",
    "the_device",
    "train_settings",
]

DEFAULT = TrainSettings()

KdWeightOption: TypeAlias = Annotated[
    float | None,
    typer.Option(
        help=f"Lambda of eq. 10, the weight of the teachers' part; default {DEFAULT.kd_weight:g}, or the "
        "student's own (lightgcn: 0.2).",
        min=0,
    ),
]
KlOption: TypeAlias = Annotated[
    Literal["teacher-student", "student-teacher"],
    typer.Option(help="Direction of the divergence; student-teacher is eq. 9 to the letter."),
]
CeOption: TypeAlias = Annotated[
    Literal["full", "in-batch"],
    typer.Option(help="Cross-entropy over all items, or over the batch's (eq. 6)."),
]
FreshBatchesOption: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--fresh-batches/--no-fresh-batches",
        help="Draw batches afresh each epoch (from factors), or take the plan's, the default.",
    ),
]
BatchSizeOption: TypeAlias = Annotated[
    int | None,
    typer.Option(help="Of fresh batches, which it asks for; by default the plan's.", min=1),
]
BatchingOption: TypeAlias = Annotated[
    Batching,
    typer.Option(
        help="Fresh batches: instances mixed, or all of a user's in one causal pass (sasrec).",
    ),
]
CurriculumOption: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--curriculum/--no-curriculum",
        help="Begin with algorithm 1's stages; by default the distilled do, the base and hetcomp do not.",
    ),
]
EpochsPerStageOption: TypeAlias = Annotated[
    int, typer.Option(help="Epochs in each curriculum stage.", min=1)
]
EpochsOption: TypeAlias = Annotated[int, typer.Option(help="Standard epochs at most.", min=1)]
PatienceOption: TypeAlias = Annotated[
    int, typer.Option(help="Epochs without better validation NDCG@10, then stop.", min=1)
]
ValidateEveryOption: TypeAlias = Annotated[
    int, typer.Option(help="Epochs from one validation to the next; the last has one.", min=1)
]
LearningRateOption: TypeAlias = Annotated[float, typer.Option(help="Of Adam.", min=0)]
WeightDecayOption: TypeAlias = Annotated[float, typer.Option(help="L2 inside Adam.", min=0)]
Bfloat16Option: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--bfloat16/--no-bfloat16",
        help="Matrix products in bfloat16, losses aside; by default on a GPU that has it.",
    ),
]
DeviceOption: TypeAlias = Annotated[
    str | None, typer.Option(help="Such as cpu or cuda; by default cuda where there is one.")
]


def check_training(given: dict[str, Any]) -> None:
    """Refuse options that contradict each other; `given` are the command's parameters.

    Raises:
        UsageError: ``fit.nothing_to_compare``, ``fit.planned_batches``, ``fit.mixed_items``.
    """
    if given["compare"] and not given["distill"]:
        raise UsageError(
            "--compare trains the base and the student, --no-distill the base alone; leave one away.",
            code="fit.nothing_to_compare",
        )
    by_user = given["batching"] == "user"
    if (given["batch_size"] or by_user) and given["fresh_batches"] is False:
        which = "--batching user makes" if by_user else "--batch-size is that of"
        raise UsageError(
            f"{which} fresh batches, which --no-fresh-batches forbids; leave one away.",
            code="fit.planned_batches",
        )
    if given["kd_items"] == "all" and given["ce"] == "in-batch":
        raise UsageError(
            "--ce in-batch has no logits over all items, which --kd-items all needs; leave one away.",
            code="fit.mixed_items",
        )


def train_settings(
    context: typer.Context, kind: StudentKind, plan: Plan, device: str
) -> TrainSettings:
    """What the command's parameters come to for a base with seed 0; tells where batches are not the preset's."""
    given = context.params
    preset = given["preset"]
    fresh = given["fresh_batches"] or given["batching"] == "user"
    batch_size = given["batch_size"] or (plan.batch_size if fresh else 0)
    note_batches(preset, batch_size or plan.batch_size)
    rounded = given["bfloat16"]
    if rounded is None:
        rounded = device.startswith("cuda") and bfloat16_is_fast(device)
    as_given = ("kl", "ce", "epochs_per_stage", "epochs", "patience", "validate_every")
    kd_weights = (given["kd_weight"], kind.kd_weight, DEFAULT.kd_weight)
    return TrainSettings(
        **{name: given[name] for name in as_given},
        kd_weight=next(weight for weight in kd_weights if weight is not None),
        batching=given["batching"],
        batch_size=batch_size,
        learning_rate=preset_value(context, preset, "learning_rate"),
        weight_decay=preset_value(context, preset, "weight_decay"),
        amp=rounded,
    )


def the_device(asked: str | None) -> str:
    """The device to train on.

    Raises:
        UsageError: ``fit.bad_device`` for one that is not here.
    """
    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        usable = torch.device(asked).type in ("cpu", "cuda")
        torch.zeros(1, device=asked)
    except (RuntimeError, AssertionError):  # what torch says of a device that is not there
        usable = False
    if not usable:
        raise UsageError(
            f"--device {asked}: is not here; cpu{', cuda' if torch.cuda.is_available() else ''} expected.",
            code="fit.bad_device",
        )
    return asked
