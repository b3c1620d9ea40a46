"""The plan: which training instances meet in which batch. Fixed once, so that teachers answer once.

    plan/   instances.parquet   plan.parquet   manifest.json (parent: the dataset)

`plan.parquet` has a row per slot: round, batch, slot, instance, column. Round 0 is the curriculum round (its batches
belong to one difficulty bucket each), rounds 1..R are standard rounds over everything. `plan[i]` is a pure
function of the file. Held: 12 bytes an instance in memory; 8 a slot, in memory up to 34 MB of them, then in an unnamed file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache.atomic import staging
from cache.column import Column
from cache.dataset import EXTENDS, Dataset, Ints
from cache.errors import StoreError
from cache.manifest import Manifest, check_numbers, check_part, is_digest, seal
from cache.tables import read_pieces, read_table, write_table

__all__ = ["Batch", "Plan", "PlannedBatch", "first_appearance", "open_plan", "write_plan"]

_SLOTS = pa.schema(
    [
        ("round", pa.int16()),
        ("bucket", pa.int16()),
        ("batch", pa.int32()),
        ("slot", pa.int32()),
        ("instance", pa.int32()),
        ("column", pa.int32()),
    ]
)
_INSTANCES = pa.schema([("user", pa.int32()), ("end", pa.int32())])


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """T instances scored together against their C distinct targets."""

    index: int  #: place in the plan
    round: int  #: 0 curriculum, 1..R standard
    bucket: int  #: difficulty level, 0 the easiest; -1 in standard rounds
    instances: Ints  #: [T] instance ids
    users: Ints  #: [T]
    ends: Ints  #: [T] position of the target in the user's sequence
    items: Ints  #: [C] distinct targets in order of first appearance (the paper's set E)
    columns: Ints  #: [T] items[columns[t]] is the target of slot t


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedBatch:
    """What a planner says of one batch."""

    round: int
    bucket: int
    instances: Ints


@dataclass(frozen=True)
class Plan:
    """A sealed plan, opened. Make one with :func:`open_plan`."""

    path: Path
    manifest: Manifest
    instance_users: Ints  #: [instances]
    instance_ends: Ints  #: [instances]
    targets: Ints  #: [instances] item rows
    rounds: NDArray[np.int16]  #: [batches]
    buckets: NDArray[np.int16]  #: [batches]
    starts: NDArray[np.int64]  #: [batches + 1] first slot of each batch
    slot_instances: Ints  #: [slots]
    slot_columns: Ints  #: [slots]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> Batch:
        """Batch `index`, 0 <= index < len(self)."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of a plan of {len(self)} batches")
        slots = slice(self.starts[index], self.starts[index + 1])
        instances = self.slot_instances[slots]
        columns = self.slot_columns[slots]
        items = np.zeros(int(columns.max()) + 1, np.int32)  # whatever the columns: rows that exist
        items[columns] = self.targets[instances]
        return Batch(
            index=index,
            round=int(self.rounds[index]),
            bucket=int(self.buckets[index]),
            instances=instances,
            users=self.instance_users[instances],
            ends=self.instance_ends[instances],
            items=items,
            columns=columns,
        )

    @property
    def digest(self) -> str:
        """What score sets name as their parent."""
        return self.manifest.digest

    @property
    def batch_size(self) -> int:
        """T, the size of a full batch."""
        return int(self.manifest.settings["batch_size"])

    @property
    def num_columns(self) -> int:
        """The most distinct targets that any batch has."""
        return self.manifest.counts["columns"]

    @property
    def num_instances(self) -> int:
        """Instances in one round."""
        return len(self.instance_users)

    @property
    def num_buckets(self) -> int:
        """B, difficulty levels of the curriculum round."""
        return int(self.manifest.settings["buckets"])

    @property
    def num_rounds(self) -> int:
        """R, standard rounds."""
        return int(self.manifest.settings["rounds"])

    def stage(self, stage: int) -> NDArray[np.int64]:
        """Batches of curriculum stage 1..B: those of buckets 0..stage-1 (algorithm 1, line 4)."""
        return np.flatnonzero((self.rounds == 0) & (self.buckets < stage))

    def round(self, number: int) -> NDArray[np.int64]:
        """Batches of standard round 1..R."""
        return np.flatnonzero(self.rounds == number)


def first_appearance(values: Ints) -> tuple[Ints, Ints]:
    """Distinct values in order of first appearance, and for each value its place among them."""
    distinct, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    return distinct[order].astype(np.int32), place[inverse]


def write_plan(
    path: Path,
    dataset: Dataset,
    *,
    instances: tuple[Ints, Ints],
    batches: list[PlannedBatch],
    settings: dict[str, Any],
) -> Plan:
    """Seal a plan at `path`.

    Args:
        instances: (users, ends) by instance id.
        batches: in plan order.
        settings: must hold `batch_size`, `buckets` and `rounds`; everything that decided the plan.
    """
    users, ends = instances
    targets = dataset.targets(users, ends)
    sizes = np.array([len(batch.instances) for batch in batches], np.int64)
    columns = [first_appearance(targets[batch.instances])[1] for batch in batches]
    numbers = np.arange(len(batches), dtype=np.int32)
    slots = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    empty: list[Ints] = [np.empty(0, np.int32)]
    table = pa.table(
        [
            np.repeat(np.array([b.round for b in batches], np.int16), sizes),
            np.repeat(np.array([b.bucket for b in batches], np.int16), sizes),
            np.repeat(numbers, sizes),
            slots.astype(np.int32),
            np.concatenate([b.instances for b in batches] or empty),
            np.concatenate(columns or empty),
        ],
        schema=_SLOTS,
    )
    with staging(path) as folder:
        write_table(folder / "instances.parquet", pa.table([users, ends], schema=_INSTANCES))
        write_table(folder / "plan.parquet", table)
        seal(
            folder,
            kind="plan",
            parents={"dataset": dataset.digest},
            settings=settings,
            counts={
                "instances": len(users),
                "batches": len(batches),
                "slots": table.num_rows,
                "columns": max((int(c.max()) + 1 for c in columns), default=0),
            },
        )
    return open_plan(path, dataset)


def open_plan(path: Path, dataset: Dataset, *, deep: bool = False) -> Plan:
    """Open a sealed plan over `dataset`.

    Raises:
        StoreError: damaged, or made over another dataset (``plan.foreign``, naming both digests).
    """
    manifest = check_part(path, "plan", deep=deep)
    parent = manifest.parents.get("dataset", "none")
    if parent != dataset.digest:
        raise StoreError(
            f"{path}: was made over the dataset {parent[:19]}, but {dataset.path} is "
            f"{dataset.digest[:19]}; make a new plan with `kd-cache plan`.",
            code="plan.foreign",
        )
    counts = {"instances", "batches", "slots", "columns"}
    check_numbers(path, manifest, counts, {"batch_size": 0, "buckets": 0, "rounds": 0})
    slots = _read_slots(path, manifest)
    rows = manifest.counts["instances"]
    instances = read_table(path, manifest, "instances.parquet", _INSTANCES, rows)
    users, ends = instances["user"].to_numpy(), instances["end"].to_numpy()
    chosen, columns = slots["instance"], slots["column"]
    starts = np.append(slots["start"], len(chosen))
    if not (
        len(starts) - 1 == manifest.counts["batches"]
        and is_digest(manifest.settings.get(EXTENDS, manifest.digest))
        and _within(users, 0, dataset.num_users)
        and (not len(users) or bool((ends >= 1).all() and (ends < dataset.lengths[users]).all()))
        and _within(chosen, 0, len(users))
        and _sound_batches(slots, starts, manifest)
    ):
        raise _inconsistent(path)
    return Plan(
        path=path,
        manifest=manifest,
        instance_users=users,
        instance_ends=ends,
        targets=dataset.targets(users, ends),
        rounds=slots["round"],
        buckets=slots["bucket"],
        starts=starts,
        slot_instances=chosen,
        slot_columns=columns,
    )


def _read_slots(path: Path, manifest: Manifest) -> dict[str, NDArray[Any]]:
    """`instance` and `column` of every slot; `round`, `bucket` and `start` of every batch.

    Raises:
        StoreError: ``store.inconsistent``: the rows hold other batches than the manifest says.
    """
    rows = manifest.counts["slots"]
    batches = min(manifest.counts["batches"], rows)
    # made before the reading: arrays that each piece would leave behind keep its memory from being used again
    kinds = {"instance": (np.int32, rows), "column": (np.int32, rows), "start": (np.int64, batches)}
    kinds |= {"round": (np.int16, batches), "bucket": (np.int16, batches)}
    done = begun = 0
    with contextlib.ExitStack() as stack:
        columns: dict[str, Column[Any]] = {
            name: stack.enter_context(Column(*kind)) for name, kind in kinds.items()
        }
        for table in read_pieces(path, manifest, "plan.parquet", _SLOTS, rows):
            first = np.flatnonzero(table["slot"].to_numpy() == 0)
            begun += len(first)
            if begun > batches:
                break
            for name in ("instance", "column"):
                columns[name].append(table[name].to_numpy())
            for name in ("round", "bucket"):
                columns[name].append(table[name].to_numpy()[first])
            columns["start"].append(first + done)
            done += table.num_rows
        if begun != batches:
            raise _inconsistent(path)
        return {name: column.array() for name, column in columns.items()}


def _inconsistent(path: Path) -> StoreError:
    return StoreError(
        f"{path}: its rows do not fit the manifest's counts or the dataset; "
        "make a new plan with `kd-cache plan`.",
        code="store.inconsistent",
    )


def _sound_batches(
    slots: Mapping[str, NDArray[Any]], starts: NDArray[np.int64], plan: Manifest
) -> bool:
    """Whether what the manifest says of batches, which readers make room by, is what the rows say."""
    widest, settings = plan.counts["columns"], plan.settings
    if not len(slots["column"]):
        return widest == 0
    rounds = slots["round"]
    return (
        starts[0] == 0
        and int(np.diff(starts).max()) <= int(settings["batch_size"])
        and _within(slots["column"], 0, widest)
        and int(slots["column"].max()) + 1 == widest
        and bool((rounds >= 0).all())
        and int(rounds.max()) == int(settings["rounds"]) == len(np.unique(rounds[rounds > 0]))
        and _within(slots["bucket"], -1, int(settings["buckets"]))
        and settings["buckets"] <= np.iinfo(np.int16).max
    )


def _within(values: Ints, low: int, high: int) -> bool:
    return not len(values) or bool(low <= values.min() and values.max() < high)
