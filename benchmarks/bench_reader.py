"""The score reader against memcpy, zarr-python, zarrs and tensorstore, on one store, interleaved in one process.

    python benchmarks/bench_reader.py [--batches 480] [--rounds 15]

Writes a store of real-looking scores (cosines of random vectors, 512 slots, about 480 columns) to a temporary folder,
warms every page, and reads the same random batches by each contender in turn, each into a buffer of its own that it uses
again. Memcpy's source is as large as the set. One thread each (tensorstore has one for files, one for copies and its own).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
from store_peers import Into, readers
from timing import goal, ratios, turns

sys.path.insert(0, str(Path(__file__).parents[1]))

from cache.dataset import Dataset, write_dataset
from cache.plan import Plan, PlannedBatch, write_plan
from cache.scores import ScoreReader
from cache.store import Store
from pipeline.build import build
from tests.fakes import TableTeacher

NAME, WHAT = "reader", "speed of read_into, verified,"
SLOTS = 512
FEW = 40  #: batches a round against slower readers
BARS = {"zarr-python": 20.0, "tensorstore": 4.0}


def make_store(folder: Path, batches: int) -> Store:
    """One training instance a user; popularity is skewed so that a batch has about 480 distinct targets."""
    rng = np.random.default_rng(0)
    users, items = batches * SLOTS - SLOTS // 3, 6_500
    weights = (np.arange(items) + 200.0) ** -0.6
    flat = rng.choice(items, size=users * 4, p=weights / weights.sum()).astype(np.int32)
    dataset = write_dataset(
        folder / "data",
        items=pa.table({"item": [str(row) for row in range(items)]}),
        user_ids=None,
        flat=flat,
        offsets=np.arange(users + 1) * 4,
    )
    return Store.create(folder / "store", dataset, plan_of)


def plan_of(path: Path, dataset: Dataset) -> Plan:
    instances = dataset.training_instances("last")
    order = np.random.default_rng(1).permutation(len(instances[0])).astype(np.int32)
    batches = [
        PlannedBatch(round=1, bucket=-1, instances=order[first : first + SLOTS])
        for first in range(0, len(order), SLOTS)
    ]
    settings = {"batch_size": SLOTS, "buckets": 1, "rounds": 1}
    return write_plan(path, dataset, instances=instances, batches=batches, settings=settings)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=480)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), options.batches)
        build(TableTeacher(width=32), store)
        return compare(store.scores("table"), options.rounds)


def compare(reader: ScoreReader, rounds: int) -> int:
    layout = reader.layout
    buffer = np.empty((layout.slots, layout.columns), np.float16)
    bare = np.concatenate([reader[i].ravel() for i in range(len(reader))])  # warms every page too
    sizes = [int(np.prod(reader.shape(i))) for i in range(len(reader))]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    target = np.empty(max(sizes), np.float16)
    print(
        f"# {len(reader)} batches of up to {layout.slots} x {layout.columns} float16, "
        f"{sum(layout.sizes().values()) / 1e6:.0f} MB, distinct values {len(np.unique(bare)):,}"
    )

    def memcpy(index: int) -> None:
        np.copyto(target[: sizes[index]], bare[starts[index] : starts[index + 1]])

    def verified(index: int) -> None:
        reader.read_into(index, buffer)

    def unverified(index: int) -> None:
        reader.read_into(index, buffer, check=False)

    peers = readers(reader.folder / "scores.zarr")
    whole = np.empty((1, layout.slots, layout.columns), np.float16)
    rng = np.random.default_rng(2)
    for index in map(int, rng.permutation(len(reader))[:20]):
        rows, width = reader.shape(index)
        for name, into in peers.items():
            whole[:] = 0
            into(index, whole)
            if not np.array_equal(whole[0, :rows, :width], reader.read_into(index, buffer)):
                raise SystemExit(f"batch {index}: {name} and the reader disagree")
    chosen = rng.integers(0, len(reader), (rounds, len(reader))).tolist()

    def over(work: Callable[[int], object], batches: int) -> Callable[[int], object]:
        """A contender that reads the round's batches, the same as its rivals in that round."""

        def read(number: int) -> None:
            for index in chosen[number][:batches]:
                work(index)

        return read

    def by(into: Into) -> Callable[[int], object]:
        return over(lambda index: into(index, whole), FEW)

    bare_s, ours_s, unchecked_s = turns(
        [over(work, len(reader)) for work in (memcpy, verified, unverified)], rounds
    )
    few_s, *peers_s = turns([over(verified, FEW), *(by(into) for into in peers.values())], rounds)
    against, speed = "memcpy of the same bytes", sum(sizes) * 2 / 1e9 / median(bare_s)
    note = f"{speed:.1f} GB/s"
    kept = [
        goal(NAME, WHAT, against, ratios(bare_s, ours_s), at_least=0.6, note=note),
        goal(
            NAME,
            WHAT.replace("verified", "unverified"),
            against,
            ratios(bare_s, unchecked_s),
            at_least=0.8,
        ),
    ]
    for name, seconds in zip(peers, peers_s, strict=True):
        times = ratios(seconds, few_s)
        kept.append(goal(NAME, WHAT, f"{name} on the same files", times, at_least=BARS.get(name)))
    return int(not all(kept))


if __name__ == "__main__":
    sys.exit(main())
