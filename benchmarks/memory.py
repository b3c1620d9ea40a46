"""Peak memory of building, verifying and reading score sets of growing size: it must not grow with them.

    python benchmarks/memory.py [--gigabytes 12] [--folder DIR]

Sets of 1, 4 and --gigabytes (as large as the free disk allows, 50 say) by a teacher of numpy whose scores cost nothing. Each
stage runs in a process of its own, sampled 50 times a second from /proc: RssAnon is what it holds, RssShmem what it shares,
RssFile are mapped pages of files, which the system may take back at any time. Removed again at the end.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[1]))

from cache.dataset import Dataset, write_dataset
from cache.layout import Layout
from cache.plan import Plan, PlannedBatch, write_plan
from cache.store import Store
from cache.verify import verify
from pipeline.build import build
from tests.fakes import TableTeacher

SLOTS, USERS, ITEMS = 512, 512 * 64, 6_500
KINDS = ("RssAnon", "RssShmem", "RssFile")
STAGES = ("build", "verify", "read")
GROWTH_MB = 64  #: that the largest set may take above the smallest, RssAnon


class Quick(TableTeacher):
    """Scores without arithmetic: a window of a fixed table."""

    def score(self, users_TD: np.ndarray, items_CD: np.ndarray) -> np.ndarray:
        """[T, C]."""
        return np.broadcast_to(items_CD[:, 0], (len(users_TD), len(items_CD)))


def make(folder: Path, gigabytes: float) -> Store:
    """A store without scores whose one score set will take about so much."""
    rng = np.random.default_rng(0)
    weights = (np.arange(ITEMS) + 200.0) ** -0.6
    flat = rng.choice(ITEMS, size=USERS * 4, p=weights / weights.sum()).astype(np.int32)
    dataset = write_dataset(
        folder / "data",
        items=pa.table({"item": [str(row) for row in range(ITEMS)]}),
        user_ids=None,
        flat=flat,
        offsets=np.arange(USERS + 1) * 4,
    )
    rounds = max(1, round(gigabytes * 1e9 / (USERS * 2 * 495)))

    def plan_of(path: Path, inside: Dataset) -> Plan:
        instances = inside.training_instances("last")
        batches = [
            PlannedBatch(round=number, bucket=-1, instances=order[first : first + SLOTS])
            for number in range(1, rounds + 1)
            for order in [rng.permutation(len(instances[0])).astype(np.int32)]
            for first in range(0, len(order), SLOTS)
        ]
        settings = {"batch_size": SLOTS, "buckets": 1, "rounds": rounds}
        return write_plan(path, inside, instances=instances, batches=batches, settings=settings)

    return Store.create(folder / "store", dataset, plan_of)


def work(stage: str, path: Path) -> None:
    """One stage, in a process of its own."""
    if stage == "build":
        build(Quick(width=32), Store.open(path))
        return
    if stage == "verify":
        if verify(path):
            raise SystemExit("the store is not sound")
        return
    reader = Store.open(path).scores("table")
    buffer = np.empty((reader.layout.slots, reader.layout.columns), np.float16)
    # shards in random order, each batch of one before the next: every shard is mapped and hashed once
    for shard in np.random.default_rng(0).permutation(len(reader.layout.shards)):
        for index in reader.layout.shard_batches(int(shard)):
            reader.read_into(index, buffer)


def peaks(stage: str, path: Path) -> tuple[dict[str, float], float]:
    """MiB of each kind at its peak, and seconds."""
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, __file__, "--stage", stage, "--folder", str(path)])
    found = dict.fromkeys(KINDS, 0.0)
    status = Path(f"/proc/{child.pid}/status")
    while child.poll() is None:
        for line in status.read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in found:
                found[name] = max(found[name], int(rest.split()[0]) / 1024)
        time.sleep(0.02)
    if child.returncode:
        raise SystemExit(child.returncode)
    return found, time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=12)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        work(options.stage, options.folder)
        return 0
    sizes = sorted({min(size, options.gigabytes) for size in (1, 4, options.gigabytes)})
    if shutil.disk_usage(options.folder).free < 1.1e9 * sizes[-1]:
        print(f"{options.folder}: less than {sizes[-1]:g} GB are free; not run.", file=sys.stderr)
        return 2
    held: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=options.folder) as place:
            store = make(Path(place), size)
            real = sum(Layout.of(store.plan).sizes().values()) / 1e9
            for stage in STAGES:
                found, seconds = peaks(stage, store.path)
                held[stage].append(found["RssAnon"])
                told = "  ".join(f"{name} {found[name]:5.0f} MiB" for name in KINDS)
                print(f"{stage:<7} {real:5.1f} GB  {told}  ({seconds:.0f} s)", flush=True)
    grown = {stage: values[-1] - values[0] for stage, values in held.items()}
    for stage, by in grown.items():
        verdict = "kept" if by <= GROWTH_MB else "short"
        print(f"memory    {stage}: RssAnon grew by {by:.0f} MiB  bar {GROWTH_MB}  {verdict}")
    return int(any(by > GROWTH_MB for by in grown.values()))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
