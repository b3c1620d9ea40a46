"""Options of `kd-student fit` that say which student and how large: which student knows them, what they come to.

One command line serves all students. What is given wins over `--preset`, and that over the student's canonical default. An
option that a student does not know is refused when it was typed; a default in kd.toml is for those students that know it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import typer

from cache.errors import UsageError
from pipeline import console
from pipeline.own_settings import made, own_settings
from student.registry import BUILT_IN, StudentKind

__all__ = [
    "DropoutOption",
    "HeadsOption",
    "HiddenOption",
    "InnerOption",
    "LayersOption",
    "Preset",
    "PresetOption",
    "SourceOption",
    "StudentOption",
    "configuration",
    "note_batches",
    "preset_value",
    "source_value",
]

Preset: TypeAlias = Literal["paper"]

StudentOption = Annotated[
    str, typer.Option(help=f"Which student: {', '.join(BUILT_IN)}, or a plug-in's name.")
]
PresetOption = Annotated[
    Preset | None,
    typer.Option(help="paper: 300 wide, 2 layers, 2 heads, dropout 0.1, weight decay 1e-5."),
]
HiddenOption = Annotated[
    int | None, typer.Option(help="Width of the item vectors; default the student's own.", min=1)
]
LayersOption = Annotated[
    int | None, typer.Option(help="Blocks or layers; default the student's own.", min=1)
]
HeadsOption = Annotated[
    int | None, typer.Option(help="Attention heads; default the student's own.", min=1)
]
InnerOption = Annotated[
    int | None,
    typer.Option(help="Width inside blocks or layers; default the student's own.", min=1),
]
DropoutOption = Annotated[
    float | None, typer.Option(help="Dropout rate; default the student's own.", min=0, max=0.99)
]

SourceOption = Annotated[
    Path | None,
    typer.Option(help="Dataset of another domain; recguru learns from it and the store's."),
]

_SIZES = ("hidden", "layers", "heads", "inner", "dropout")
#: section 4.1.4 of the paper
_PRESETS: dict[Preset, dict[str, Any]] = {
    "paper": {
        "hidden": 300,
        "layers": 2,
        "heads": 2,
        "dropout": 0.1,
        "learning_rate": 1e-3,
        "weight_decay": 1e-5,
        "batch_size": 512,
    }
}


def configuration(context: typer.Context, kind: StudentKind, preset: Preset | None) -> Any:
    """The student's configuration, from the command's parameters.

    Raises:
        UsageError: ``fit.other_option``, ``fit.bad_setting``, ``fit.bad_sizes``.
    """
    given = {name: context.params[name] for name in _SIZES}
    for name in given.keys() - kind.fields:
        if _source(context, name) == "COMMANDLINE":
            knows = sorted(kind.fields.intersection(_SIZES))
            raise UsageError(
                f"--{name} means nothing to {kind.name}, which knows "
                f"{', '.join(f'--{one}' for one in knows) or 'no such option'}; leave it away.",
                code="fit.other_option",
            )
    values = {
        name: value
        for name, value in (_PRESETS[preset] if preset else {}).items()
        if name in kind.fields.intersection(_SIZES)
    }
    values |= {
        name: value for name, value in given.items() if value is not None and name in kind.fields
    }
    values |= own_settings(
        context.params["set_"] or (), kind, _SIZES, typed=_source(context, "set_") == "COMMANDLINE"
    )
    config = made(kind, values)
    if {"hidden", "heads"} <= kind.fields and config.hidden % config.heads:
        raise UsageError(
            f"--hidden {config.hidden} is not a multiple of --heads {config.heads}.",
            code="fit.bad_sizes",
        )
    return config


def preset_value(context: typer.Context, preset: Preset | None, name: str) -> Any:
    """What a parameter comes to that every student knows."""
    if preset and _source(context, name) == "DEFAULT":
        return _PRESETS[preset].get(name, context.params[name])
    return context.params[name]


def note_batches(preset: Preset | None, batch_size: int) -> None:
    """Tell where batches are not the preset's: a plan's are made before."""
    wanted = _PRESETS[preset]["batch_size"] if preset else batch_size
    if batch_size != wanted:
        console.note(
            f"--preset {preset}: batches hold {batch_size} instances here, {wanted} in the {preset}; "
            f"`kd-cache plan --batch-size {wanted}` makes such"
        )


def source_value(context: typer.Context, kind: StudentKind) -> Path | None:
    """The other domain's dataset; none of kd.toml's for a student of one domain."""
    given: Path | None = context.params["source"]
    typed = _source(context, "source") == "COMMANDLINE"
    return given if typed or "source" in kind.fields else None


def _source(context: typer.Context, name: str) -> str | None:
    source = context.get_parameter_source(name)
    return source.name if source else None
