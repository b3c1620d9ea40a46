"""`kd-student fit | evaluate`: stage two from the command line. Thin: everything is in fit.py."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import torch
import typer

from cache.errors import UsageError
from cache.factors import FactorReader
from cache.mirror import LIMIT, open_mirror
from cache.remote import is_url, locate
from cache.scores import ScoreReader
from cache.store import Store
from pipeline import console
from pipeline.config import check_finite, find_store, parse_epsilon
from pipeline.evaluate import rank_student
from pipeline.fit import Run, fit, load_student, standing
from pipeline.join_options import ConsistencyOption, EpsilonOption, TauOption
from pipeline.metrics import CUTOFFS, gains, metrics_of_ranks, paired_p_value
from pipeline.sign import SignedByOption, check_signed_here
from pipeline.student_options import (
    DropoutOption,
    HeadsOption,
    HiddenOption,
    InnerOption,
    LayersOption,
    PresetOption,
    StudentOption,
    configuration,
    preset_value,
)
from student.loop import RunState, TrainSettings
from student.registry import StudentKind, find_student
from student.targets import join_settings

app = typer.Typer(
    name="kd-student",
    help="Train small students from a score store, and judge them. No teacher is loaded.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

_METRICS = [f"{name}@{k}" for name in ("recall", "ndcg") for k in CUTOFFS]
_DEFAULT = TrainSettings()
_SEED = 2**31 - 1

Reader: TypeAlias = ScoreReader | FactorReader

CacheOption = Annotated[
    str | None,
    typer.Option("--cache", help="The store or its URL; by default the only one in cache/."),
]


@app.command("fit", short_help="Train a student, its base, or both.")
def fit_command(
    context: typer.Context,
    cache: CacheOption = None,
    signed_by: SignedByOption = None,
    student: StudentOption = "sasrec",
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
    curriculum: Annotated[
        bool | None,
        typer.Option(
            "--curriculum/--no-curriculum",
            help="Begin with algorithm 1's stages; by default the student does, the base does not.",
        ),
    ] = None,
    epochs_per_stage: Annotated[
        int, typer.Option(help="Epochs in each curriculum stage.", min=1)
    ] = _DEFAULT.epochs_per_stage,
    epochs: Annotated[int, typer.Option(help="Standard epochs at most.", min=1)] = _DEFAULT.epochs,
    patience: Annotated[
        int, typer.Option(help="Epochs without better validation NDCG@10, then stop.", min=1)
    ] = _DEFAULT.patience,
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
    cache_limit: Annotated[
        float,
        typer.Option(
            help="GB of scores and factors to keep here at most when --cache is a URL.", min=0
        ),
    ] = LIMIT / 1e9,
    threads: Annotated[
        int, typer.Option(help="Processor threads; 0 takes torch's choice.", min=0)
    ] = 0,
    device: Annotated[
        str | None, typer.Option(help="Such as cpu or cuda; by default cuda where there is one.")
    ] = None,
) -> None:
    """Train a student from a store: distilled, its base (--no-distill), or both (--compare)."""
    check_finite(
        kd_weight=kd_weight,
        tau=tau,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        dropout=dropout,
        cache_limit=cache_limit,
    )
    kind_of_student = find_student(student)
    config = configuration(context, kind_of_student, preset)
    if compare and not distill:
        raise UsageError(
            "--compare trains the base and the student, --no-distill the base alone; leave one away.",
            code="fit.nothing_to_compare",
        )
    if batch_size and fresh_batches is False:
        raise UsageError(
            "--batch-size is that of fresh batches, which --no-fresh-batches forbids; leave one away.",
            code="fit.planned_batches",
        )
    if kd_items == "all" and ce == "in-batch":
        raise UsageError(
            "--ce in-batch has no logits over all items, which --kd-items all needs; leave one away.",
            code="fit.mixed_items",
        )
    shares, tolerated = _weights(weights), parse_epsilon(epsilon)
    device = _device(device)
    if threads:
        torch.set_num_threads(threads)
    store = _store(cache, "kd-student fit", int(cache_limit * 1e9), signed_by, teacher or ())
    root = out or Path("runs") / store.path.resolve().name
    base = TrainSettings(
        kd_weight=kd_weight,
        kl=kl,
        ce=ce,
        epochs_per_stage=epochs_per_stage,
        epochs=epochs,
        patience=patience,
        learning_rate=preset_value(context, preset, "learning_rate"),
        weight_decay=preset_value(context, preset, "weight_decay"),
        amp=device.startswith("cuda"),
        batch_size=batch_size or (store.plan.batch_size if fresh_batches else 0),
    )
    kinds: list[tuple[str, Sequence[Reader], TrainSettings]] = []
    if compare or not distill:
        # stages are a part of the method: the base is what one would train without it
        kinds.append(("base", (), replace(base, curriculum=bool(curriculum))))
    if distill:
        names = list(dict.fromkeys(teacher or store.teachers))
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
        taught = [_reader(store, name, needs) for name in names]
        _warn_small(store, taught, int(cache_limit * 1e9))
        join = join_settings(
            taught,
            tau=tau,
            weights=shares,
            consistency=consistency,
            epsilon=tolerated,
            items=kd_items,
        )
        kinds.append(
            ("distilled", taught, replace(base, join=join, curriculum=curriculum is not False))
        )
    runs: dict[str, list[Run]] = {}
    for kind, readers, settings in kinds:
        for number in range(seed, seed + seeds):
            folder = root / f"{student}-{kind}" / f"seed-{number}"
            label = f"{kind} seed {number}" if seeds > 1 else kind
            one = replace(settings, seed=number)
            run = _fit_one(store, readers, folder, label, config, one, device, student)
            runs.setdefault(kind, []).append(run)
    _print(store, runs, kind_of_student)
    stores = list(Path("cache").glob("*/plan"))
    which = "" if stores == [store.path / "plan"] else f" --cache {store.label}"
    console.hint(f"kd-student evaluate {run.folder}{which}")


@app.command(short_help="Judge a trained student by ranking all items.")
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    cache: CacheOption = None,
    signed_by: SignedByOption = None,
    part: Annotated[
        Literal["test", "valid"], typer.Option(help="Which held-out items to rank.")
    ] = "test",
    mask_history: Annotated[
        bool, typer.Option("--mask-history", help="Do not rank items of the history.")
    ] = False,
) -> None:
    """Rank all items for every user with a trained student and print Recall and NDCG."""
    store = _store(cache, "kd-student evaluate", LIMIT, signed_by)
    model = load_student(run, store)
    ranks = rank_student(
        model, store.dataset, store.dataset.held_out(part), mask_history=mask_history
    )
    metrics = metrics_of_ranks(ranks)
    protocol = "history masked" if mask_history else "history not masked"
    console.table(
        f"{run}: {_task(store, part, len(ranks))}, {protocol}",
        ["part", *_METRICS],
        [[part, *(f"{metrics[name]:.4f}" for name in _METRICS)]],
    )


def _reader(store: Store, name: str, needs: str) -> Reader:
    """What is kept of a teacher; its factors where something `needs` them.

    Raises:
        UsageError: ``fit.no_factors``; StoreError: damage, or nothing is kept of it.
    """
    if not needs:
        return store.reader(name)
    if name in store.names and name not in store.factor_names:
        raise UsageError(
            f"{store.label}: keeps no factors of {name}, which {needs} must have; "
            + store.advice(f"kd-cache build --teacher {name} --keep factors --cache {store.path}")
            + ".",
            code="fit.no_factors",
        )
    return store.factors(name)


def _store(
    cache: str | None,
    command: str,
    limit: int,
    signed_by: Path | None,
    teachers: Sequence[str] = (),
) -> Store:
    """The store that was named: opened where it lies, or through a mirror of what lies elsewhere."""
    if cache is None or not is_url(cache):
        store = Store.open(find_store(Path(cache) if cache else None, command))
        if signed_by is not None:
            check_signed_here(store, signed_by, teachers)
        return store
    place = locate(cache)
    with console.progress(f"{place.label}: dataset and plan", unit="bytes") as report:
        return open_mirror(
            place,
            limit=limit,
            report=lambda at, total: report(at, total, ""),
            signed_by=signed_by,
        )


def _warn_small(store: Store, readers: Sequence[Reader], limit: int) -> None:
    if store.url:
        held = sum(entry.size for reader in readers for entry in reader.manifest.files)
        if held > limit:
            console.note(
                f"{store.label}: the teachers' sets take {console.size(held)}, --cache-limit keeps "
                f"{console.size(limit)}: shards will come again and again"
            )


def _fit_one(
    store: Store,
    readers: Sequence[Reader],
    folder: Path,
    label: str,
    config: Any,
    settings: TrainSettings,
    device: str,
    student: str,
) -> Run:
    before, began = standing(folder), time.monotonic()
    if before == "begun":
        console.note(f"{folder}: goes on from its last whole epoch")
    with console.progress(label) as report:
        speed = ""

        def watch(state: RunState, rate: float) -> None:
            nonlocal speed
            now = state.history[-1]
            losses = f"ce {now.ce:.3f}, " + (f"kd {now.kd:.3f}, " if readers else "")
            best = f", best {state.best:.4f}" if state.best_epoch != now.epoch else ", the best"
            console.log(
                f"{label}: epoch {now.epoch + 1}, {now.stage}, {losses}"
                f"ndcg@10 {now.validation:.4f}{best}"
            )
            speed = f"{now.stage}, ndcg@10 {now.validation:.4f}{best}, {rate:,.0f}/s"

        run = fit(
            store,
            readers,
            folder,
            config,
            settings,
            student=student,
            device=device,
            watch=watch,
            on_step=lambda done, total: report(done, total, speed),
        )
    if before == "finished":
        console.note(f"{folder}: trained before, nothing to do")
    else:
        epochs = f"{console.count(run.record['epochs'], 'epoch')}, the best {run.record['best_epoch'] + 1}"
        console.note(f"{folder}: {epochs}, {console.duration(time.monotonic() - began)}")
    return run


def _print(store: Store, runs: dict[str, list[Run]], student: StudentKind) -> None:
    """A row a metric: mean and spread over seeds, and with two kinds what the second gained."""
    both = len(runs) == 2
    picked = [np.array([run.record["validation"]["ndcg@10"] for run in r]) for r in runs.values()]
    rows = []
    for name in _METRICS:
        values = [np.array([run.test[name] for run in some]) for some in runs.values()]
        row = [name, *map(_spread, values)]
        if both:
            before, after = (one.mean() for one in values)
            base, ours = (_mean_gains(some, name) for some in runs.values())
            change = f"{after / before - 1:+.1%}" if before else "n/a"
            row += [change, _p_value(paired_p_value(ours, base))]
        rows.append(row)
    # what settings are chosen by
    rows.append(["validation ndcg@10", *map(_spread, picked), *(["", ""] if both else [])])
    some = next(iter(runs.values()))
    legend = ["p: paired t-test over users"] if both else []
    if len(some) > 1:
        legend.insert(0, f"mean ± standard deviation of {len(some)} seeds")
    console.table(
        f"{store.label}: {_task(store, 'test', len(some[0].test_ranks))}",
        ["", *(f"{student.title} {kind}" for kind in runs), *(["change", "p"] if both else [])],
        rows,
        caption="; ".join(legend),
    )


def _task(store: Store, part: str, users: int) -> str:
    return f"{part} items of {users:,} users among all {store.dataset.num_items:,} items"


def _p_value(p: float) -> str:
    return f"{p:.3f}" if p >= 0.0005 else f"{p:.0e}"


def _mean_gains(runs: list[Run], metric: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """[users] each user's gain, averaged over seeds."""
    mean: np.ndarray[tuple[int], np.dtype[np.float64]] = np.mean(
        [gains(run.test_ranks, metric) for run in runs], axis=0
    )
    return mean


def _spread(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> str:
    return f"{values.mean():.4f}" + (f" ±{values.std(ddof=1):.4f}" if len(values) > 1 else "")


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


def main() -> None:
    """Entry point of `kd-student`."""
    console.run(app, "kd-student")
