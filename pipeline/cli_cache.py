"""`kd-cache ingest | plan | build | show | verify`: stage one and the store, from the command line. Thin."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cache.dataset import InstanceKind, open_dataset
from cache.errors import StoreError, UsageError
from cache.plan import Plan
from cache.score_writer import TAU
from cache.store import Store, describe
from cache.verify import compare, verify
from pipeline import console
from pipeline.build import build, scorer
from pipeline.config import find_dataset, find_store, tuned_folder
from pipeline.curriculum import PlanSettings, Popularity, estimate, make_plan
from pipeline.ingest import FORMATS, ingest
from pipeline.sample import write_sample
from teachers.registry import load_teacher

app = typer.Typer(
    name="kd-cache",
    help="Freeze data, plan batches, ask teachers once, and keep what they said.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

_PLAN = PlanSettings()

CacheOption = Annotated[
    Path | None, typer.Option("--cache", help="The store; by default the only one in cache/.")
]


@app.command("ingest")
def ingest_command(
    source: Annotated[Path, typer.Argument(help="A file or folder of interactions.")],
    out: Annotated[Path, typer.Option(help="Where the dataset goes, such as data/toys.")],
    format: Annotated[
        str | None,
        typer.Option(help=f"One of {', '.join(FORMATS)}; told from the source if left out."),
    ] = None,
    items: Annotated[Path | None, typer.Option(help="Item texts, where they lie apart.")] = None,
    user: Annotated[str | None, typer.Option(help="Name of the user column.")] = None,
    item: Annotated[str | None, typer.Option(help="Name of the item column.")] = None,
    time: Annotated[str | None, typer.Option(help="Name of the time column.")] = None,
    title: Annotated[str | None, typer.Option(help="Name of the title column.")] = None,
    brand: Annotated[str | None, typer.Option(help="Name of the brand column.")] = None,
    category: Annotated[str | None, typer.Option(help="Name of the category column.")] = None,
    description: Annotated[str | None, typer.Option(help="Name of the description column.")] = None,
    image: Annotated[str | None, typer.Option(help="Name of the image column.")] = None,
    k_core: Annotated[
        int | None,
        typer.Option(help="Least interactions of a user and an item; 5, or 0 if filtered already."),
    ] = None,
    max_length: Annotated[int, typer.Option(help="Histories are cut to so many items.")] = 50,
    anonymise: Annotated[
        bool, typer.Option("--anonymise", help="Leave the users' ids out.")
    ] = False,
) -> None:
    """Freeze interactions and item texts as a dataset."""
    named = {
        "user": user,
        "item": item,
        "time": time,
        "title": title,
        "brand": brand,
        "category": category,
        "description": description,
        "image": image,
    }
    result = ingest(
        source,
        out,
        format=format,
        items=items,
        columns={part: name for part, name in named.items() if name},
        k_core=k_core,
        max_length=max_length,
        anonymise=anonymise,
    )
    counts = asdict(result.counts)
    console.table(
        f"{out}: {result.format}, {result.k_core}-core, {result.dataset.digest[:19]}",
        ["", "count"],
        [[name.replace("_", " "), f"{value:,}"] for name, value in counts.items()],
    )


@app.command()
def sample(
    out: Annotated[Path, typer.Option(help="Folder for the two Parquet files.")],
    users: Annotated[int, typer.Option(help="How many shoppers.", min=50)] = 3000,
    items: Annotated[int, typer.Option(help="How many products.", min=50)] = 1600,
    seed: Annotated[int, typer.Option(help="Of the generator.", min=0)] = 7,
) -> None:
    """Write a generated shop whose texts tell something of what is bought next."""
    write_sample(out, users=users, items=items, seed=seed)
    console.say(f"{out}: {users:,} users, {items:,} items; go on with `kd-cache ingest {out}`.")


@app.command()
def plan(
    data: Annotated[
        Path | None, typer.Option(help="The dataset; by default the only one in data/.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="The new store; by default cache/<data's name>.")
    ] = None,
    instances: Annotated[
        InstanceKind, typer.Option(help="Every prefix of a user, or only the last.")
    ] = _PLAN.instances,
    batch_size: Annotated[int, typer.Option(help="Instances in a batch.")] = _PLAN.batch_size,
    buckets: Annotated[int, typer.Option(help="Difficulty levels.")] = _PLAN.buckets,
    rounds: Annotated[
        int, typer.Option(help="Standard rounds, each with its own batches.")
    ] = _PLAN.rounds,
    alpha: Annotated[float, typer.Option(help="Weight of popularity in eq. 1.")] = _PLAN.alpha,
    popularity: Annotated[
        Popularity, typer.Option(help="pop() of eq. 1: count / max, its log, share, or raw count.")
    ] = _PLAN.popularity,
    seed: Annotated[int, typer.Option(help="Of the shuffles.")] = _PLAN.seed,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what it would cost, write nothing.")
    ] = False,
) -> None:
    """Fix which instances meet in which batch, and open a store for what teachers say."""
    where = find_dataset(data, "kd-cache plan")
    dataset = open_dataset(where, deep=True)
    settings = PlanSettings(
        instances=instances,
        batch_size=batch_size,
        buckets=buckets,
        rounds=rounds,
        alpha=alpha,
        popularity=popularity,
        seed=seed,
    )
    cost = estimate(dataset, settings)
    target = cache or Path("cache") / where.resolve().name
    console.table(
        f"{target}{' (dry run)' if dry_run else ''}",
        ["", "value"],
        [
            ["users", f"{dataset.num_users:,}"],
            ["items", f"{dataset.num_items:,}"],
            ["instances", f"{cost.instances:,}"],
            [
                "batches",
                f"{cost.batches:,} (curriculum in {buckets} buckets, {rounds} standard round(s))",
            ],
            ["distinct targets a batch", f"up to {cost.columns:,}"],
            ["disk per teacher", console.size(cost.bytes_per_teacher)],
        ],
    )
    if not dry_run:

        def write(folder: Path, inside: object) -> Plan:
            return make_plan(folder, dataset, settings)

        Store.create(target, dataset, write)


@app.command("build")
def build_command(
    teacher: Annotated[
        str, typer.Option(help="A tuned teacher: its name, or the folder it lies in.")
    ],
    cache: CacheOption = None,
    name: Annotated[
        str | None, typer.Option(help="Of the score set; by default the teacher's.")
    ] = None,
    tau: Annotated[float, typer.Option(help="Temperature of the stored softmax.", min=1e-3)] = TAU,
) -> None:
    """Ask a teacher about every batch, once, and keep the scores in the store."""
    store = Store.open(find_store(cache, "kd-cache build"))
    asked = load_teacher(tuned_folder(teacher, store.path))
    with console.progress(f"{store.path}: {asked.name}") as report:
        manifest = build(
            asked,
            store,
            tau=tau,
            name=name,
            quality=asked.quality,
            progress=lambda stage, done, total: report(done, total, stage),
        )
    size = sum(entry.size for entry in manifest.files)
    console.say(
        f"{store.folder(name or asked.name)}: {len(store.plan):,} batches, {console.size(size)}, "
        f"{manifest.digest[:19]}"
    )


@app.command()
def show(cache: CacheOption = None) -> None:
    """Print what a store holds."""
    about = describe(Store.open(find_store(cache, "kd-cache show")))
    counts = {**about.dataset.counts, **about.plan.counts}
    console.table(
        f"{about.path}",
        ["", "value"],
        [
            *([name, f"{value:,}"] for name, value in counts.items()),
            ["dataset", f"{console.size(about.dataset_bytes)}, {about.dataset.digest[:19]}"],
            ["plan", f"{console.size(about.plan_bytes)}, {about.plan.digest[:19]}"],
        ],
    )
    per_instance = max(about.plan.counts["instances"], 1)
    console.table(
        "score sets",
        ["name", "tau", "valid ndcg@10", "size", "bytes an instance", "digest"],
        [
            [
                one.name,
                f"{one.tau:g}",
                f"{one.quality['ndcg@10']:.4f}" if "ndcg@10" in one.quality else "unknown",
                console.size(one.bytes),
                f"{one.bytes / per_instance:,.0f}",
                one.digest[:19],
            ]
            for one in about.score_sets
        ],
    )
    for name in about.unfinished:
        console.say(f"{name}: unfinished; `kd-cache build --teacher {name}` goes on.")


@app.command("verify")
def verify_command(
    cache: CacheOption = None,
    sample: Annotated[
        int, typer.Option(help="Ask --teacher again about so many batches.", min=0)
    ] = 0,
    teacher: Annotated[
        str | None, typer.Option(help="The tuned teacher that --sample asks.")
    ] = None,
) -> None:
    """Hash every byte of a store and name whatever has changed, is missing or does not belong."""
    path = find_store(cache, "kd-cache verify")
    if bool(sample) != bool(teacher):
        raise UsageError(
            "--sample and --teacher belong together; give both or neither.",
            code="verify.half_sample",
        )
    with console.progress(f"{path}: hashing") as report:
        found = verify(path, progress=lambda done, total: report(done, total, ""))
    if not found and teacher:
        store = Store.open(path, deep=False)
        asked = load_teacher(tuned_folder(teacher, path))
        found += compare(store, asked.name, scorer(asked, store.dataset), sample=sample)
    for finding in found:
        console.note(f"kd-cache verify: {finding}  [{finding.code}]")
    if found:
        raise StoreError(f"{path}: {len(found)} finding(s), listed above.", code="store.damaged")
    again = f", {sample} batch(es) of {teacher} asked again" if teacher else ""
    console.say(f"{path}: sound; every byte hashed{again}.")


def main() -> None:
    """Entry point of `kd-cache`."""
    console.run(app, "kd-cache")
