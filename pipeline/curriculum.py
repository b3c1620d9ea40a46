"""Makes plans: the difficulty of every instance (eq. 1), the buckets and rounds of algorithm 1, and what they cost.

A pure function of dataset and settings: no thread count, hash seed or library's shuffle has a say, because every shuffle
is a sort by raw counter-based random bits. Looks at training parts only. About 2 s for a million instances.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cache.dataset import Dataset, InstanceKind, Ints
from cache.errors import UsageError
from cache.plan import Plan, PlannedBatch, first_appearance, write_plan

__all__ = [
    "MOST",
    "Estimate",
    "PlanSettings",
    "Popularity",
    "difficulty",
    "estimate",
    "make_plan",
    "plan_batches",
    "planned",
    "popularity",
]

Popularity: TypeAlias = Literal["max", "log", "share", "raw"]

MOST = 2**15 - 1  #: buckets, and rounds: a plan numbers them in int16

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """What decides a plan, beside the dataset."""

    instances: InstanceKind = "prefixes"  #: every prefix of a user, or only the last
    batch_size: int = 512  #: T
    buckets: int = 4  #: B, difficulty levels
    rounds: int = 1  #: R, standard rounds, each with a partition of its own
    alpha: float = 1.0  #: weight of popularity in eq. 1
    popularity: Popularity = "max"  #: how pop() of eq. 1 is read
    seed: int = 0  #: of every shuffle

    def check(self) -> None:
        """Refuse values that make no plan, all at once."""
        wrong = [
            f"{name} {getattr(self, name)} (at least {least})"
            for name, least in (("batch_size", 2), ("buckets", 1), ("rounds", 1), ("seed", 0))
            if getattr(self, name) < least
        ]
        wrong += [
            f"{name} {getattr(self, name)} (at most {MOST})"
            for name in ("buckets", "rounds")
            if getattr(self, name) > MOST
        ]
        if not self.alpha > 0:
            wrong.append(f"alpha {self.alpha} (above 0)")
        if wrong:
            raise UsageError(f"plan: cannot use {', '.join(wrong)}.", code="plan.bad_settings")


def popularity(train_counts_V: NDArray[np.int64], kind: Popularity) -> NDArray[np.float64]:
    """[V] pop(v) of eq. 1 from training counts.

    `max` is count / largest count (1 for the most popular item, so that alpha is of order one), `log` the same of
    log(1 + count), `share` count / all counts, `raw` the count itself, as UnKD has it.
    """
    counts: NDArray[np.float64] = train_counts_V.astype(np.float64)
    if kind == "log":
        counts = np.log1p(counts)
    whole = {"raw": 1.0, "share": counts.sum()}.get(kind, counts.max(initial=0.0))
    shares: NDArray[np.float64] = counts / (whole or 1.0)
    return shares


def difficulty(
    dataset: Dataset, users: Ints, ends: Ints, *, alpha: float, kind: Popularity
) -> NDArray[np.float64]:
    """[n] SSL of eq. 1: `N / N_max - alpha * mean pop(v)` over the N items of each history."""
    pop_V = popularity(dataset.train_counts, kind)
    lengths = np.minimum(ends, dataset.max_length)
    longest = max(int(lengths.max(initial=0)), 1)
    means = np.empty(len(users))
    for start in range(0, len(users), _BLOCK):  # the histories of a block are laid out in memory
        block = slice(start, start + _BLOCK)
        flat, sizes = dataset.histories(users[block], ends[block])
        means[block] = np.add.reduceat(pop_V[flat], np.cumsum(sizes) - sizes) / sizes
    ssl: NDArray[np.float64] = lengths / longest - alpha * means
    return ssl


def plan_batches(ssl: NDArray[np.float64], settings: PlanSettings) -> list[PlannedBatch]:
    """Algorithm 1 as fixed batches: the curriculum round, then the standard rounds.

    Buckets are equal in size up to one instance; equal difficulties keep the order of instance ids.
    """
    easiest_first = np.argsort(ssl, kind="stable").astype(np.int32)
    batches = []
    for bucket, members in enumerate(np.array_split(easiest_first, settings.buckets)):
        shuffled = _shuffle(np.sort(members), settings.seed, 0, bucket)
        batches += _cut(shuffled, settings.batch_size, 0, bucket)
    everything = np.arange(len(ssl), dtype=np.int32)
    for number in range(1, settings.rounds + 1):
        shuffled = _shuffle(everything, settings.seed, number, 0)
        batches += _cut(shuffled, settings.batch_size, number, -1)
    return batches


def make_plan(path: Path, dataset: Dataset, settings: PlanSettings) -> Plan:
    """Plan `dataset` and seal the plan at `path`.

    Raises:
        UsageError: settings out of range, or a dataset without a single training instance.
    """
    instances, batches = planned(dataset, settings)
    return write_plan(
        path, dataset, instances=instances, batches=batches, settings=asdict(settings)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a plan would cost, before anything runs."""

    instances: int
    batches: int
    columns: int  #: the most distinct targets a batch has
    bytes_per_teacher: int  #: of a score set


def estimate(dataset: Dataset, settings: PlanSettings) -> Estimate:
    """The plan's counts and the disk a teacher takes, without writing anything."""
    (users, ends), batches = planned(dataset, settings)
    targets = dataset.targets(users, ends)
    columns = max(len(first_appearance(targets[b.instances])[0]) for b in batches)
    chunk = 2 * settings.batch_size * columns + 4 + 16  # float16 scores, crc32c, index entry
    return Estimate(
        instances=len(users),
        batches=len(batches),
        columns=columns,
        bytes_per_teacher=len(batches) * chunk,
    )


def planned(
    dataset: Dataset, settings: PlanSettings
) -> tuple[tuple[Ints, Ints], list[PlannedBatch]]:
    """((users, ends) of the instances, batches) of a plan, nothing written; raises as `make_plan`."""
    settings.check()
    users, ends = dataset.training_instances(settings.instances)
    if not len(users):
        remedy = (
            "ingest with a smaller --k-core"
            if dataset.manifest.settings.get("k_core")
            else "ingest a log with longer histories"
        )
        raise UsageError(
            f"{dataset.path}: no user has two items to train on; {remedy}.",
            code="plan.no_instances",
        )
    ssl = difficulty(dataset, users, ends, alpha=settings.alpha, kind=settings.popularity)
    return (users, ends), plan_batches(ssl, settings)


def _shuffle(members: Ints, seed: int, round_number: int, bucket: int) -> Ints:
    # Philox's raw stream is fixed for ever; numpy's own permutation is not
    bits = np.random.Philox(key=np.array([seed, round_number << 32 | bucket], np.uint64))
    return members[np.argsort(bits.random_raw(len(members)), kind="stable")]


def _cut(members: Ints, size: int, round_number: int, bucket: int) -> list[PlannedBatch]:
    return [
        PlannedBatch(round=round_number, bucket=bucket, instances=members[start : start + size])
        for start in range(0, len(members), size)
    ]
