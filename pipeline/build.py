"""STAGE ONE: ask a teacher about every batch of a store's plan, once; leave a sealed score set.

Items are encoded once, and histories once in fixed blocks kept on disk until the set is sealed, so memory is bounded by
one block and one shard however many users there are. Killed at any instant, the same command goes on where it stopped and
ends in the byte-identical store. Refuses a second writer, a finished set with other settings, and unfinished work of
another teacher, temperature or plan: remove the folder it names to start afresh.

Shape legend: T slots and C columns of one batch, V items, D width, N instances.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import filelock
import numpy as np
from numpy.typing import NDArray

from cache.atomic import append_line, disk_errors
from cache.dataset import Dataset, Ints
from cache.digest import canonical_json
from cache.errors import StoreError, TeacherError
from cache.layout import SHARD_BYTES, Layout
from cache.manifest import Manifest, read_manifest
from cache.plan import Batch, Plan, PlannedBatch, first_appearance
from cache.score_writer import TAU, ScoreWriter, log_softmax, score_settings
from cache.store import Store
from cache.unfinished import clear_work

if TYPE_CHECKING:
    from teachers.protocol import Teacher

__all__ = ["HISTORY_BLOCK", "Progress", "build", "estimate", "estimate_seconds", "scorer"]

HISTORY_BLOCK = 4096  #: instances encoded and kept together; decides the bits, so it is a setting

_PROBE_RUNS, _PROBE_RUN, _PROBE_BATCHES = 8, 128, 4


class Progress(Protocol):
    """Hears how far a build has come."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """`stage` is ``items``, ``histories`` (instances) or ``scores`` (batches)."""


def build(
    teacher: Teacher,
    store: Store,
    *,
    tau: float = TAU,
    name: str | None = None,
    quality: Mapping[str, float] | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Manifest:
    """Write what `teacher` says about the plan of `store` as the score set `name`.

    Args:
        tau: temperature of eq. 2's softmax.
        name: of the score set; the teacher's name by default.
        quality: validation metrics that students weigh by, where the teacher's own are not wanted.
        shard_bytes: about how large a shard file may grow; the unit of resumption.
        progress: called as work is done; work found from an earlier run counts as done.

    Returns:
        The sealed set's manifest; the one that is there when it was built before with these settings.

    Raises:
        StoreError: ``scores.exists`` with other settings, ``scores.foreign_work``, ``store.busy``.
        TeacherError: NaN, infinities or wrong shapes from the teacher; what was whole before stays.
        DiskError: the disk is full or failing; the same command goes on once that is mended.
    """
    tell = progress or _silent
    layout = Layout.of(store.plan, shard_bytes=shard_bytes)
    settings = score_settings(
        layout,
        teacher=teacher.name,
        teacher_digest=teacher.digest,
        quality=teacher.quality if quality is None else quality,
        tau=tau,
        extra={"history_block": HISTORY_BLOCK if teacher.factorises else 0},
    )
    folder = store.folder(name or teacher.name)
    with _only_writer(folder):
        if folder.exists():
            manifest = _finished(folder, store.plan, settings)
            clear_work(folder)
            tell("scores", layout.batches, layout.batches)
            return manifest
        started = time.time()
        writer = ScoreWriter.open(folder, store.plan, layout, settings)
        _write(writer, teacher, store.dataset, tell)
        manifest = writer.seal()
        _log(store, folder.name, manifest, started)
    return manifest


def estimate(plan: Plan) -> int:
    """Bytes that one teacher's scores over `plan` will take on disk, all but a few kilobytes."""
    return sum(Layout.of(plan).sizes().values())


def estimate_seconds(
    teacher: Teacher,
    dataset: Dataset,
    instances: tuple[Ints, Ints],
    batches: Sequence[PlannedBatch],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds that `teacher` would take for a plan, from a sample of at most 1,024 instances and four batches.

    The sample is 8 runs of neighbours, spread evenly, since a teacher may encode a user's prefixes together. Items are
    encoded in full. The disk has no part in it.

    Args:
        instances: (users, ends) of the plan.
        batches: the plan's.
        clock: seconds, from any moment on.
    """
    users, ends = instances
    sample = np.concatenate(
        [
            np.arange(first, min(first + _PROBE_RUN, len(users)))
            for first in _spread(len(users) // _PROBE_RUN, _PROBE_RUNS) * _PROBE_RUN
        ]
    )
    began = clock()
    items_VD = teacher.encode_items(dataset)
    seconds = clock() - began
    few = sample[: len(sample) // 8 + 1]
    teacher.encode_histories(dataset, users[few], ends[few])  # the first call pays for much else
    began = clock()
    users_TD = teacher.encode_histories(dataset, users[sample], ends[sample])
    # histories that are no vectors are encoded for each batch anew
    asked = len(users) if teacher.factorises else sum(len(b.instances) for b in batches)
    seconds += (clock() - began) * asked / len(sample)
    targets = dataset.targets(users, ends)
    chosen = _spread(len(batches), _PROBE_BATCHES)
    began = clock()
    for number in chosen:
        columns = targets[batches[number].instances]
        rows = np.resize(np.arange(len(sample)), len(columns))
        log_softmax(teacher.score(users_TD[rows], items_VD[first_appearance(columns)[0]]), TAU)
    return seconds + (clock() - began) * len(batches) / len(chosen)


def _spread(count: int, most: int) -> NDArray[np.int64]:
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


def _write(writer: ScoreWriter, teacher: Teacher, dataset: Dataset, tell: Progress) -> None:
    """Do every unit that is missing."""
    missing = list(writer.missing())
    if not missing:
        return
    plan, layout = writer.plan, writer.layout
    items_VD = _items(writer, teacher, dataset)
    tell("items", dataset.num_items, dataset.num_items)
    histories = _Histories(writer, teacher, dataset)
    if teacher.factorises:
        for done in histories.encode():
            tell("histories", done, plan.num_instances)
    done = layout.batches - sum(len(layout.shard_batches(unit)) for unit in missing)
    tell("scores", done, layout.batches)
    for unit in missing:
        raws = []
        for index in layout.shard_batches(unit):
            batch = plan[index]
            users_TD = (
                histories.rows(batch.instances)
                if teacher.factorises
                else teacher.encode_histories(dataset, batch.users, batch.ends)
            )
            raws.append(teacher.score(users_TD, items_VD[batch.items]))
            done += 1
            tell("scores", done, layout.batches)
        writer.put(unit, raws)
        histories.release()


def _items(writer: ScoreWriter, teacher: Teacher, dataset: Dataset) -> NDArray[np.float32]:
    """[V, D] item vectors, from the teacher or from an earlier run of this build."""
    name = "items.npy"
    if not writer.part.journal.whole(name):
        _keep(writer, name, teacher.encode_items(dataset), dataset.num_items, teacher.name, 0)
    return _load(writer.work / name)


class _Histories:
    """History vectors of every instance, in fixed blocks on disk."""

    def __init__(self, writer: ScoreWriter, teacher: Teacher, dataset: Dataset) -> None:
        self._writer = writer
        self._teacher = teacher
        self._dataset = dataset
        self._open: dict[int, NDArray[np.float32]] = {}

    def encode(self) -> Iterator[int]:
        """Encode the blocks that are not there yet; yields how many instances are done."""
        plan = self._writer.plan
        for first in range(0, plan.num_instances, HISTORY_BLOCK):
            block = slice(first, min(first + HISTORY_BLOCK, plan.num_instances))
            name = self._name(first // HISTORY_BLOCK)
            if not self._writer.part.journal.whole(name):
                vectors_ND = self._teacher.encode_histories(
                    self._dataset, plan.instance_users[block], plan.instance_ends[block]
                )
                count = block.stop - block.start
                _keep(self._writer, name, vectors_ND, count, self._teacher.name, first)
            yield block.stop

    def rows(self, instances: NDArray[np.int32]) -> NDArray[np.float32]:
        """[T, D] vectors of some instances."""
        blocks, rows = np.divmod(instances, HISTORY_BLOCK)
        parts: NDArray[np.float32] | None = None
        for block in np.unique(blocks):
            vectors_ND = self._block(int(block))
            if parts is None:
                parts = np.empty((len(instances), *vectors_ND.shape[1:]), np.float32)
            mine = blocks == block
            parts[mine] = vectors_ND[rows[mine]]
        if parts is None:
            raise ValueError("a batch without instances")
        return parts

    def release(self) -> None:
        """Unmap what was read, so that memory stays flat."""
        self._open.clear()

    def _block(self, block: int) -> NDArray[np.float32]:
        vectors = self._open.get(block)
        if vectors is None:
            vectors = self._open[block] = _load(self._writer.work / self._name(block))
        return vectors

    @staticmethod
    def _name(block: int) -> str:
        return f"histories/{block:07d}.npy"


def _keep(
    writer: ScoreWriter, name: str, vectors: NDArray[Any], count: int, teacher: str, first: int
) -> None:
    """Check vectors and put them into the work folder; `first` is the row that vectors[0] stands for."""
    what = f"teacher {teacher!r}, {name.partition('/')[0].removesuffix('.npy')}"
    if vectors.dtype != np.float32 or vectors.ndim < 2 or len(vectors) != count:
        raise TeacherError(
            f"{what} from row {first}: {vectors.dtype} of shape {vectors.shape} was handed in, "
            f"float32 of shape ({count}, width) was expected; mend the teacher.",
            code="teacher.wrong_shape",
        )
    finite = np.isfinite(vectors)
    if not finite.all():
        place = np.argwhere(~finite)[0]
        raise TeacherError(
            f"{what}: row {first + int(place[0])} holds {vectors[tuple(place)]} at {place[1]}, "
            "finite numbers were expected; mend the teacher or its item texts.",
            code="teacher.not_finite",
        )
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(vectors), allow_pickle=False)
    writer.part.journal.put(name, buffer.getbuffer())


def _load(path: Path) -> NDArray[np.float32]:
    with disk_errors(path):
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    memory = vectors._mmap
    if memory is not None and hasattr(mmap, "MADV_RANDOM"):
        memory.madvise(mmap.MADV_RANDOM)  # rows are asked for in random order: no read-ahead
    loaded: NDArray[np.float32] = vectors
    return loaded


def _finished(folder: Path, plan: Plan, settings: Mapping[str, Any]) -> Manifest:
    """The manifest of a set that is there already, if it is the one that was asked for."""
    manifest = read_manifest(folder, "scores")
    old = {**manifest.parents, **manifest.settings}
    new = {"dataset": plan.manifest.parents["dataset"], "plan": plan.digest, **settings}
    odd = [
        f"{key} {old.get(key)!r} there, {new.get(key)!r} asked for"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if odd:
        raise StoreError(
            f"{folder}: is built already with other settings ({'; '.join(odd)}); "
            "give this one another name with `--name`, or remove that folder.",
            code="scores.exists",
        )
    return manifest


@contextlib.contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Hold the lock of one score set; the system frees it when its holder dies.

    What keeps a store whole is unique names and one rename, not this lock: where a network disk does not honour it, two
    writers cost double work.
    """
    path = folder.parent / f".lock-{folder.name}"
    with disk_errors(path):
        folder.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, blocking=False)
    with disk_errors(path):
        try:
            lock.acquire()
        except filelock.Timeout as error:  # an OSError too
            raise StoreError(
                f"{folder}: another process is building it right now ({path.name} is locked); "
                "wait for that one, or run the same command later: it goes on from what is there.",
                code="store.busy",
            ) from error
    try:
        yield
    finally:
        # unlinked while held: whoever waits on the old file finds it has no name and starts over
        path.unlink(missing_ok=True)
        lock.release()


def _log(store: Store, name: str, manifest: Manifest, started: float) -> None:
    """One line beside the store of what may not stand inside it."""
    fact = {
        "built": name,
        "digest": manifest.digest,
        "host": os.uname().nodename,
        "seconds": round(time.time() - started, 1),
        "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    append_line(store.log, canonical_json(fact))


def _silent(stage: str, done: int, total: int) -> None:
    """For callers who do not listen."""
