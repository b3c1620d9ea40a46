"""Extends a store: a later state of the same log becomes a new store, in which the old one's scores are not asked for again.

The plan goes on from the old one (pipeline/grow.py), so every old batch is there under its number, and what a set holds of
it is copied, verified, bit by bit. A teacher is asked about new histories, and about items that no kept vectors are at hand
for: where the old store has factors, old items' vectors come from there. Killed at any instant, the same command goes on
where it stopped and ends in the byte-identical store. Refuses a teacher that is not the one who answered before, and one
that knows nothing of new items.

Shape legend: T slots and C columns of one batch, N instances, D width.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import pipeline.build
from cache.dataset import EXTENDS, Dataset
from cache.errors import StoreError, UsageError
from cache.factor_layout import FactorLayout
from cache.factor_writer import FactorWriter, factor_settings, refuse_other_product
from cache.factors import FactorReader
from cache.layout import SHARD_BYTES, Layout
from cache.manifest import Manifest
from cache.plan import Plan, write_plan
from cache.score_writer import ScoreWriter, parents_of, refuse_empty, score_settings
from cache.scores import ScoreReader
from cache.store import FACTORS, SCORES, Store, refuse_other_teacher
from cache.unfinished import Unfinished, clear_work
from pipeline.grow import grown_settings
from pipeline.grown import Grown, readers_of, rows_asked
from pipeline.kept import Kept
from pipeline.sets import Progress, finished, log, only_writer, silent

if TYPE_CHECKING:
    from teachers.protocol import Teacher

__all__ = ["check_teacher", "extend", "open_or_create"]


def open_or_create(path: Path, old: Store, grown: Grown) -> Store:
    """The extended store at `path`, without sets: made, or found where an earlier run made it.

    Raises:
        StoreError: ``store.exists`` when another store is there.
    """
    if path.exists():
        store = Store.open(path)
        found = (store.dataset.manifest.settings, store.plan.manifest.settings)
        if found != (grown.growth.joined.manifest.settings, grown_settings(old.plan)):
            raise StoreError(
                f"{path}: is there already and is not {old.path} extended by {grown.growth.new.path}; "
                "choose another --out, or remove it.",
                code="store.exists",
            )
        return store

    def write(folder: Path, inside: Dataset) -> Plan:
        return write_plan(
            folder,
            inside,
            instances=grown.instances,
            batches=grown.batches,
            settings=grown_settings(old.plan),
        )

    return Store.create(path, grown.growth.write, write)


def check_teacher(old: Store, name: str, teacher: Teacher, new_items: int) -> None:
    """Refuse a teacher that cannot go on with the sets `name` of `old`; nothing is encoded.

    Raises:
        StoreError: ``extend.other_teacher``; UsageError: ``extend.transductive``, ``extend.codec``.
    """
    for reader in readers_of(old, name):
        if isinstance(reader, ScoreReader) and reader.layout.codec != "none":
            raise UsageError(
                f"{reader.folder}: is kept with codec {reader.layout.codec}, whose values cannot be laid out anew "
                "without loss; extend a store of its float16 scores, or name other teachers with --teacher.",
                code="extend.codec",
            )
        if reader is not None and reader.manifest.settings["teacher_digest"] != teacher.digest:
            raise StoreError(
                f"{reader.folder}: was answered by {reader.manifest.settings['teacher_digest']}, the teacher "
                f"{teacher.name!r} at hand is {teacher.digest}; name the one that answered with --teacher.",
                code="extend.other_teacher",
            )
    if new_items and not getattr(teacher, "inductive", True):
        raise UsageError(
            f"the teacher {teacher.name!r} was tuned with an id for each item (transductive) and knows nothing of the "
            f"{new_items:,} new ones; tune one on the new data with `kd-teacher tune`, or name only others with --teacher.",
            code="extend.transductive",
        )


def extend(
    teacher: Teacher,
    old: Store,
    store: Store,
    name: str,
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> dict[str, Manifest]:
    """Carry the sets `name` of `old` on to `store`, which extends it; the teacher is asked about what is new.

    Temperature and quality stay those of the old sets; settings name their digests.

    Args:
        store: what :func:`open_or_create` gave.
        shard_bytes: about how large a shard file may grow; the unit of resumption.
        progress: called as work is done; work found from an earlier run counts as done.

    Returns:
        The manifests by kind, scores and factors as `old` has them; those that are there from an earlier run too.

    Raises:
        StoreError: as :func:`check_teacher`; the old set is damaged; ``scores.exists``, ``store.busy``.
        TeacherError: NaN, infinities, wrong shapes or no product; what was whole before stays.
        DiskError: the disk is full or failing; the same command goes on once that is mended.
    """
    if store.plan.manifest.settings.get(EXTENDS) != old.plan.digest:
        raise StoreError(
            f"{store.path}: its plan does not go on from {old.plan.path}, so nothing can be taken over; "
            "make one with `kd-cache extend`.",
            code="extend.foreign",
        )
    check_teacher(old, name, teacher, store.dataset.num_items - old.dataset.num_items)
    tell = progress or silent
    scores, factors = readers_of(old, name)
    layout = Layout.of(store.plan, shard_bytes=shard_bytes)
    block = pipeline.build.HISTORY_BLOCK if teacher.factorises else 0
    settings: dict[str, dict[str, Any]] = {}
    if factors:
        settings[FACTORS] = {
            **factor_settings(
                **_who(factors), history_block=block, rows_per_file=factors.layout.per_file
            ),
            EXTENDS: factors.digest,
        }
    if scores:
        extra = {"history_block": block, EXTENDS: scores.digest}
        settings[SCORES] = score_settings(layout, **_who(scores), extra=extra)
    folders = {SCORES: store.folder(name), FACTORS: store.factor_folder(name)}
    sealed: dict[str, Manifest] = {}
    with only_writer(folders[SCORES]):
        for kind, mine in settings.items():
            refuse_other_teacher(store, name, kind, mine)
            if folders[kind].exists():
                sealed[kind] = finished(folders[kind], kind, store.plan, mine)
                clear_work(folders[kind])
        if SCORES in sealed:
            tell(SCORES, layout.batches, layout.batches)
        refuse_empty(store.plan)
        missing = [kind for kind in settings if kind not in sealed]  # factors are sealed first
        parts = {
            kind: Unfinished.open(
                folders[kind], parents=parents_of(store.plan), settings=settings[kind]
            )
            for kind in missing
        }
        if missing:
            started = time.time()
            work = _Work(teacher, old, store, factors, parts[missing[-1]], tell)
            if factors and FACTORS in parts:
                sealed[FACTORS] = work.write_factors(parts[FACTORS], factors)
                log(store, FACTORS, sealed[FACTORS], name, started)
            if scores and SCORES in parts:
                writer = ScoreWriter(parts[SCORES], store.plan, layout)
                work.write_scores(writer, scores)
                sealed[SCORES] = writer.seal()
                log(store, SCORES, sealed[SCORES], name, started)
    return sealed


class _Work:
    """What both kinds of set are filled from: the old set's values, and the teacher's vectors of what is new."""

    def __init__(
        self,
        teacher: Teacher,
        old: Store,
        store: Store,
        factors: FactorReader | None,
        part: Unfinished,
        tell: Progress,
    ) -> None:
        self.teacher, self.plan, self.dataset = teacher, store.plan, store.dataset
        self.factors, self.tell = factors, tell
        self.first_batch, self.first = len(old.plan), old.plan.num_instances
        self.first_item = old.dataset.num_items
        asked = np.unique(store.plan.targets[self.first :]).astype(np.int32)
        self.rows = rows_asked(factors, asked, self.first_item, store.dataset.num_items)
        self.kept = Kept(
            part,
            teacher,
            store.dataset,
            store.plan,
            block=pipeline.build.HISTORY_BLOCK,
            first=self.first,
            rows=self.rows,
        )
        self._asked_ND: NDArray[np.float32] | None = None

    def encode(self) -> None:
        """Have every new item that is needed and every new history encoded."""
        self._encode_items()
        if self.teacher.factorises:
            count = self.plan.num_instances - self.first
            self.kept.encode(lambda done: self.tell("histories", done - self.first, count))

    def items(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """[n, D] vectors of items: kept ones of the old store, or the teacher's."""
        if self._asked_ND is None:
            if self.factors is None:
                raise RuntimeError("items before they were encoded")
            return self.factors.item_vectors(rows).astype(np.float32)
        found_ND = np.empty((len(rows), self._asked_ND.shape[1]), np.float32)
        mine = np.ones(len(rows), np.bool_)
        if self.factors is not None:
            mine = rows >= self.first_item
            found_ND[~mine] = self.factors.item_vectors(rows[~mine])
        found_ND[mine] = self._asked_ND[np.searchsorted(self.rows, rows[mine])]
        return found_ND

    def score(self, index: int) -> NDArray[np.float32]:
        """[T, C] the teacher's bare scores of a new batch."""
        batch = self.plan[index]
        users_TD = (
            self.kept.histories(batch.instances)
            if self.teacher.factorises
            else self.teacher.encode_histories(self.dataset, batch.users, batch.ends)
        )
        return self.teacher.score(users_TD, self.items(batch.items))

    def write_factors(self, part: Unfinished, old: FactorReader) -> Manifest:
        """Do every file that is missing, and seal the set."""
        self.encode()
        fresh = np.arange(self.first_batch, len(self.plan))
        for index in fresh[pipeline.build.spread(len(fresh), 4)] if len(fresh) else ():
            batch = self.plan[int(index)]
            users_TD, items_CD = self.kept.histories(batch.instances), self.items(batch.items)
            score_TC = self.teacher.score(users_TD, items_CD)
            tau = part.settings["tau"]
            refuse_other_product(self.teacher.name, score_TC, users_TD, items_CD, tau)
        layout = FactorLayout.of(
            self.plan,
            items=self.dataset.num_items,
            width=old.layout.width,
            per_file=old.layout.per_file,
        )
        writer = FactorWriter(part, layout)
        total = len(layout.sizes())
        missing = list(writer.missing())
        self.tell(FACTORS, total - len(missing), total)
        for number, (table, unit) in enumerate(missing, start=total - len(missing) + 1):
            rows = np.array(layout.file_rows(table, unit))
            if table == "items":
                vectors_ND = self.items(rows)
            else:
                kept = rows < self.first
                vectors_ND = np.empty((len(rows), layout.width), np.float32)
                vectors_ND[kept] = old.history_vectors(rows[kept])
                if not kept.all():
                    vectors_ND[~kept] = self.kept.histories(rows[~kept])
            writer.put(table, unit, vectors_ND)
            self.kept.release()
            self.tell(FACTORS, number, total)
        return writer.seal()

    def write_scores(self, writer: ScoreWriter, old: ScoreReader) -> None:
        """Do every shard that is missing."""
        missing = list(writer.missing())
        if not missing:
            return
        layout = writer.layout
        if layout.shard_batches(missing[-1])[-1] >= self.first_batch:
            self.encode()
        done = layout.batches - sum(len(layout.shard_batches(unit)) for unit in missing)
        self.tell(SCORES, done, layout.batches)
        for unit in missing:
            logs = []
            for index in layout.shard_batches(unit):
                logs.append(
                    old[index]
                    if index < self.first_batch
                    else writer.logs(index, self.score(index))
                )
                done += 1
                self.tell(SCORES, done, layout.batches)
            writer.put_logs(unit, logs)
            self.kept.release()

    def _encode_items(self) -> None:
        if len(self.rows):
            self._asked_ND = self.kept.items()
            self.tell("items", len(self.rows), len(self.rows))


def _who(reader: ScoreReader | FactorReader) -> dict[str, Any]:
    settings = reader.manifest.settings
    return {key: settings[key] for key in ("teacher", "teacher_digest", "quality", "tau")}
