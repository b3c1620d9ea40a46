"""`kd-teacher pretrain | tune | evaluate | import`: teachers worth asking, from the command line. Thin."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import torch
import typer

from cache.dataset import open_dataset
from cache.errors import UsageError
from pipeline import console, teach, teach_unim2rec
from pipeline.config import check_finite, find_dataset, tuned_folder
from pipeline.metrics import CUTOFFS
from pipeline.teach import CHECKPOINT, evaluate_teacher, import_official
from pipeline.teach_unim2rec import Modalities
from teachers.folder import CONFIG
from teachers.images import Pictures
from teachers.pretrain import Augmentation
from teachers.registry import load_teacher
from teachers.text import TextSettings
from teachers.trainer import Recipe, bfloat16_is_fast

app = typer.Typer(
    name="kd-teacher",
    help="Make teachers: pre-train, tune on your data, judge, bring official weights in.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

_METRICS = [f"{name}@{k}" for name in ("recall", "ndcg") for k in CUTOFFS]
_RECIPE, _TEXT, _VIEW = Recipe(), TextSettings(), Augmentation()

Kind: TypeAlias = Literal["unisrec", "unim2rec"]
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
    str, typer.Option(help="Text encoder: minilm, a local folder, or a hub name.")
]
PoolingOption = Annotated[
    Literal["mean", "cls"], typer.Option(help="How a text's token vectors become one.")
]
WhitenOption = Annotated[
    bool, typer.Option("--whiten/--no-whiten", help="Whiten the text vectors before the adaptor.")
]
SeedOption = Annotated[int, typer.Option(help="Of everything random.", min=0, max=2**31 - 1)]
RateOption = Annotated[float, typer.Option(help="Learning rate of Adam.", min=0)]
DropoutOption = Annotated[float, typer.Option(help="Inside the transformer.", min=0, max=0.99)]
SizeOption = Annotated[int, typer.Option(help="Targets in a step.", min=2)]
Bfloat16Option = Annotated[
    bool | None,
    typer.Option(
        "--bfloat16/--no-bfloat16",
        help="Matrix products in bfloat16; by default where the hardware has it.",
    ),
]
ThreadsOption = Annotated[
    int, typer.Option(help="Processor threads; 0 takes torch's choice.", min=0)
]


@app.command("pretrain", short_help="Pre-train a teacher on source domains.")
def pretrain_command(
    teacher: TeacherArgument,
    data: Annotated[list[Path], typer.Option(help="A source domain's dataset; repeat it.")],
    out: Annotated[Path | None, typer.Option(help="By default pretrained/<teacher>.")] = None,
    text: TextOption = _TEXT.model,
    pooling: PoolingOption = _TEXT.pooling,
    image_vectors: ImageVectorsOption = None,
    pictures: PicturesOption = None,
    image: ImageOption = None,
    whiten: WhitenOption = True,
    word_drop: Annotated[
        float, typer.Option(help="Share of words dropped in the second view.", min=0.01, max=0.9)
    ] = 0.15,
    item_drop: Annotated[
        float, typer.Option(help="Share of items dropped in the second view.", min=0, max=0.9)
    ] = _VIEW.item_drop_ratio,
    epochs: Annotated[int, typer.Option(help="Passes over the sources.", min=1)] = 10,
    limit: Annotated[
        int | None, typer.Option(help="At most so many instances an epoch.", min=2)
    ] = None,
    batch_size: SizeOption = 2048,
    learning_rate: RateOption = _RECIPE.learning_rate,
    dropout: DropoutOption = 0.2,
    seed: SeedOption = 0,
    bfloat16: Bfloat16Option = None,
    threads: ThreadsOption = 0,
) -> None:
    """Pre-train a teacher on several source domains that are not the target."""
    check_finite(
        word_drop=word_drop, item_drop=item_drop, learning_rate=learning_rate, dropout=dropout
    )
    device = _device(threads)
    folder = out or Path("pretrained") / teacher
    known = (folder / CONFIG).is_file()
    texts = TextSettings(model=text, pooling=pooling)
    modalities = _modalities(teacher, texts, None, image_vectors, pictures, image)
    with _progress(folder) as report:
        datasets = [open_dataset(path, deep=True) for path in data]
        shared: dict[str, Any] = {
            "whiten": whiten,
            "word_drop": word_drop,
            "augmentation": Augmentation(item_drop_ratio=item_drop),
            "architecture": {"dropout": dropout, "attention_dropout": dropout},
            "recipe": Recipe(
                epochs=epochs,
                patience=epochs,
                batch_size=batch_size,
                learning_rate=learning_rate,
                seed=seed,
                bfloat16=_bfloat16(bfloat16, device),
            ),
            "limit": limit,
            "device": device,
            "report": report,
        }
        if modalities is None:
            config = teach.pretrain(datasets, folder, text=texts, **shared)
        else:
            both = [(dataset, modalities) for dataset in datasets]
            config = teach_unim2rec.pretrain(both, folder, **shared)
    losses = config["losses"]
    console.say(
        f"{folder}: {console.count(config['epochs'], 'epoch')}, loss {losses[0]:.3f} to "
        f"{losses[-1]:.3f}{', pre-trained before' if known else ''}"
    )
    console.hint(f"kd-teacher tune {teacher} --from {folder} --data DATA")


@app.command("tune", short_help="Tune a teacher on the target domain.")
def tune_command(
    teacher: TeacherArgument,
    data: Annotated[
        Path | None, typer.Option(help="The target's dataset; by default the only one in data/.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="By default tuned/<dataset's name>/<teacher>.")
    ] = None,
    start: Annotated[
        Path | None, typer.Option("--from", help="A pre-trained teacher to start from.")
    ] = None,
    mode: Annotated[
        Literal["inductive", "transductive"],
        typer.Option(help="Texts alone, or texts and an embedding of each item's id."),
    ] = "transductive",
    freeze_encoder: Annotated[
        bool,
        typer.Option(
            "--freeze-encoder/--no-freeze-encoder",
            help="Keep the pre-trained transformer as it is.",
        ),
    ] = False,
    text: TextOption = _TEXT.model,
    pooling: PoolingOption = _TEXT.pooling,
    vectors: VectorsOption = None,
    image_vectors: ImageVectorsOption = None,
    pictures: PicturesOption = None,
    image: ImageOption = None,
    whiten: WhitenOption = True,
    epochs: Annotated[int, typer.Option(help="At most.", min=1)] = _RECIPE.epochs,
    patience: Annotated[
        int, typer.Option(help="Epochs without better validation NDCG@10, then stop.", min=1)
    ] = _RECIPE.patience,
    batch_size: SizeOption = _RECIPE.batch_size,
    learning_rate: RateOption = _RECIPE.learning_rate,
    weight_decay: Annotated[
        float, typer.Option(help="L2 inside Adam.", min=0)
    ] = _RECIPE.weight_decay,
    dropout: DropoutOption = 0.5,
    adaptor_dropout: Annotated[
        float, typer.Option(help="On the text vectors.", min=0, max=0.99)
    ] = 0.2,
    seed: SeedOption = 0,
    bfloat16: Bfloat16Option = None,
    threads: ThreadsOption = 0,
) -> None:
    """Tune a teacher on the target domain and print how well it ranks."""
    check_finite(
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        dropout=dropout,
        adaptor_dropout=adaptor_dropout,
    )
    device = _device(threads)
    where = find_dataset(data, "kd-teacher tune")
    folder = out or Path("tuned") / where.resolve().name / teacher
    known = (folder / CONFIG).is_file()
    texts = TextSettings(model=text, pooling=pooling)
    modalities = _modalities(teacher, texts, vectors, image_vectors, pictures, image)
    with _progress(folder) as report:
        dataset = open_dataset(where, deep=True)
        shared: dict[str, Any] = {
            "whiten": whiten,
            "start": start,
            "transductive": mode == "transductive",
            "freeze_encoder": freeze_encoder,
            "architecture": {
                "dropout": dropout,
                "attention_dropout": dropout,
                "adaptor_dropout": adaptor_dropout,
            },
            "recipe": Recipe(
                epochs=epochs,
                patience=patience,
                batch_size=batch_size,
                learning_rate=learning_rate,
                weight_decay=weight_decay,
                seed=seed,
                bfloat16=_bfloat16(bfloat16, device),
            ),
            "device": device,
            "report": report,
        }
        if modalities is None:
            config = teach.tune(dataset, folder, text=texts, vectors=vectors, **shared)
        else:
            config = teach_unim2rec.tune(dataset, folder, modalities=modalities, **shared)
    rows = {"valid": config["validation"], "test": config["test"]}
    length = console.count(config["epochs"], "epoch")
    _print(f"{folder}: {mode}, {length}{', tuned before' if known else ''}", rows)
    store = Path("cache") / where.resolve().name
    if not store.is_dir():
        console.hint(f"kd-cache plan --data {where}")
    elif out is None:
        console.hint(f"kd-cache build --teacher {teacher} --cache {store}")
    else:
        console.hint(f"kd-cache build --teacher {folder} --cache {store}")


@app.command(short_help="Judge a tuned teacher by ranking all items.")
def evaluate(
    teacher: Annotated[str, typer.Argument(help="A tuned teacher: its name, or its folder.")],
    data: Annotated[
        Path | None, typer.Option(help="The dataset; by default the only one in data/.")
    ] = None,
) -> None:
    """Rank all items for every user with a tuned teacher and print Recall and NDCG."""
    where = find_dataset(data, "kd-teacher evaluate")
    asked = load_teacher(tuned_folder(teacher, where))
    dataset = open_dataset(where, deep=True)
    rows = {}
    for part in ("valid", "test"):
        users, rows[part] = evaluate_teacher(asked, dataset, part)
    _print(f"{asked.name}: {users:,} users of {where} among all {dataset.num_items:,} items", rows)


@app.command("import", short_help="Bring an official checkpoint in.")
def import_command(
    file: Annotated[Path, typer.Argument(help="An official checkpoint, UniSRec-FHCKM-300.pth.")],
    out: Annotated[Path, typer.Option(help="Where the teacher goes.")] = Path("pretrained/unisrec"),
) -> None:
    """Bring an official pre-trained checkpoint in; no code of the file ever runs."""
    if (out / "config.json").exists():
        raise UsageError(
            f"{out}: is already there; choose another --out, or remove it.", code="teacher.exists"
        )
    import_official(file, out)
    console.say(f"{out}: an official pre-trained teacher")
    console.hint(
        f"kd-teacher tune unisrec --from {out} --no-whiten --text bert-base-uncased --pooling cls"
    )


def _modalities(
    teacher: Kind,
    text: TextSettings,
    text_vectors: str | None,
    image_vectors: str | None,
    pictures: Path | None,
    image: str | None,
) -> Modalities | None:
    """Where a unim2rec's features come from; None for a unisrec, which has no eyes."""
    given = {"--image-vectors": image_vectors, "--pictures": pictures, "--image": image}
    if teacher == "unisrec":
        if seen := [name for name, value in given.items() if value is not None]:
            raise UsageError(
                f"{seen[0]} is of unim2rec, and unisrec reads texts alone; leave it away.",
                code="teacher.no_images",
            )
        return None
    if (pictures is None) != (image is None) or (pictures and image_vectors):
        raise UsageError(
            "--pictures and --image belong together, and --image-vectors stands in for both; "
            "give the two, or the one, or none for the dataset's own `image` vectors.",
            code="image.half_given",
        )
    seen_by = Pictures(model=image, folder=pictures) if pictures and image else None
    return Modalities(
        text=text,
        text_vectors=text_vectors,
        pictures=seen_by,
        image_vectors=None if seen_by else image_vectors or "image",
    )


@contextlib.contextmanager
def _progress(folder: Path) -> Iterator[console.Report]:
    """Progress of a training run, with a line for each epoch where it goes to a log."""
    begun = (folder / CHECKPOINT).is_file()
    if begun:
        console.note(f"{folder}: goes on from its last whole epoch")
    told = ""
    with console.progress(folder.name) as report:

        def watch(done: float, total: float, text: str = "") -> None:
            nonlocal told
            if text.startswith("loss ") and text != told:
                if told or not begun:  # what was told before the stop is not told again
                    console.log(f"{folder}: epoch {int(done)}, {text}")
                told = text
            report(done, total, text)

        yield watch


def _print(title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    console.table(
        title,
        ["part", *_METRICS],
        [[part, *(f"{metrics[name]:.4f}" for name in _METRICS)] for part, metrics in rows.items()],
    )


def _device(threads: int) -> str:
    if threads:
        torch.set_num_threads(threads)
    return "cuda" if torch.cuda.is_available() else "cpu"


def _bfloat16(asked: bool | None, device: str) -> bool:
    return bfloat16_is_fast(device) if asked is None else asked


def main() -> None:
    """Entry point of `kd-teacher`."""
    console.run(app, "kd-teacher")
