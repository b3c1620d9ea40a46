"""`kd-cache ingest | sample | plan | show | verify`; `build` is cli_build.py's, `extend` cli_extend.py's, and
`push | pull | merge | sign` are cli_share.py's. Thin.

Torch is imported only where a teacher is asked, so that the other commands answer at once.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cache.dataset import Dataset, InstanceKind, open_dataset
from cache.errors import StoreError, UsageError
from cache.identity import difference
from cache.plan import Plan
from cache.signature import SIGNATURE
from cache.store import Store
from cache.verify import compare, verify
from pipeline import console
from pipeline.build import scorer
from pipeline.cli_build import CacheOption, asked_teacher, build_command, called_as
from pipeline.cli_extend import extend_command
from pipeline.cli_share import add_commands
from pipeline.config import check_finite, find_dataset, find_store, parse_epsilon
from pipeline.curriculum import MOST, PlanSettings, Popularity, estimate, make_plan, planned
from pipeline.estimate import estimate_seconds
from pipeline.ingest import FORMATS, MAX_LENGTH, ingest
from pipeline.ingest.freeze import Ingested
from pipeline.join_options import ConsistencyOption, EpsilonOption, TauOption
from pipeline.sample import MOST_ITEMS, MOST_USERS, write_sample
from pipeline.show import show
from pipeline.sign import SignedByOption, check_signed_here

if TYPE_CHECKING:
    pass

app = typer.Typer(
    name="kd-cache",
    help="Freeze data, plan batches, ask teachers once, and keep what they said.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

_PLAN = PlanSettings()


@app.command("ingest", short_help="Freeze interactions and item texts.")
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
    max_length: Annotated[
        int, typer.Option(help="Histories are cut to so many items.", max=MAX_LENGTH)
    ] = 50,
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
    _tell_ingested(out, result)
    console.hint(f"kd-cache plan --data {out}")


@app.command(short_help="Write a small generated shop to try things on.")
def sample(
    out: Annotated[Path, typer.Option(help="Folder for the two Parquet files.")],
    users: Annotated[int, typer.Option(help="How many shoppers.", min=50, max=MOST_USERS)] = 3000,
    items: Annotated[int, typer.Option(help="How many products.", min=96, max=MOST_ITEMS)] = 1600,
    seed: Annotated[int, typer.Option(help="Of the generator.", min=0)] = 7,
) -> None:
    """Write a generated shop whose texts tell something of what is bought next."""
    write_sample(out, users=users, items=items, seed=seed)
    console.say(f"{out}: a generated shop of {users:,} users and {items:,} items")
    console.hint(f"kd-cache ingest {out} --out data/{out.resolve().name}")


@app.command(short_help="Fix the batches and open a store for teachers' scores.")
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
    buckets: Annotated[int, typer.Option(help="Difficulty levels.", max=MOST)] = _PLAN.buckets,
    rounds: Annotated[
        int, typer.Option(help="Standard rounds, each with its own batches.", max=MOST)
    ] = _PLAN.rounds,
    alpha: Annotated[float, typer.Option(help="Weight of popularity in eq. 1.")] = _PLAN.alpha,
    popularity: Annotated[
        Popularity, typer.Option(help="pop() of eq. 1: count / max, its log, share, or raw count.")
    ] = _PLAN.popularity,
    seed: Annotated[int, typer.Option(help="Of the shuffles.", min=0, max=2**31 - 1)] = _PLAN.seed,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what it would cost, write nothing.")
    ] = False,
    teacher: Annotated[
        str | None,
        typer.Option(help="With --dry-run: a tuned teacher, to tell how long asking it takes."),
    ] = None,
) -> None:
    """Fix which instances meet in which batch, and open a store for what teachers say."""
    if teacher and not dry_run:
        raise UsageError(
            "--teacher only tells what asking would cost; add --dry-run, or leave it away.",
            code="plan.unused_teacher",
        )
    check_finite(alpha=alpha)
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
    target = cache or Path("cache") / where.resolve().name
    asked = asked_teacher(teacher, target) if teacher else None
    if not dry_run and _is_planned(target, dataset, settings):
        console.say(f"{target}: is there already, with this dataset and this very plan")
        return
    cost = estimate(dataset, settings)
    time = "unknown; add --teacher NAME once one is tuned"
    if asked is not None:
        seconds = estimate_seconds(asked, dataset, *planned(dataset, settings))
        time = f"about {console.duration(max(seconds, 1))} on this machine ({asked.name})"
    if not dry_run:

        def write(folder: Path, inside: Dataset) -> Plan:
            return make_plan(folder, inside, settings)

        Store.create(target, dataset, write)
    console.table(
        f"{target}{', dry run: nothing was written' if dry_run else ''}",
        ["", "value"],
        [
            ["users", f"{dataset.num_users:,}"],
            ["items", f"{dataset.num_items:,}"],
            ["instances", f"{cost.instances:,}"],
            ["batches", f"{cost.batches:,} of up to {batch_size:,} instances"],
            ["curriculum", f"{console.count(buckets, 'bucket')}, easiest first"],
            ["then", console.count(rounds, "standard round")],
            ["distinct targets a batch", f"up to {cost.columns:,}"],
            ["disk per teacher", console.size(cost.bytes_per_teacher)],
            *([["time per teacher", time]] if dry_run else []),
        ],
    )
    if not dry_run:
        console.hint(f"kd-teacher tune unisrec --data {where}")


app.command("build", short_help="Ask a teacher once and keep what it said.")(build_command)
app.command("extend", short_help="Go on with a store: a later log, new batches, old scores.")(
    extend_command
)


@app.command("show", short_help="Print what a store holds.")
def show_command(
    cache: CacheOption = None,
    consistency: ConsistencyOption = "pair",
    epsilon: EpsilonOption = "0.8q",
    tau: TauOption = None,
    batches: Annotated[
        int,
        typer.Option(
            help="Read so many, evenly spread, to compare the teachers; 0 leaves it out.", min=0
        ),
    ] = 64,
) -> None:
    """Print what a store holds, and how far its teachers agree."""
    store = Store.open(find_store(cache, "kd-cache show"))
    show(
        store,
        consistency=consistency,
        epsilon=parse_epsilon(epsilon),
        tau=tau,
        batches=batches,
    )


@app.command("verify", short_help="Hash every byte and name what has changed.")
def verify_command(
    store: Annotated[Path | None, typer.Argument(help="The store; the same as --cache.")] = None,
    cache: CacheOption = None,
    signed_by: SignedByOption = None,
    sample: Annotated[
        int, typer.Option(help="Ask --teacher again about so many batches.", min=0)
    ] = 0,
    teacher: Annotated[
        str | None, typer.Option(help="The tuned teacher that --sample asks.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Its score set; by default the teacher's name.")
    ] = None,
) -> None:
    """Hash every byte of a store and name whatever has changed, is missing or does not belong."""
    if store and cache and store != cache:
        raise UsageError(
            f"{store} and --cache {cache} are two stores; name one.", code="verify.two_stores"
        )
    path = find_store(store or cache, "kd-cache verify")
    if bool(sample) != bool(teacher):
        raise UsageError(
            "--sample and --teacher belong together; give both or neither.",
            code="verify.half_sample",
        )
    if name and not teacher:
        raise UsageError(
            "--name says which scores --teacher is asked about; give --teacher and --sample too.",
            code="verify.half_sample",
        )
    with console.progress(f"{path}: hashing", unit="bytes") as report:
        found = verify(path, progress=lambda done, total: report(done, total, ""))
    opened = Store.open(path, deep=False) if not found and (teacher or signed_by) else None
    signed = ""
    if opened and signed_by:
        absent = check_signed_here(opened, signed_by)
        signed = f", signed by the owner of {signed_by}"
        signed += f" (who signed {', '.join(absent)} too, not here)" if absent else ""
    if opened and teacher:
        asked = asked_teacher(teacher, path)
        found += compare(
            opened, name or called_as(teacher, asked), scorer(asked, opened.dataset), sample=sample
        )
    if len(found) == 1:
        raise found[0]
    for finding in found:
        console.note(f"kd-cache verify: {finding}  [{finding.code}]")
    if found:
        raise StoreError(
            f"{path}: {console.count(len(found), 'finding')}, listed above.", code="store.damaged"
        )
    again = ""
    if teacher:
        assert opened is not None
        batches = console.count(min(sample, len(opened.plan)), "batch", "batches")
        again = f", {batches} of {teacher} asked again"
    console.say(f"{path}: sound; every byte hashed{again}{signed}")
    if not signed_by and (path / SIGNATURE).exists():
        console.note(f"{path}: is signed; who by is checked with --signed-by PUBLIC.pem")


add_commands(app)


def _is_planned(target: Path, dataset: Dataset, settings: PlanSettings) -> bool:
    """Whether `target` is the store that would be made.

    Raises:
        StoreError: ``store.exists`` when another one is there, naming what differs.
    """
    if not (target / "plan").is_dir():
        return False
    store = Store.open(target)
    found = {"dataset": store.dataset.digest, **store.plan.manifest.settings}
    wanted = {"dataset": dataset.digest, **asdict(settings)}
    if odd := difference(found, wanted):
        key, there, here = odd
        raise StoreError(
            f"{target}: is there already with {key} {there}, this one would have "
            f"{here}; choose another --cache, or remove it.",
            code="store.exists",
        )
    return True


def _tell_ingested(out: Path, result: Ingested) -> None:
    counts = result.counts
    core = f"by the {result.k_core}-core"
    dropped = [
        (counts.unlisted, "of items without metadata"),
        (counts.duplicates, "duplicates"),
        (counts.interactions_before - counts.interactions, core),
    ]
    told = [f"{number:,} {what}" for number, what in dropped if number]
    captions = [f"interactions dropped: {', '.join(told)}"] if told else []
    if counts.items_without_text:
        captions.append(f"{console.count(counts.items_without_text, 'item')} kept without a text")
    features = f", item vectors {', '.join(result.features)}" if result.features else ""
    console.table(
        f"{out}: from {result.format}{features}, {result.dataset.digest[:19]}",
        ["", "read", "kept"],
        [
            ["interactions", f"{counts.rows:,}", f"{counts.interactions:,}"],
            ["users", f"{counts.users_before:,}", f"{counts.users:,}"],
            ["items", f"{counts.items_before:,}", f"{counts.items:,}"],
        ],
        caption="\n".join(captions),
    )


def main() -> None:
    """Entry point of `kd-cache`."""
    console.run(app, "kd-cache")
