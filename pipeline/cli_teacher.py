"""`kd-teacher pretrain | tune | evaluate`: teachers worth asking, from the command line; `import` is cli_import.py's. Thin."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cache.dataset import open_dataset
from pipeline import console, teach, teach_recformer, teach_unim2rec
from pipeline.cli_import import import_command
from pipeline.config import check_finite, find_dataset, tuned_folder
from pipeline.metrics import CUTOFFS
from pipeline.teach import CHECKPOINT, evaluate_teacher
from pipeline.teacher_options import (
    LIMITS,
    TEXT,
    AttributeTokensOption,
    Bfloat16Option,
    HistoryItemsOption,
    HistoryTokensOption,
    ImageOption,
    ImageVectorsOption,
    Kind,
    Pace,
    PicturesOption,
    PoolingOption,
    SeedOption,
    TeacherArgument,
    TextOption,
    TrajectoryOption,
    VectorsOption,
    WhitenOption,
    check_known,
    device_for,
    in_bfloat16,
    modalities,
    reading,
)
from pipeline.threads import ThreadsOption, use_threads
from pipeline.trajectory import tell_way
from teachers.folder import CONFIG
from teachers.pretrain import Augmentation
from teachers.registry import load_teacher
from teachers.text import TextSettings
from teachers.trainer import Recipe

app = typer.Typer(
    name="kd-teacher",
    help="Make teachers: pre-train, tune on your data, judge, bring official weights in.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

_METRICS = [f"{name}@{k}" for name in ("recall", "ndcg") for k in CUTOFFS]
_RECIPE, _VIEW = Recipe(), Augmentation()
_READER = Pace(batch_size=64, learning_rate=5e-5, dropout=0.1)
_TUNING: dict[Kind, Pace] = {
    **dict.fromkeys(("unisrec", "unim2rec"), Pace(1024, 1e-3, 0.5)),
    "recformer": _READER,
}
_PRETRAINING: dict[Kind, Pace] = {
    **dict.fromkeys(("unisrec", "unim2rec"), Pace(2048, 1e-3, 0.2)),
    "recformer": _READER,
}


@app.command("pretrain", short_help="Pre-train a teacher on source domains.")
def pretrain_command(
    context: typer.Context,
    teacher: TeacherArgument,
    data: Annotated[list[Path], typer.Option(help="A source domain's dataset; repeat it.")],
    out: Annotated[Path | None, typer.Option(help="By default pretrained/<teacher>.")] = None,
    text: TextOption = TEXT.model,
    pooling: PoolingOption = TEXT.pooling,
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
    attribute_tokens: AttributeTokensOption = LIMITS.attribute,
    history_items: HistoryItemsOption = LIMITS.items,
    history_tokens: HistoryTokensOption = LIMITS.tokens,
    word_weight: Annotated[
        float, typer.Option(help="recformer: weight of guessing masked words.", min=0)
    ] = 0.1,
    epochs: Annotated[int, typer.Option(help="Passes over the sources.", min=1)] = 10,
    limit: Annotated[
        int | None,
        typer.Option(help="At most so many instances an epoch; recformer: users.", min=2),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Targets in a step; by default 2048, recformer 64.", min=2),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of Adam; by default 0.001, recformer 0.00005.", min=0)
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(
            help="Inside the transformer; by default 0.2, recformer 0.1.", min=0, max=0.99
        ),
    ] = None,
    seed: SeedOption = 0,
    bfloat16: Bfloat16Option = None,
    threads: ThreadsOption = 0,
) -> None:
    """Pre-train a teacher on several source domains that are not the target."""
    pace = _PRETRAINING[teacher].chosen(batch_size, learning_rate, dropout)
    check_known(context, teacher)
    check_finite(
        word_drop=word_drop,
        item_drop=item_drop,
        word_weight=word_weight,
        learning_rate=pace.learning_rate,
        dropout=pace.dropout,
    )
    device = device_for(threads)
    folder = out or Path("pretrained") / teacher
    known = (folder / CONFIG).is_file()
    texts = TextSettings(model=text, pooling=pooling)
    features = modalities(texts, None, image_vectors, pictures, image)
    with _progress(folder) as report:
        datasets = [open_dataset(path, deep=True) for path in data]
        shared: dict[str, Any] = {
            "recipe": Recipe(
                epochs=epochs,
                patience=epochs,
                batch_size=pace.batch_size,
                learning_rate=pace.learning_rate,
                seed=seed,
                bfloat16=in_bfloat16(bfloat16, device),
            ),
            "limit": limit,
            "device": device,
            "report": report,
        }
        on_vectors: dict[str, Any] = {
            "whiten": whiten,
            "word_drop": word_drop,
            "augmentation": Augmentation(item_drop_ratio=item_drop),
            "architecture": {"dropout": pace.dropout, "attention_dropout": pace.dropout},
        }
        if teacher == "recformer":
            reads = reading(text, attribute_tokens, history_items, history_tokens, pace.dropout)
            config = teach_recformer.pretrain(
                datasets, folder, reading=reads, word_weight=word_weight, **shared
            )
        elif teacher == "unisrec":
            config = teach.pretrain(datasets, folder, text=texts, **on_vectors, **shared)
        else:
            both = [(dataset, features) for dataset in datasets]
            config = teach_unim2rec.pretrain(both, folder, **on_vectors, **shared)
    losses = config["losses"]
    console.say(
        f"{folder}: {console.count(config['epochs'], 'epoch')}, loss {losses[0]:.3f} to "
        f"{losses[-1]:.3f}{', pre-trained before' if known else ''}"
    )
    console.hint(f"kd-teacher tune {teacher} --from {folder} --data DATA")


@app.command("tune", short_help="Tune a teacher on the target domain.")
def tune_command(
    context: typer.Context,
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
    text: TextOption = TEXT.model,
    pooling: PoolingOption = TEXT.pooling,
    vectors: VectorsOption = None,
    image_vectors: ImageVectorsOption = None,
    pictures: PicturesOption = None,
    image: ImageOption = None,
    whiten: WhitenOption = True,
    attribute_tokens: AttributeTokensOption = LIMITS.attribute,
    history_items: HistoryItemsOption = LIMITS.items,
    history_tokens: HistoryTokensOption = LIMITS.tokens,
    epochs: Annotated[int, typer.Option(help="At most.", min=1)] = _RECIPE.epochs,
    second_epochs: Annotated[
        int,
        typer.Option(
            help="recformer: at most so many more against a fixed item table; 0 leaves them out.",
            min=0,
        ),
    ] = 20,
    user_limit: Annotated[
        int | None,
        typer.Option(
            "--limit", help="recformer: at most so many users an epoch, and to validate on.", min=2
        ),
    ] = None,
    patience: Annotated[
        int, typer.Option(help="Epochs without better validation NDCG@10, then stop.", min=1)
    ] = _RECIPE.patience,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Targets in a step; by default 1024, recformer 64.", min=2),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of Adam; by default 0.001, recformer 0.00005.", min=0)
    ] = None,
    weight_decay: Annotated[
        float, typer.Option(help="L2 inside Adam.", min=0)
    ] = _RECIPE.weight_decay,
    dropout: Annotated[
        float | None,
        typer.Option(
            help="Inside the transformer; by default 0.5, recformer 0.1.", min=0, max=0.99
        ),
    ] = None,
    adaptor_dropout: Annotated[
        float, typer.Option(help="On the text vectors.", min=0, max=0.99)
    ] = 0.2,
    keep_trajectory: TrajectoryOption = 0,
    seed: SeedOption = 0,
    bfloat16: Bfloat16Option = None,
    threads: ThreadsOption = 0,
) -> None:
    """Tune a teacher on the target domain and print how well it ranks."""
    pace = _TUNING[teacher].chosen(batch_size, learning_rate, dropout)
    check_known(context, teacher)
    check_finite(
        learning_rate=pace.learning_rate,
        weight_decay=weight_decay,
        dropout=pace.dropout,
        adaptor_dropout=adaptor_dropout,
    )
    device = device_for(threads)
    where = find_dataset(data, "kd-teacher tune")
    folder = out or Path("tuned") / where.resolve().name / teacher
    known = (folder / CONFIG).is_file()
    texts = TextSettings(model=text, pooling=pooling)
    features = modalities(texts, vectors, image_vectors, pictures, image)
    recipe = Recipe(
        epochs=epochs,
        patience=patience,
        batch_size=pace.batch_size,
        learning_rate=pace.learning_rate,
        weight_decay=weight_decay,
        seed=seed,
        bfloat16=in_bfloat16(bfloat16, device),
    )
    with _progress(folder) as report:
        dataset = open_dataset(where, deep=True)
        shared: dict[str, Any] = {
            "start": start,
            "recipe": recipe,
            "device": device,
            "report": report,
        }
        on_vectors: dict[str, Any] = {
            "whiten": whiten,
            "keep_trajectory": keep_trajectory,
            "transductive": mode == "transductive",
            "freeze_encoder": freeze_encoder,
            "architecture": {
                "dropout": pace.dropout,
                "attention_dropout": pace.dropout,
                "adaptor_dropout": adaptor_dropout,
            },
        }
        if teacher == "recformer":
            config = teach_recformer.tune(
                dataset,
                folder,
                reading=reading(
                    text, attribute_tokens, history_items, history_tokens, pace.dropout
                ),
                second=replace(recipe, epochs=second_epochs) if second_epochs else None,
                limit=user_limit,
                **shared,
            )
        elif teacher == "unisrec":
            config = teach.tune(
                dataset, folder, text=texts, vectors=vectors, **on_vectors, **shared
            )
        else:
            config = teach_unim2rec.tune(
                dataset, folder, modalities=features, **on_vectors, **shared
            )
    rows = {"valid": config["validation"], "test": config["test"]}
    length = console.count(config["epochs"], "epoch")
    what = "texts alone" if teacher == "recformer" else mode
    _print(f"{folder}: {what}, {length}{', tuned before' if known else ''}", rows)
    if keep_trajectory:
        tell_way(folder)
    store = Path("cache") / where.resolve().name
    if not store.is_dir():
        console.hint(f"kd-cache plan --data {where}")
    else:
        kept = " --keep factors" if keep_trajectory else ""  # what HetComp learns from
        asked = teacher if out is None else folder
        console.hint(f"kd-cache build --teacher {asked}{kept} --cache {store}")


@app.command(short_help="Judge a tuned teacher by ranking all items.")
def evaluate(
    teacher: Annotated[str, typer.Argument(help="A tuned teacher: its name, or its folder.")],
    data: Annotated[
        Path | None, typer.Option(help="The dataset; by default the only one in data/.")
    ] = None,
    threads: ThreadsOption = 0,
) -> None:
    """Rank all items for every user with a tuned teacher and print Recall and NDCG."""
    use_threads(threads)
    where = find_dataset(data, "kd-teacher evaluate")
    asked = load_teacher(tuned_folder(teacher, where))
    dataset = open_dataset(where, deep=True)
    rows = {}
    for part in ("valid", "test"):
        users, rows[part] = evaluate_teacher(asked, dataset, part)
    _print(f"{asked.name}: {users:,} users of {where} among all {dataset.num_items:,} items", rows)


app.command("import", short_help="Bring an official checkpoint in.")(import_command)


@contextlib.contextmanager
def _progress(folder: Path) -> Iterator[console.Report]:
    """Progress of a training run, with a line for the start and for each epoch where it goes to a log."""
    begun = (folder / CHECKPOINT).is_file()
    if begun:
        console.note(f"{folder}: goes on from its last whole epoch")
    told, heard = "", not begun
    with console.progress(folder.name) as report:

        def watch(done: float, total: float, text: str = "") -> None:
            nonlocal told, heard
            if ("loss " in text or "the start" in text) and text != told:
                if heard:
                    console.log(f"{folder}: epoch {int(done)}, {text}")
                told = text
            heard = True  # the first report of a run that goes on has what was told before the stop
            report(done, total, text)

        yield watch


def _print(title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    console.table(
        title,
        ["part", *_METRICS],
        [[part, *(f"{metrics[name]:.4f}" for name in _METRICS)] for part, metrics in rows.items()],
    )


def main() -> None:
    """Entry point of `kd-teacher`."""
    console.run(app, "kd-teacher")
