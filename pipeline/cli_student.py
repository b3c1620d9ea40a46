"""`kd-student fit`: stage two from the command line. Thin: the work is in fit.py; other commands in cli_student_out.py."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

from cache.dataset import Dataset, open_dataset
from cache.errors import UsageError
from cache.mirror import LIMIT
from cache.paths import without_checkpoints
from cache.store import Store
from encoder.precision import bfloat16_is_fast
from pipeline import console
from pipeline.cli_student_out import add_commands
from pipeline.config import check_finite, parse_epsilon
from pipeline.fit import check_runs, fit
from pipeline.join_options import (
    AlphaOption,
    ConsistencyOption,
    EpsilonOption,
    JoinOption,
    TauOption,
    TopOption,
    check_join,
    trajectories,
)
from pipeline.live import Board, board
from pipeline.own_settings import SetOption
from pipeline.run_table import print_runs
from pipeline.runs import Run, standing
from pipeline.scalars import check_log_dir, scalars
from pipeline.sign import SignedByOption
from pipeline.student_options import (
    DropoutOption,
    HeadsOption,
    HiddenOption,
    InnerOption,
    LayersOption,
    PresetOption,
    SourceOption,
    StudentOption,
    configuration,
    note_batches,
    preset_value,
    source_value,
)
from pipeline.student_store import (
    CacheOption,
    Reader,
    at_store,
    open_store,
    reader_of,
    warn_small,
)
from pipeline.threads import ThreadsOption, use_threads
from pipeline.two_domains import with_source
from student.hetcomp import HetCompSettings
from student.registry import find_student
from student.schedule import Batching, TrainSettings
from student.state import RunState
from student.targets import join_settings

app = typer.Typer(
    name="kd-student",
    help="Train small students from a score store, judge them, put them to use. No teacher is loaded.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

_DEFAULT = TrainSettings()
_EARLY = 3  # epochs: a base of FM had one of chance after two, and a much better one after 154
_SEED = 2**31 - 1


@app.command("fit", short_help="Train a student, its base, or both.")
def fit_command(
    context: typer.Context,
    cache: CacheOption = None,
    signed_by: SignedByOption = None,
    student: StudentOption = "sasrec",
    source: SourceOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs; by default runs/<store's name>.")
    ] = None,
    teacher: Annotated[
        list[str] | None, typer.Option(help="Teacher to learn from; repeat it; default all.")
    ] = None,
    distill: Annotated[
        bool, typer.Option("--distill/--no-distill", help="Learn from the teachers, or not at all.")
    ] = True,
    compare: Annotated[
        bool, typer.Option("--compare", help="Train base and student alike and print the table.")
    ] = False,
    seed: Annotated[int, typer.Option(help="First seed.", min=0, max=_SEED)] = 0,
    seeds: Annotated[int, typer.Option(help="How many seeds, one run each.", min=1)] = 1,
    kd_weight: Annotated[
        float, typer.Option(help="Lambda of eq. 10, the weight of the teachers' part.", min=0)
    ] = _DEFAULT.kd_weight,
    join: JoinOption = "consistency",
    alpha: AlphaOption = 1.05,
    top: TopOption = 100,
    tau: TauOption = None,
    kl: Annotated[
        Literal["teacher-student", "student-teacher"],
        typer.Option(help="Direction of the divergence; student-teacher is eq. 9 to the letter."),
    ] = _DEFAULT.kl,
    consistency: ConsistencyOption = "pair",
    epsilon: EpsilonOption = "0.8q",
    weights: Annotated[
        str | None,
        typer.Option(help="Default weights, name=weight,...; by default by validation NDCG@10."),
    ] = None,
    ce: Annotated[
        Literal["full", "in-batch"],
        typer.Option(help="Cross-entropy over all items, or over the batch's (eq. 6)."),
    ] = _DEFAULT.ce,
    kd_items: Annotated[
        Literal["in-batch", "all"],
        typer.Option(help="Hear the teachers over the batch's items, or over all (from factors)."),
    ] = "in-batch",
    fresh_batches: Annotated[
        bool | None,
        typer.Option(
            "--fresh-batches/--no-fresh-batches",
            help="Draw batches afresh each epoch (from factors), or take the plan's, the default.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Of fresh batches, which it asks for; by default the plan's.", min=1),
    ] = None,
    batching: Annotated[
        Batching,
        typer.Option(
            help="Fresh batches: instances mixed, or all of a user's in one causal pass (sasrec).",
        ),
    ] = _DEFAULT.batching,
    curriculum: Annotated[
        bool | None,
        typer.Option(
            "--curriculum/--no-curriculum",
            help="Begin with algorithm 1's stages; by default the distilled do, the base and hetcomp do not.",
        ),
    ] = None,
    epochs_per_stage: Annotated[
        int, typer.Option(help="Epochs in each curriculum stage.", min=1)
    ] = _DEFAULT.epochs_per_stage,
    epochs: Annotated[int, typer.Option(help="Standard epochs at most.", min=1)] = _DEFAULT.epochs,
    patience: Annotated[
        int, typer.Option(help="Epochs without better validation NDCG@10, then stop.", min=1)
    ] = _DEFAULT.patience,
    validate_every: Annotated[
        int,
        typer.Option(help="Epochs from one validation to the next; the last has one.", min=1),
    ] = _DEFAULT.validate_every,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.", min=0)] = _DEFAULT.learning_rate,
    weight_decay: Annotated[
        float, typer.Option(help="L2 inside Adam.", min=0)
    ] = _DEFAULT.weight_decay,
    preset: PresetOption = None,
    hidden: HiddenOption = None,
    layers: LayersOption = None,
    heads: HeadsOption = None,
    inner: InnerOption = None,
    dropout: DropoutOption = None,
    set_: SetOption = None,
    cache_limit: Annotated[
        float,
        typer.Option(
            help="GB of scores and factors to keep here at most when --cache is a URL.", min=0
        ),
    ] = LIMIT / 1e9,
    log_dir: Annotated[
        Path | None,
        typer.Option(help="Folder for TensorBoard's scalars, one set a run; by default none."),
    ] = None,
    bfloat16: Annotated[
        bool | None,
        typer.Option(
            "--bfloat16/--no-bfloat16",
            help="Matrix products in bfloat16, losses aside; by default on a GPU that has it.",
        ),
    ] = None,
    threads: ThreadsOption = 0,
    device: Annotated[
        str | None, typer.Option(help="Such as cpu or cuda; by default cuda where there is one.")
    ] = None,
) -> None:
    """Train a student from a store: distilled, its base (--no-distill), or both (--compare)."""
    check_finite(
        kd_weight=kd_weight,
        tau=tau,
        alpha=alpha,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        dropout=dropout,
        cache_limit=cache_limit,
    )
    check_join(context, join)
    kind_of_student = find_student(student)
    config = configuration(context, kind_of_student, preset)
    source = source_value(context, kind_of_student)
    other = open_dataset(source, deep=True) if source else None
    if compare and not distill:
        raise UsageError(
            "--compare trains the base and the student, --no-distill the base alone; leave one away.",
            code="fit.nothing_to_compare",
        )
    by_user = batching == "user"
    if (batch_size or by_user) and fresh_batches is False:
        which = "--batching user makes" if by_user else "--batch-size is that of"
        raise UsageError(
            f"{which} fresh batches, which --no-fresh-batches forbids; leave one away.",
            code="fit.planned_batches",
        )
    if kd_items == "all" and ce == "in-batch":
        raise UsageError(
            "--ce in-batch has no logits over all items, which --kd-items all needs; leave one away.",
            code="fit.mixed_items",
        )
    shares, tolerated = _weights(weights), parse_epsilon(epsilon)
    device = _device(device)
    check_log_dir(log_dir)
    use_threads(threads)
    store = open_store(cache, "kd-student fit", int(cache_limit * 1e9), signed_by, teacher or ())
    with_source(kind_of_student, config, store.dataset, other)  # refused before anything begins
    root = out or Path("runs") / store.path.resolve().name
    base = TrainSettings(
        kd_weight=kd_weight,
        kl=kl,
        ce=ce,
        epochs_per_stage=epochs_per_stage,
        epochs=epochs,
        patience=patience,
        validate_every=validate_every,
        learning_rate=preset_value(context, preset, "learning_rate"),
        weight_decay=preset_value(context, preset, "weight_decay"),
        amp=device.startswith("cuda") and bfloat16_is_fast(device)
        if bfloat16 is None
        else bfloat16,
        batch_size=batch_size or (store.plan.batch_size if fresh_batches or by_user else 0),
        batching=batching,
    )
    note_batches(preset, base.batch_size or store.plan.batch_size)
    kinds: list[tuple[str, Sequence[Reader], TrainSettings]] = []
    if compare or not distill:
        # stages are a part of the method: the base is what one would train without it
        kinds.append(("base", (), replace(base, curriculum=bool(curriculum))))
    if distill:
        # sorted: who is named first has no say in a run, nor in one that goes on
        names = sorted(set(teacher or without_checkpoints(store.teachers)))
        if not names:
            raise UsageError(
                f"{store.label}: holds no teacher's scores; "
                + store.advice(f"kd-cache build --teacher unisrec --cache {store.path}")
                + ", or train the base with --no-distill.",
                code="fit.no_teachers",
            )
        needs = (
            "--kd-items all" if kd_items == "all" else "fresh batches" if base.batch_size else ""
        )
        ways = [[name] for name in names] if join == "consistency" else trajectories(store, names)
        taught = [reader_of(store, name, needs) for way in ways for name in way]
        warn_small(store, taught, int(cache_limit * 1e9))
        if join == "hetcomp":
            ranked = HetCompSettings(
                states=tuple(map(len, ways)), top=top, alpha=alpha, items=kd_items
            )
            settings = replace(base, join=ranked, curriculum=bool(curriculum))
            kinds.append(("hetcomp", taught, settings))
        else:
            joined = join_settings(
                taught,
                tau=tau,
                weights=shares,
                consistency=consistency,
                epsilon=tolerated,
                items=kd_items,
            )
            settings = replace(base, join=joined, curriculum=curriculum is not False)
            kinds.append(("distilled", taught, settings))
    runs: dict[str, list[Run]] = {}
    numbers = range(seed, seed + seeds)
    many = seeds > 1
    labels = {
        (kind, n): f"{kind} seed {n}" if many else kind for kind, *_ in kinds for n in numbers
    }
    wanted = [
        (root / f"{student}-{kind}" / f"seed-{n}", readers, replace(settings, seed=n))
        for kind, readers, settings in kinds
        for n in numbers
    ]
    check_runs(store, wanted, config, student=student, source=other)
    taught_ones = [bool(readers) for _, readers, _ in kinds for _ in numbers]
    with board(list(labels.values()), taught=taught_ones) as shown:
        for kind, readers, settings in kinds:
            for number in numbers:
                name = Path(f"{student}-{kind}") / f"seed-{number}"
                run = _fit_one(
                    store,
                    readers,
                    root / name,
                    labels[kind, number],
                    config,
                    replace(settings, seed=number),
                    device,
                    student,
                    other,
                    shown,
                    log_dir and log_dir / name,
                )
                runs.setdefault(kind, []).append(run)
    print_runs(store.label, {f"{kind_of_student.title} {kind}": runs[kind] for kind in runs})
    console.hint(f"kd-student evaluate {run.folder}{at_store(store)}")


def _fit_one(
    store: Store,
    readers: Sequence[Reader],
    folder: Path,
    label: str,
    config: Any,
    settings: TrainSettings,
    device: str,
    student: str,
    source: Dataset | None,
    shown: Board,
    logs: Path | None,
) -> Run:
    before, began = standing(folder), time.monotonic()
    if before == "begun":
        console.note(f"{folder}: goes on from its last whole epoch")
    shown.begin(label)
    with scalars(logs, taught=bool(readers)) as tell:

        def watch(state: RunState, rate: float) -> None:
            shown.epoch(state, rate)
            tell(state, rate)

        run = fit(
            store,
            readers,
            folder,
            config,
            settings,
            student=student,
            source=source,
            device=device,
            watch=watch,
            on_step=shown.step,
        )
    shown.end()
    if before == "finished":
        console.note(f"{folder}: trained before, nothing to do")
    else:
        epochs = f"{console.count(run.record['epochs'], 'epoch')}, the best {run.record['best_epoch'] + 1}"
        console.note(f"{folder}: {epochs}, {console.duration(time.monotonic() - began)}")
        early = run.record["best_epoch"] < settings.staged(store.plan) + _EARLY
        if early and run.record["epochs"] < settings.most(store.plan):
            console.note(
                f"{folder}: so early a best may be chance; --patience {4 * settings.patience} with another --out would tell"
            )
    return run


def _weights(text: str | None) -> dict[str, float] | None:
    if text is None:
        return None
    try:
        pairs = [
            (name, float(value)) for name, value in (one.split("=") for one in text.split(","))
        ]
    except ValueError:
        pairs = []
    if not pairs or len(dict(pairs)) < len(pairs):
        raise UsageError(
            f"--weights {text}: unisrec=0.6,recformer=0.4 or the like expected.",
            code="fit.bad_weights",
        )
    return dict(pairs)


def _device(asked: str | None) -> str:
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


add_commands(app)


def main() -> None:
    """Entry point of `kd-student`."""
    console.run(app, "kd-student")
