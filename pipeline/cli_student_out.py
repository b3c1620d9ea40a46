"""`kd-student evaluate | compare | recommend | export | show`: what comes out of a trained student. Thin, as cli_student.py."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
import typer

from cache.atomic import disk_errors, put
from cache.dataset import Dataset, Ints
from cache.errors import UsageError
from pipeline import console
from pipeline.card import base_beside, card
from pipeline.compare import check_comparable, heads, runs_in
from pipeline.evaluate import rank_student
from pipeline.export import CARD, ExportFormat, Place, export
from pipeline.exported import is_export, open_student
from pipeline.metrics import metrics_of_ranks
from pipeline.recommend import (
    Format,
    read_users,
    recommend,
    rows_of_users,
    tables,
    user_names,
    write_lists,
)
from pipeline.run_table import METRICS, print_runs, task
from pipeline.runs import open_run
from pipeline.sign import SignedByOption
from pipeline.student_store import CacheOption, at_store, open_store
from pipeline.threads import ThreadsOption, use_threads

__all__ = ["add_commands"]

RunArgument = Annotated[Path, typer.Argument(help="Folder of a finished run.")]
TrainedArgument = Annotated[
    Path, typer.Argument(help="Folder of a finished run, or what was exported of one.")
]


def add_commands(app: typer.Typer) -> None:
    """Give `kd-student` its commands for what was trained."""
    app.command("evaluate", short_help="Judge a trained student by ranking all items.")(
        evaluate_command
    )
    app.command("compare", short_help="Set two sets of runs side by side.")(compare_command)
    app.command("recommend", short_help="Write each user's best items to a file.")(
        recommend_command
    )
    app.command("export", short_help="Make files that others can serve.")(export_command)
    app.command("show", short_help="Print a run's model card.")(show_command)


def evaluate_command(
    run: TrainedArgument,
    cache: CacheOption = None,
    signed_by: SignedByOption = None,
    part: Annotated[
        Literal["test", "valid"], typer.Option(help="Which held-out items to rank.")
    ] = "test",
    mask_history: Annotated[
        bool, typer.Option("--mask-history", help="Do not rank items of the history.")
    ] = False,
    threads: ThreadsOption = 0,
) -> None:
    """Rank all items for every user with a trained student and print Recall and NDCG."""
    use_threads(threads)
    store = open_store(cache, "kd-student evaluate", signed_by=signed_by)
    model = open_student(run, store)
    ranks = rank_student(
        model, store.dataset, store.dataset.held_out(part), mask_history=mask_history
    )
    metrics = metrics_of_ranks(ranks)
    protocol = "history masked" if mask_history else "history not masked"
    console.table(
        f"{run}: {task(part, len(ranks), store.dataset.num_items)}, {protocol}",
        ["part", *METRICS],
        [[part, *(f"{metrics[name]:.4f}" for name in METRICS)]],
    )


def compare_command(
    first: Annotated[Path, typer.Argument(help="Folder of a finished run, or of its seeds.")],
    second: Annotated[Path, typer.Argument(help="The same, of what is set beside it.")],
) -> None:
    """Print the test metrics of two sets of runs, what the second gained, and the p of a paired t-test over users.

    A folder is a run, or holds the seeds of one, such as runs/toys/sasrec-base and runs/toys/sasrec-distilled.
    """
    if first.resolve() == second.resolve():
        raise UsageError(
            f"{second}: is the first folder again; name another one to set beside it.",
            code="compare.same",
        )
    before, after = runs_in(first), runs_in(second)
    check_comparable(before, after)
    one, other = heads(first, second)
    print_runs(f"{second} against {first}", {one: before, other: after})


def recommend_command(
    run: TrainedArgument,
    cache: CacheOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write; by default <run>/recommendations.<format>."),
    ] = None,
    form: Annotated[
        Format | None,
        typer.Option("--format", help="Of the file; by default what --out ends in, or parquet."),
    ] = None,
    top: Annotated[int, typer.Option(help="How many items for each user.", min=1)] = 10,
    user: Annotated[
        list[str] | None, typer.Option(help="Id of a user; repeat it; by default all users.")
    ] = None,
    users: Annotated[
        Path | None, typer.Option(help="A text file of user ids, one a line, instead of --user.")
    ] = None,
    exclude_history: Annotated[
        bool, typer.Option("--exclude-history", help="No items that the user had before.")
    ] = False,
    titles: Annotated[
        bool, typer.Option("--titles", help="A column with the items' titles too.")
    ] = False,
    threads: ThreadsOption = 0,
) -> None:
    """Write the best items of all users, or of some, from their whole histories: user, item, rank, score.

    With --user and neither --out nor --format they are printed instead.
    """
    kind = _format(out, form)
    use_threads(threads)
    store = open_store(cache, "kd-student recommend")
    dataset = store.dataset
    names = user_names(dataset)
    asked = [*(user or []), *(read_users(users) if users else [])]
    if users and not asked:
        raise UsageError(
            f"{users}: names no user, one id a line expected.", code="recommend.bad_users"
        )
    rows = rows_of_users(names, asked, store.label) if asked else _all(dataset)
    model = open_student(run, store)
    lists = recommend(model, dataset, rows, top, exclude_history=exclude_history)
    parts = tables(lists, dataset, names, titles=titles)
    known = int((dataset.lengths[rows] > 0).sum())
    if user and not users and out is None and form is None:
        columns = ["user", "item", "rank", "score", *(["title"] if titles else [])]
        found = [row for part in parts for row in part.to_pylist()]
        console.table(
            f"{run}: {_told(top, exclude_history)}",
            columns,
            [[f"{one[c]:.4f}" if c == "score" else str(one[c]) for c in columns] for one in found],
            prose="title" if titles else None,
        )
    else:
        path = out or run / f"recommendations.{kind}"
        began = time.monotonic()
        with console.progress(str(path)) as report:
            written = write_lists(
                path,
                parts,
                kind,
                titles=titles,
                report=lambda done: report(done, top * known, "rows"),
            )
        spent = console.duration(time.monotonic() - began)
        console.say(
            f"{path}: {console.count(written, 'row')} of {console.count(known, 'user')}, "
            f"{_told(top, exclude_history)}, {console.size(path.stat().st_size)}, {spent}"
        )
    if known < len(rows):
        console.note(f"{console.count(len(rows) - known, 'user')} without any history left out")


def export_command(
    run: RunArgument,
    cache: CacheOption = None,
    form: Annotated[
        ExportFormat,
        typer.Option(
            "--format", help="For onnxruntime and others, for torch.export.load, or bare weights."
        ),
    ] = "onnx",
    out: Annotated[
        Path | None, typer.Option(help="The folder to make; by default <run>/<format>.")
    ] = None,
    table: Annotated[
        Place,
        typer.Option(help="Item table inside: it gives scores; apart: vectors, and a .npy file."),
    ] = "inside",
) -> None:
    """Export a trained student, with the ids of its items, its model card and all digests."""
    store = open_store(cache, "kd-student export")
    target = out or run / form
    about = export(run, store, target, form, table=table)
    size = (target / about["model"]).stat().st_size
    console.say(f"{target}: {about['title']} as {about['model']}, {console.size(size)}")
    console.hint(f"kd-student evaluate {target}{at_store(store)}")


def show_command(
    run: TrainedArgument,
    out: Annotated[
        Path | None, typer.Option(help="A Markdown file to write instead of printing.")
    ] = None,
) -> None:
    """Print the model card of a run: how good it is, and by digests what it was trained from."""
    text = _card(run)
    if out is None:
        console.say(text.rstrip())
    else:
        put(out, text.encode())
        console.say(f"{out}: the card of {run}")


def _card(folder: Path) -> str:
    if is_export(folder):
        with disk_errors(folder / CARD):
            return (folder / CARD).read_text(encoding="utf-8")
    found = open_run(folder)
    return card(found, base_beside(found))


def _all(dataset: Dataset) -> Ints:
    return np.arange(dataset.num_users, dtype=np.int32)


def _told(top: int, exclude_history: bool) -> str:
    return f"top {top:,}, " + ("history excluded" if exclude_history else "history included")


def _format(out: Path | None, form: Format | None) -> Format:
    """What was asked for, or what the file's name ends in.

    Raises:
        UsageError: ``recommend.bad_format``.
    """
    if form or out is None:
        return form or "parquet"
    for known in get_args(Format):
        if out.suffix == f".{known}":
            return known  # type: ignore[no-any-return]
    raise UsageError(
        f"--out {out}: ends in none of .parquet, .csv and .jsonl; add --format.",
        code="recommend.bad_format",
    )
