"""`kd-cache build`: ask a teacher about every batch of a store once, alone or together with others; what that would cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cache.codec import Codec
from cache.manifest import read_manifest
from cache.paths import checkpoint_of
from cache.plan import PlannedBatch
from cache.score_writer import TAU
from cache.store import Store
from pipeline import console
from pipeline.build import Keep, build, refuse_no_factors, refuse_unused_codec
from pipeline.config import find_store, tuned_folder
from pipeline.estimate import estimate, estimate_factors, estimate_seconds
from pipeline.threads import ThreadsOption, use_threads
from pipeline.together import Crew, take_own_gpu

if TYPE_CHECKING:
    from teachers.protocol import Teacher

__all__ = ["CacheOption", "asked_teacher", "build_command", "called_as"]

CacheOption = Annotated[
    Path | None, typer.Option("--cache", help="The store; by default the only one in cache/.")
]


def build_command(
    teacher: Annotated[
        str, typer.Option(help="A tuned teacher: its name, or the folder it lies in.")
    ],
    cache: CacheOption = None,
    name: Annotated[
        str | None, typer.Option(help="Of what is kept; by default the teacher's.")
    ] = None,
    tau: Annotated[
        float, typer.Option(help="Temperature of the stored softmax.", min=1e-3, max=1e6)
    ] = TAU,
    keep: Annotated[
        Keep,
        typer.Option(
            help="Scores of the plan's batches; or the vectors whose products they are, from which students may "
            "draw any batches; or both."
        ),
    ] = "scores",
    codec: Annotated[
        Codec,
        typer.Option(
            help="Of scores: float16 as it is; or a byte each, half the size for the road and slower to read."
        ),
    ] = "none",
    together: Annotated[
        bool,
        typer.Option(
            "--together",
            help="Share the work with whoever types this too, here or on machines that see this folder.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what it would cost, write nothing.")
    ] = False,
    threads: ThreadsOption = 0,
) -> None:
    """Ask a teacher about every batch, once, and keep what it said in the store."""
    store = Store.open(find_store(cache, "kd-cache build"))
    crew = Crew() if together else None
    if crew is not None:
        take_own_gpu()
    use_threads(threads)
    asked = asked_teacher(teacher, store.path)
    if dry_run:
        _tell_cost(store, asked, keep, codec)
        return
    called = name or called_as(teacher, asked)
    folders = {"scores": store.folder(called), "factors": store.factor_folder(called)}
    kinds = [kind for kind in folders if keep in (kind, "both")]
    known = [kind for kind in kinds if folders[kind].exists()]
    with console.progress(f"{store.path}: {asked.name}") as report:
        build(
            asked,
            store,
            tau=tau,
            name=called,
            quality=asked.quality,
            keep=keep,
            codec=codec,
            progress=lambda stage, done, total: report(done, total, stage),
            crew=crew,
        )
    batches = console.count(len(store.plan), "batch", "batches")
    instances = console.count(store.plan.num_instances, "instance")
    for kind in kinds:
        manifest = read_manifest(folders[kind], kind)
        size = console.size(sum(entry.size for entry in manifest.files))
        what = f"{batches if kind == 'scores' else instances}, {size}, {manifest.digest[:19]}"
        console.say(f"{folders[kind]}: {what}{', built before' if kind in known else ''}")
    if crew is not None:
        did = f"did {crew.did:,} of {console.count(crew.of, 'piece')} of the work"
        console.say(f"{store.path}: this process {did if crew.of else 'came late, all was done'}")
    console.hint(f"kd-student fit --cache {store.path} --compare")


def asked_teacher(name: str, store: Path) -> Teacher:
    """The tuned teacher of that name or in that folder; torch is imported only now."""
    from teachers.registry import load_teacher

    return load_teacher(tuned_folder(name, store))


def _tell_cost(store: Store, asked: Teacher, keep: Keep, codec: Codec) -> None:
    """What a build would take."""
    dataset, plan = store.dataset, store.plan
    refuse_no_factors(asked, keep)
    refuse_unused_codec(codec, keep)
    rows = []
    if keep != "factors":
        rows.append(["scores", console.size(estimate(plan, codec))])
    if keep != "scores":
        width = asked.encode_items(dataset).shape[1]
        size = estimate_factors(plan, items=dataset.num_items, width=width)
        rows.append(["factors", console.size(size)])
    batches = [
        PlannedBatch(round=one.round, bucket=one.bucket, instances=one.instances)
        for one in map(plan.__getitem__, range(len(plan)))
    ]
    instances = (plan.instance_users, plan.instance_ends)
    seconds = estimate_seconds(asked, dataset, instances, batches)
    console.table(
        f"{store.path}: {asked.name}, dry run: nothing was written",
        ["", "value"],
        [
            ["instances", f"{plan.num_instances:,}"],
            ["batches", f"{len(plan):,}"],
            *rows,
            ["time", f"about {console.duration(max(seconds, 1))} on this machine"],
        ],
    )


def called_as(named: str, teacher: Teacher) -> str:
    """The name of a teacher's sets: its own, or its folder's where that is a checkpoint on its way (unisrec@1)."""
    folder = Path(named).name
    return folder if (checkpoint_of(folder) or ("", 0))[0] == teacher.name else teacher.name
