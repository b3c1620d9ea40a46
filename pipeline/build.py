"""STAGE ONE: ask a teacher about every batch of a store's plan, once; leave a sealed score set, factor set, or both.

Items are encoded once, and histories once in fixed blocks kept on disk until the set is sealed, so memory is bounded by
one block and one shard however many users there are. Killed at any instant, the same command goes on where it stopped and
ends in the byte-identical store. Several processes may build one set together (together.py). Refuses any other second
writer, a finished set with other settings, and unfinished work of another teacher, temperature or plan: remove the folder
it names to start afresh.

Shape legend: T slots and C columns of one batch, V items, D width, N instances.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cache.codec import Codec
from cache.dataset import Dataset
from cache.errors import UsageError
from cache.factor_layout import FactorLayout
from cache.factor_writer import FactorWriter, factor_settings, refuse_other_product
from cache.journal import Journal
from cache.layout import SHARD_BYTES, Layout
from cache.manifest import Manifest
from cache.plan import Batch, Plan
from cache.score_writer import (
    TAU,
    ScoreWriter,
    parents_of,
    refuse_empty,
    score_settings,
)
from cache.store import FACTORS, SCORES, Store, refuse_other_teacher
from cache.unfinished import Unfinished, clear_work
from pipeline.kept import ITEMS, Kept, load_vectors
from pipeline.sets import Progress, finished, log, silent
from pipeline.together import Crew, Unit, block_units, leading, opened, shard_units

if TYPE_CHECKING:
    from teachers.protocol import Teacher

__all__ = [
    "HISTORY_BLOCK",
    "PROBE_BATCHES",
    "Keep",
    "Progress",
    "build",
    "refuse_no_factors",
    "refuse_unused_codec",
    "scorer",
    "spread",
]

Keep: TypeAlias = Literal["scores", "factors", "both"]

HISTORY_BLOCK = 4096  #: instances encoded and kept together; decides the bits, so it is a setting
FACTOR_BLOCKS = 8  #: of these in a file of a factor set: 20 MB at 300 numbers a vector

PROBE_BATCHES = 4  #: of a plan, where a few must stand for all


def build(
    teacher: Teacher,
    store: Store,
    *,
    tau: float = TAU,
    name: str | None = None,
    quality: Mapping[str, float] | None = None,
    keep: Keep = "scores",
    codec: Codec = "none",
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
    crew: Crew | None = None,
) -> Manifest:
    """Write what `teacher` says about the plan of `store` as the score set, factor set or both called `name`.

    Args:
        tau: temperature of eq. 2's softmax.
        name: of what is kept; the teacher's name by default.
        quality: validation metrics that students weigh by, where the teacher's own are not wanted.
        keep: scores of the plan's batches, the vectors whose products they are, or both from one encoding.
        codec: how scores are kept: as they are in float16, or in a byte and a bit each.
        shard_bytes: about how large a shard file may grow; the unit of resumption.
        progress: called as work is done; work found from an earlier run counts as done.
        crew: where other processes may build this set at the same time: what this one did is told in there.

    Returns:
        The manifest of the sealed score set, or of the factor set if no scores are kept; the one that is there when
        it was built before with these settings.

    Raises:
        UsageError: ``teacher.no_factors`` where the teacher's scores are no products of vectors, ``build.unused_codec``.
        StoreError: ``scores.exists`` with other settings, ``scores.foreign_work``, ``store.busy`` without a crew.
        TeacherError: NaN, infinities or wrong shapes from the teacher; what was whole before stays.
        DiskError: the disk is full or failing; the same command goes on once that is mended.
    """
    refuse_no_factors(teacher, keep)
    refuse_unused_codec(codec, keep)
    tell = progress or silent
    layout = Layout.of(store.plan, codec=codec, shard_bytes=shard_bytes)
    block = HISTORY_BLOCK if teacher.factorises else 0
    quality = teacher.quality if quality is None else quality
    who: dict[str, Any] = {
        "teacher": teacher.name,
        "teacher_digest": teacher.digest,
        "quality": quality,
        "tau": tau,
    }
    settings = {
        SCORES: score_settings(layout, **who, extra={"history_block": block}),
        FACTORS: factor_settings(**who, history_block=block, rows_per_file=block * FACTOR_BLOCKS),
    }
    name = name or teacher.name
    folders = {SCORES: store.folder(name), FACTORS: store.factor_folder(name)}
    wanted = [SCORES, FACTORS] if keep == "both" else [keep]

    def units_of(part: Unfinished, lead: Path) -> Sequence[Unit]:
        kept = Kept(part, teacher, store.dataset, store.plan, block=HISTORY_BLOCK)
        if teacher.factorises:
            return block_units(kept)
        if not Journal(lead, mine=False).whole(ITEMS):
            return []
        writer = ScoreWriter(part, store.plan, layout)
        items_VD = load_vectors(lead / ITEMS)
        return shard_units(writer, partial(_put_shard, writer, teacher, kept, store, items_VD))

    def hand() -> bool:
        kind = next((one for one in wanted if not folders[one].exists()), None)
        if crew is None or kind is None:
            return False
        stage = "histories" if teacher.factorises else SCORES
        return crew.help(
            folders[kind], parents_of(store.plan), settings[kind], stage, units_of, tell
        )

    with leading(folders[SCORES], hand if crew is not None else None):
        sealed: dict[str, Manifest] = {}
        for kind in wanted:
            refuse_other_teacher(store, name, kind, settings[kind])
            if folders[kind].exists():
                sealed[kind] = finished(folders[kind], kind, store.plan, settings[kind])
                clear_work(folders[kind])
        if SCORES in sealed:
            tell(SCORES, layout.batches, layout.batches)
        started = time.time()
        scores, factors = None, None
        if SCORES in wanted and SCORES not in sealed:
            scores = ScoreWriter.open(folders[SCORES], store.plan, layout, settings[SCORES])
        if FACTORS in wanted and FACTORS not in sealed:
            factors = _begin_factors(folders[FACTORS], store.plan, settings[FACTORS])
        # what both are made of lies with the one that is sealed last
        part = scores.part if scores else factors
        if part is not None:
            with opened(part, crew) as crew:
                kept = Kept(part, teacher, store.dataset, store.plan, block=HISTORY_BLOCK)
                if factors is not None:
                    sealed[FACTORS] = _write_factors(factors, teacher, kept, store, tell, crew)
                    log(store, FACTORS, sealed[FACTORS], folders[FACTORS].name, started)
                if scores is not None:
                    _write(scores, teacher, kept, store, tell, crew)
                    if crew is not None:
                        crew.shut()
                    sealed[SCORES] = scores.seal()
                    log(store, SCORES, sealed[SCORES], folders[SCORES].name, started)
    return sealed[wanted[0]]


def refuse_no_factors(teacher: Teacher, keep: Keep) -> None:
    """Refuse to keep vectors of a teacher that has none.

    Raises:
        UsageError: ``teacher.no_factors``.
    """
    if keep != SCORES and not teacher.factorises:
        raise UsageError(
            f"the scores of teacher {teacher.name!r} are no products of vectors, so it has no factors to keep; "
            "leave --keep away.",
            code="teacher.no_factors",
        )


def refuse_unused_codec(codec: Codec, keep: Keep) -> None:
    """Refuse a codec of scores where none are kept.

    Raises:
        UsageError: ``build.unused_codec``.
    """
    if keep == FACTORS and codec != "none":
        raise UsageError(
            f"--codec {codec} is for scores, and --keep {keep} keeps none; leave --codec away.",
            code="build.unused_codec",
        )


def spread(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` of 0..count-1 at equal distances, and at least one."""
    take = max(min(count, most), 1)
    return (np.arange(take) * 2 + 1) * count // (2 * take)


def scorer(teacher: Teacher, dataset: Dataset) -> Callable[[Batch], NDArray[np.float32]]:
    """A function from a batch to its bare scores [T, C], asking `teacher` afresh; for `verify`."""
    items_VD = teacher.encode_items(dataset)

    def score(batch: Batch) -> NDArray[np.float32]:
        users_TD = teacher.encode_histories(dataset, batch.users, batch.ends)
        scores_TC: NDArray[np.float32] = teacher.score(users_TD, items_VD[batch.items])
        return scores_TC

    return score


def _begin_factors(folder: Path, plan: Plan, settings: Mapping[str, Any]) -> Unfinished:
    refuse_empty(plan)
    return Unfinished.open(folder, parents=parents_of(plan), settings=settings)


def _write_factors(
    part: Unfinished,
    teacher: Teacher,
    kept: Kept,
    store: Store,
    tell: Progress,
    crew: Crew | None,
) -> Manifest:
    """Do every file that is missing, and seal the set."""
    plan, dataset = store.plan, store.dataset
    items_VD = _encode(kept, plan, dataset, tell, crew)
    for index in spread(len(plan), PROBE_BATCHES):
        batch = plan[int(index)]
        users_TD, items_CD = kept.histories(batch.instances), items_VD[batch.items]
        score_TC = teacher.score(users_TD, items_CD)
        refuse_other_product(teacher.name, score_TC, users_TD, items_CD, part.settings["tau"])
    layout = FactorLayout.of(
        plan,
        items=dataset.num_items,
        width=items_VD.shape[1],
        per_file=part.settings["rows_per_file"],
    )
    writer = FactorWriter(part, layout)
    total = len(layout.sizes())
    missing = list(writer.missing())
    tell(FACTORS, total - len(missing), total)
    for number, (table, unit) in enumerate(missing, start=total - len(missing) + 1):
        rows = layout.file_rows(table, unit)
        vectors_ND = (
            items_VD[rows.start : rows.stop]
            if table == "items"
            else kept.histories(np.arange(rows.start, rows.stop))
        )
        writer.put(table, unit, vectors_ND)
        kept.release()
        tell(FACTORS, number, total)
    return writer.seal()


def _encode(
    kept: Kept, plan: Plan, dataset: Dataset, tell: Progress, crew: Crew | None
) -> NDArray[np.float32]:
    """Have every history encoded; [V, D] the items' vectors."""
    items_VD = kept.items()
    tell("items", dataset.num_items, dataset.num_items)
    if crew is not None:
        crew.lead(kept.part, "histories", block_units(kept), tell)
    kept.encode(lambda done: tell("histories", done, plan.num_instances))
    return items_VD


def _write(
    writer: ScoreWriter,
    teacher: Teacher,
    kept: Kept,
    store: Store,
    tell: Progress,
    crew: Crew | None,
) -> None:
    """Do every shard that is missing."""
    missing = list(writer.missing())
    if not missing:
        return
    dataset, layout = store.dataset, writer.layout
    if teacher.factorises:
        items_VD = _encode(kept, store.plan, dataset, tell, crew)
    else:
        items_VD = kept.items()
        tell("items", dataset.num_items, dataset.num_items)
    put = partial(_put_shard, writer, teacher, kept, store, items_VD)
    if crew is not None and not teacher.factorises:
        crew.lead(kept.part, SCORES, shard_units(writer, put), tell)
        return
    done = layout.batches - sum(len(layout.shard_batches(unit)) for unit in missing)
    tell(SCORES, done, layout.batches)

    def heard() -> None:
        nonlocal done
        done += 1
        tell(SCORES, done, layout.batches)

    for unit in missing:
        put(unit, heard)


def _put_shard(
    writer: ScoreWriter,
    teacher: Teacher,
    kept: Kept,
    store: Store,
    items_VD: NDArray[np.float32],
    unit: int,
    heard: Callable[[], None] | None = None,
) -> None:
    """Score the batches of one shard and write it; `heard` is called after each batch."""
    plan, dataset = store.plan, store.dataset
    raws = []
    for index in writer.layout.shard_batches(unit):
        batch = plan[index]
        users_TD = (
            kept.histories(batch.instances)
            if teacher.factorises
            else teacher.encode_histories(dataset, batch.users, batch.ends)
        )
        raws.append(teacher.score(users_TD, items_VD[batch.items]))
        if heard is not None:
            heard()
    writer.put(unit, raws)
    kept.release()
