"""`kd-teacher import`: an official checkpoint becomes a pre-trained teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cache.errors import UsageError
from pipeline import console, teach, teach_recformer
from pipeline.teacher_options import check_known
from teachers.folder import CONFIG
from teachers.recformer_weights import OFFICIAL_TOKENIZER

__all__ = ["import_command"]


def import_command(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(help="An official checkpoint: UniSRec-FHCKM-300.pth, recformer_ckpt.bin."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where the teacher goes; by default pretrained/<teacher>.")
    ] = None,
    teacher: Annotated[
        Literal["unisrec", "recformer"], typer.Option(help="Whose checkpoint it is.")
    ] = "unisrec",
    tokenizer: Annotated[
        str,
        typer.Option("--text", help="recformer: whose tokenizer, a local folder or a hub name."),
    ] = OFFICIAL_TOKENIZER,
) -> None:
    """Bring an official pre-trained checkpoint in; no code of the file ever runs."""
    check_known(context, teacher)
    folder = out or Path("pretrained") / teacher
    if (folder / CONFIG).exists():
        raise UsageError(
            f"{folder}: is already there; choose another --out, or remove it.",
            code="teacher.exists",
        )
    if teacher == "recformer":
        teach_recformer.import_official(file, folder, tokenizer=tokenizer)
        tuning = ""
    else:
        teach.import_official(file, folder)
        tuning = " --no-whiten --text bert-base-uncased --pooling cls"
    console.say(f"{folder}: an official pre-trained teacher")
    console.hint(f"kd-teacher tune {teacher} --from {folder}{tuning}")
