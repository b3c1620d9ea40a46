"""`kd-cache extend`: a store goes on with a later state of its log. Thin; torch is imported only where a teacher is asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cache.atomic import check_writable
from cache.dataset import Dataset, open_dataset
from cache.errors import StoreError, UsageError
from cache.store import Store
from pipeline import console
from pipeline.config import tuned_folder
from pipeline.extend import check_teacher, extend, open_or_create
from pipeline.grow import join
from pipeline.grown import Grown, SetCost, grow, set_cost
from pipeline.threads import ThreadsOption, use_threads

if TYPE_CHECKING:
    from pipeline.carry import Source
    from teachers.protocol import Teacher

__all__ = ["extend_command"]


def extend_command(
    store: Annotated[Path, typer.Argument(help="The store to go on from, such as cache/toys.")],
    data: Annotated[
        Path, typer.Option(help="The dataset ingested from the whole log as it is now.")
    ],
    out: Annotated[Path, typer.Option(help="Where the new store goes, such as cache/toys-june.")],
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            help="Whose sets to carry on: a tuned teacher's name or folder; repeat it. By default "
            "all that the store has, whose teachers must be at hand."
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="The teachers' language model, where it is not minilm: a folder, a hub name."
        ),
    ] = None,
    pooling: Annotated[
        Literal["mean", "cls"], typer.Option(help="How its token vectors become one.")
    ] = "mean",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what it would cost, write nothing.")
    ] = False,
    threads: ThreadsOption = 0,
) -> None:
    """Go on with a store from a later state of its log: a new store, whose old batches keep their scores.

    New users, items and interactions get batches of their own, and the teacher is asked about these alone.
    """
    if text is None and pooling != "mean":
        raise UsageError(
            f"--pooling {pooling} is for the model that --text names; name it, or leave --pooling away.",
            code="extend.unused_pooling",
        )
    use_threads(threads)
    old, later = Store.open(store), open_dataset(data, deep=True)
    growth = join(old.dataset, later)
    grown = grow(old, growth)
    pairs = _answered_by(old, teacher)
    for name, asked in pairs:
        check_teacher(old, name, asked, growth.new_items)
    sources = _sources(old, grown, pairs, text, pooling) if growth.new_items else []
    costs = [set_cost(old, grown, name, asked) for name, asked in pairs]
    if not dry_run:
        check_writable(out.parent)
        made = open_or_create(out, old, grown)
    _tell(out, old, grown, costs, sources, dry_run)
    left = sorted(set(old.teachers) - {name for name, _ in pairs})
    if left:
        console.note(f"{', '.join(left)}: left behind in {old.path}; add them with --teacher")
    if dry_run:
        return
    for source in sources:
        from pipeline.carry import carry

        with console.progress(f"{out}: {source.name}") as report:
            carry(source, growth, made.dataset, device=_device(), progress=report)
    for (name, asked), cost in zip(pairs, costs, strict=True):
        with console.progress(f"{out}: {name}") as report:
            sealed = extend(
                asked,
                old,
                made,
                name,
                progress=lambda stage, done, total: report(done, total, stage),
            )
        for kind in cost.kinds:
            folder = made.folder(name) if kind == "scores" else made.factor_folder(name)
            size = console.size(sum(entry.size for entry in sealed[kind].files))
            console.say(f"{folder}: {size}, {sealed[kind].digest[:19]}")
    console.hint(f"kd-student fit --cache {out} --compare")


def _answered_by(old: Store, asked: Sequence[str] | None) -> list[tuple[str, Teacher]]:
    """(name of sets, the teacher who answered them), as asked or all of `old`.

    Raises:
        UsageError: ``extend.no_teacher``, ``teacher.missing``; StoreError: ``extend.other_teacher``.
    """
    answered: dict[str, list[str]] = {}
    for name in old.teachers:
        digest = old.reader(name).manifest.settings["teacher_digest"]
        answered.setdefault(digest, []).append(name)
    if asked is not None:
        chosen = []
        for folder in (tuned_folder(one, old.path) for one in dict.fromkeys(asked)):
            found = _load(folder)
            if found.digest not in answered:
                there = ", ".join(f"{', '.join(n)} by {d}" for d, n in answered.items()) or "none"
                raise StoreError(
                    f"{folder}: is the teacher {found.digest}, who answered none of the sets of {old.path} "
                    f"({there}); name the folder of one who did.",
                    code="extend.other_teacher",
                )
            chosen += [(name, found) for name in answered[found.digest]]
        return chosen
    pairs = []
    for digest, names in answered.items():
        kinds = [str(old.reader(name).manifest.settings["teacher"]) for name in names]
        here = _at_hand(old, [*names, *kinds])
        if here is None:
            raise UsageError(
                f"the teacher of {', '.join(names)} in {old.path} ({digest[:19]}) is not in "
                f"tuned/{old.path.resolve().name}; say where it lies with --teacher PATH, or name the others alone.",
                code="extend.no_teacher",
            )
        pairs += [(name, here) for name in names]
    return pairs


def _at_hand(old: Store, names: Sequence[str]) -> Teacher | None:
    for name in dict.fromkeys(names):
        folder = Path("tuned") / old.path.resolve().name / name
        if (folder / "config.json").is_file():
            return _load(folder)
    return None


def _sources(
    old: Store,
    grown: Grown,
    pairs: Sequence[tuple[str, Teacher]],
    text: str | None,
    pooling: Literal["mean", "cls"],
) -> list[Source]:
    """Where the vectors that the teachers read come from, before anything is written."""
    names = dict.fromkeys(one for _, asked in pairs for one in getattr(asked, "vector_sets", ()))
    if not names:
        return []
    from pipeline.carry import find_source
    from teachers.text import TextSettings

    settings = None if text is None else TextSettings(model=text, pooling=pooling)
    planned_from = Path("data") / old.path.resolve().name
    beside = [old.dataset]
    if (planned_from / "manifest.json").is_file():
        there: Dataset = open_dataset(planned_from)
        beside += [there] if there.digest == old.dataset.digest else []
    return [find_source(name, grown.growth, beside, settings) for name in names]


def _tell(
    out: Path,
    old: Store,
    grown: Grown,
    costs: Sequence[SetCost],
    sources: Sequence[Source],
    dry_run: bool,
) -> None:
    growth = grown.growth
    told = []
    if growth.late:
        told.append(
            f"{console.count(growth.late, 'interaction')} inside old histories left out, of items below the k-core then"
        )
    if growth.waiting:
        told.append(
            f"{console.count(growth.waiting, 'user')} of two interactions: the third waits for a fourth"
        )
    console.table(
        f"{out}{', dry run: nothing was written' if dry_run else ''}",
        ["", "before", "new"],
        [
            [noun, f"{before:,}", f"{new:,}"]
            for noun, before, new in (
                ("users", growth.old.num_users, growth.new_users),
                ("items", growth.old.num_items, growth.new_items),
                ("interactions", len(growth.old.flat), growth.new_interactions),
                ("instances", grown.first_instance, grown.new_instances),
                ("batches", grown.first_batch, grown.new_batches),
            )
        ],
        caption="; ".join(told),
    )
    for source in sources:
        if count := source.encoded(growth):
            why = (
                ""
                if source.old is not None
                else ", the old ones too: no vectors of them are at hand"
            )
            console.note(f"{source.name}: {console.count(count, 'text')} to encode{why}")
    if costs:
        console.table(
            "asked of the teachers",
            ["", *(cost.name for cost in costs)],
            [
                ["histories", *(f"{cost.histories:,}" for cost in costs)],
                ["items", *(f"{cost.items:,}" for cost in costs)],
                ["disk", *(console.size(cost.bytes) for cost in costs)],
            ],
        )
    again = [cost.name for cost in costs if cost.again]
    if again:
        console.note(
            f"{', '.join(again)}: old items of new batches are asked for again, no factors keep their vectors"
        )


def _load(folder: Path) -> Teacher:
    from teachers.registry import load_teacher

    return load_teacher(folder)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
