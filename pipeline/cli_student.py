"""`kd-student fit`: stage two from the command line. Thin: the work is in fit.py; other commands in cli_student_out.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cache.dataset import open_dataset
from cache.mirror import LIMIT
from cache.plan import Plan
from pipeline import console
from pipeline.cli_student_out import add_commands
from pipeline.config import check_finite, parse_epsilon
from pipeline.fit import check_runs, fit
from pipeline.join_options import (
    AlphaOption,
    ConsistencyOption,
    EpsilonOption,
    JoinOption,
    KdItemsOption,
    TauOption,
    TopOption,
    WeightsOption,
    check_join,
    parse_weights,
)
from pipeline.live import Board, board
from pipeline.own_settings import SetOption
from pipeline.run_kinds import run_kinds
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
    source_value,
)
from pipeline.student_store import CacheOption, Reader, at_store, open_store
from pipeline.threads import ThreadsOption, use_threads
from pipeline.train_options import (
    DEFAULT,
    BatchingOption,
    BatchSizeOption,
    Bfloat16Option,
    CeOption,
    CurriculumOption,
    DeviceOption,
    EpochsOption,
    EpochsPerStageOption,
    FreshBatchesOption,
    KdWeightOption,
    KlOption,
    LearningRateOption,
    PatienceOption,
    ValidateEveryOption,
    WeightDecayOption,
    check_training,
    the_device,
    train_settings,
)
from pipeline.two_domains import with_source
from student.registry import find_student
from student.schedule import TrainSettings
from student.state import RunState

app = typer.Typer(
    name="kd-student",
    help="Train small students from a score store, judge them, put them to use. No teacher is loaded.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

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
    kd_weight: KdWeightOption = None,
    join: JoinOption = "consistency",
    alpha: AlphaOption = 1.05,
    top: TopOption = 100,
    tau: TauOption = None,
    kl: KlOption = DEFAULT.kl,
    consistency: ConsistencyOption = "pair",
    epsilon: EpsilonOption = "0.8q",
    weights: WeightsOption = None,
    ce: CeOption = DEFAULT.ce,
    kd_items: KdItemsOption = "in-batch",
    fresh_batches: FreshBatchesOption = None,
    batch_size: BatchSizeOption = None,
    batching: BatchingOption = DEFAULT.batching,
    curriculum: CurriculumOption = None,
    epochs_per_stage: EpochsPerStageOption = DEFAULT.epochs_per_stage,
    epochs: EpochsOption = DEFAULT.epochs,
    patience: PatienceOption = DEFAULT.patience,
    validate_every: ValidateEveryOption = DEFAULT.validate_every,
    learning_rate: LearningRateOption = DEFAULT.learning_rate,
    weight_decay: WeightDecayOption = DEFAULT.weight_decay,
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
    bfloat16: Bfloat16Option = None,
    threads: ThreadsOption = 0,
    device: DeviceOption = None,
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
    check_training(context.params)
    shares, tolerated = parse_weights(weights), parse_epsilon(epsilon)
    device = the_device(device)
    check_log_dir(log_dir)
    use_threads(threads)
    store = open_store(cache, "kd-student fit", int(cache_limit * 1e9), signed_by, teacher or ())
    with_source(kind_of_student, config, store.dataset, other)  # refused before anything begins
    base = train_settings(context, kind_of_student, store.plan, device)
    kinds = run_kinds(store, base, context.params, shares, tolerated)
    numbers = range(seed, seed + seeds)
    root = out or Path("runs") / store.path.resolve().name
    wanted = [
        _Wanted(
            name=Path(f"{student}-{kind.name}") / f"seed-{number}",
            label=f"{kind.name} seed {number}" if seeds > 1 else kind.name,
            readers=kind.readers,
            settings=replace(kind.settings, seed=number),
        )
        for kind in kinds
        for number in numbers
    ]
    check_runs(
        store,
        [(root / one.name, one.readers, one.settings) for one in wanted],
        config,
        student=student,
        source=other,
    )
    train = partial(fit, store, config=config, student=student, source=other, device=device)
    with board(
        [one.label for one in wanted], taught=[bool(one.readers) for one in wanted]
    ) as shown:
        runs = [_fit_one(train, one, root, store.plan, shown, log_dir) for one in wanted]
    columns = {
        f"{kind_of_student.title} {kind.name}": runs[place * seeds : (place + 1) * seeds]
        for place, kind in enumerate(kinds)
    }
    print_runs(store.label, columns)
    console.hint(f"kd-student evaluate {runs[-1].folder}{at_store(store)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """A run to train."""

    name: Path  #: below the folder of all runs
    label: str  #: in the live table
    readers: Sequence[Reader]
    settings: TrainSettings


def _fit_one(
    train: Callable[..., Run],
    one: _Wanted,
    root: Path,
    plan: Plan,
    shown: Board,
    log_dir: Path | None,
) -> Run:
    """The run, trained by `train` unless it was before; and what there is to say of it."""
    folder = root / one.name
    before, began = standing(folder), time.monotonic()
    if before == "begun":
        console.note(f"{folder}: goes on from its last whole epoch")
    shown.begin(one.label)
    with scalars(log_dir and log_dir / one.name, taught=bool(one.readers)) as tell:

        def watch(state: RunState, rate: float) -> None:
            shown.epoch(state, rate)
            tell(state, rate)

        run = train(
            readers=one.readers,
            folder=folder,
            settings=one.settings,
            watch=watch,
            on_step=shown.step,
        )
    shown.end()
    if before == "finished":
        console.note(f"{folder}: trained before, nothing to do")
        return run
    epochs, best = run.record["epochs"], run.record["best_epoch"]
    took = console.duration(time.monotonic() - began)
    console.note(f"{folder}: {console.count(epochs, 'epoch')}, the best {best + 1}, {took}")
    if best < one.settings.staged(plan) + _EARLY and epochs < one.settings.most(plan):
        console.note(
            f"{folder}: so early a best may be chance; --patience {4 * one.settings.patience} with another --out would tell"
        )
    return run


add_commands(app)


def main() -> None:
    """Entry point of `kd-student`."""
    console.run(app, "kd-student")
