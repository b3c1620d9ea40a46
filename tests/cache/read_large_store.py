"""Run by test_scores: reads every batch of a large set with little mapped at once and tells how memory grew."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from cache import scores
from pipeline.build import build
from tests.fakes import TableTeacher, tiny_store


def resident_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def main(folder: Path) -> None:
    store = tiny_store(folder / "store", users=2000, items=1500, batch_size=256, rounds=48)
    build(TableTeacher(), store, shard_bytes=8 << 20)
    scores.MAPPED_BYTES = 64 << 20
    reader = store.scores("table")
    before = resident_mb()
    total = 0.0
    order = np.random.default_rng(0).permutation(len(reader))
    for index in (*order, *order):
        total += float(reader[int(index)][0, 0])
    size = sum(reader.layout.sizes().values()) / 1e6
    json.dump({"set_mb": size, "grown_mb": resident_mb() - before, "sum": total}, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
