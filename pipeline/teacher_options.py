"""Options that the commands of `kd-teacher` share: their types and help, which kind of teacher knows them, what they come to.

One command line serves all kinds. An option that a kind does not know is refused when it was typed, so that nobody believes
it had an effect; a default in kd.toml is for those kinds that know it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import torch
import typer

from cache.errors import UsageError
from encoder.precision import bfloat16_is_fast
from pipeline.teach_recformer import Reading
from pipeline.teach_unim2rec import Modalities
from pipeline.threads import use_threads
from teachers.images import Pictures
from teachers.recformer_tokens import Limits
from teachers.text import TextSettings

Kind: TypeAlias = Literal["unisrec", "recformer", "unim2rec"]

TEXT, LIMITS = TextSettings(), Limits()

TeacherArgument = Annotated[Kind, typer.Argument(help="The kind of teacher.")]
VectorsOption = Annotated[
    str | None, typer.Option(help="A set of text vectors of the dataset instead, such as feat1CLS.")
]
ImageVectorsOption = Annotated[
    str | None,
    typer.Option(help="unim2rec: a set of image vectors of the dataset; by default `image`."),
]
PicturesOption = Annotated[
    Path | None,
    typer.Option(help="unim2rec: the folder that the items' image paths start from, instead."),
]
ImageOption = Annotated[
    str | None,
    typer.Option(help="unim2rec: vision model for --pictures, a local folder or a hub name."),
]
TextOption = Annotated[
    str, typer.Option(help="Language model: minilm, a local folder, or a hub name.")
]
PoolingOption = Annotated[
    Literal["mean", "cls"], typer.Option(help="How a text's token vectors become one.")
]
WhitenOption = Annotated[
    bool, typer.Option("--whiten/--no-whiten", help="Whiten the text vectors before the adaptor.")
]
AttributeTokensOption = Annotated[
    int, typer.Option(help="recformer: tokens read of an attribute, its name included.", min=2)
]
HistoryItemsOption = Annotated[
    int, typer.Option(help="recformer: items read of a history, the latest.", min=1)
]
HistoryTokensOption = Annotated[
    int, typer.Option(help="recformer: tokens read of a history, the latest items' first.", min=8)
]
SeedOption = Annotated[int, typer.Option(help="Of everything random.", min=0, max=2**31 - 1)]
Bfloat16Option = Annotated[
    bool | None,
    typer.Option(
        "--bfloat16/--no-bfloat16",
        help="Matrix products in bfloat16; by default where the hardware has it.",
    ),
]
TrajectoryOption = Annotated[
    int,
    typer.Option(
        help="Keep so many checkpoints on the way, as teachers beside it (for HetComp).",
        min=0,
        max=99,
    ),
]

_VECTORS: tuple[Kind, ...] = ("unisrec", "unim2rec")  # what reads frozen vectors
_ONLY: dict[str, tuple[Kind, ...]] = {
    **dict.fromkeys(("image_vectors", "pictures", "image"), ("unim2rec",)),
    **dict.fromkeys(("mode", "freeze_encoder", "adaptor_dropout", "keep_trajectory"), _VECTORS),
    **dict.fromkeys(("pooling", "vectors", "whiten", "word_drop", "item_drop"), _VECTORS),
    **dict.fromkeys(("attribute_tokens", "history_items", "history_tokens"), ("recformer",)),
    "tokenizer": ("recformer",),
    **dict.fromkeys(("second_epochs", "user_limit", "word_weight"), ("recformer",)),
}


@dataclass(frozen=True, slots=True)
class Pace:
    """How a kind of teacher is trained where nothing else is said."""

    batch_size: int
    learning_rate: float
    dropout: float

    def chosen(self, batch_size: int | None, rate: float | None, dropout: float | None) -> Pace:
        """What was asked for, and else this."""
        return Pace(
            self.batch_size if batch_size is None else batch_size,
            self.learning_rate if rate is None else rate,
            self.dropout if dropout is None else dropout,
        )


def check_known(context: typer.Context, teacher: Kind) -> None:
    """Refuse an option that was typed and that this kind of teacher does not know.

    Raises:
        UsageError: ``teacher.other_option``.
    """
    for name in context.params:
        source = context.get_parameter_source(name)
        if teacher not in _ONLY.get(name, (teacher,)) and source and source.name == "COMMANDLINE":
            other_names = {"user_limit": "--limit", "tokenizer": "--text"}
            option = other_names.get(name, f"--{name.replace('_', '-')}")
            raise UsageError(
                f"{option} is of {' and '.join(_ONLY[name])}, and means nothing to {teacher}; leave it away.",
                code="teacher.other_option",
            )


def modalities(
    text: TextSettings,
    text_vectors: str | None,
    image_vectors: str | None,
    pictures: Path | None,
    image: str | None,
) -> Modalities:
    """Where a unim2rec's features come from.

    Raises:
        UsageError: ``image.half_given``.
    """
    if (pictures is None) != (image is None) or (pictures and image_vectors):
        raise UsageError(
            "--pictures and --image belong together, and --image-vectors stands in for both; "
            "give the two, or the one, or none for the dataset's own `image` vectors.",
            code="image.half_given",
        )
    return Modalities(
        text=text,
        text_vectors=text_vectors,
        pictures=Pictures(model=image, folder=pictures) if pictures and image else None,
        image_vectors=image_vectors,
    )


def reading(
    text: str, attribute_tokens: int, history_items: int, history_tokens: int, dropout: float
) -> Reading:
    """What a recformer starts from and how much it reads."""
    limits = Limits(attribute=attribute_tokens, items=history_items, tokens=history_tokens)
    return Reading(text=text, limits=limits, dropout=dropout)


def device_for(threads: int) -> str:
    """The GPU if there is one; sets the processor threads."""
    use_threads(threads)
    return "cuda" if torch.cuda.is_available() else "cpu"


def in_bfloat16(asked: bool | None, device: str) -> bool:
    """Whether to train in bfloat16."""
    return bfloat16_is_fast(device) if asked is None else asked
