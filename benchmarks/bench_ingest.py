"""What `ingest` costs on ten million interactions: seconds and peak memory, against the bars of 3 minutes and 8 GiB.

    python benchmarks/bench_ingest.py [--rows 10000000] [--folder DIR]

Rows are made up but shaped like a shop's log: Zipf items, users of all lengths, ids of 10 to 14 characters, shuffled, one
in five hundred a duplicate. Each ingest runs once, in a process of its own, so that its peak is its own. A line a goal.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from timing import goal

BAR_SECONDS = 180.0
BAR_GIB = 8.0


def write_log(folder: Path, rows: int) -> None:
    """The same log as interactions.csv and interactions.parquet."""
    rng = np.random.default_rng(3)
    num_users, num_items = rows // 9, max(rows // 50, 100)
    appetite = rng.lognormal(0.0, 1.0, num_users)
    users = rng.choice(num_users, rows, p=appetite / appetite.sum())
    popularity = 1.0 / np.arange(1, num_items + 1) ** 0.9
    items = rng.choice(num_items, rows, p=popularity / popularity.sum())
    times = rng.integers(1_400_000_000, 1_600_000_000, rows)
    twice = rng.integers(0, rows, rows // 500)
    again = (twice + 1) % rows
    users[again], items[again], times[again] = users[twice], items[twice], times[twice]
    user_names = np.array([f"A{code:013X}" for code in rng.permutation(num_users) * 7919])
    item_names = np.array([f"B{code:09d}" for code in rng.permutation(num_items)])
    table = pa.table(
        {
            "user_id": pa.array(user_names[users]),
            "item_id": pa.array(item_names[items]),
            "rating": pa.array(rng.integers(1, 6, rows).astype(np.float32)),
            "timestamp": pa.array(times),
        }
    )
    for name in ("csv", "parquet"):
        (folder / name).mkdir()
    pyarrow.csv.write_csv(table, folder / "csv" / "interactions.csv")
    pq.write_table(table, folder / "parquet" / "interactions.parquet")


def child(source: Path, out: Path) -> None:
    """Ingest once and print what it cost."""
    from pipeline.ingest import ingest

    start = time.perf_counter()
    done = ingest(source, out)
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - start,
                "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                "interactions": done.counts.interactions,
                "digest": done.dataset.digest,
            }
        )
    )


def main() -> int:
    """Run all goals; 1 if one falls short."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, default=None, help="where the log is written")
    parser.add_argument("--child", nargs=2, type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return 0
    kept: list[bool] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_log(folder, options.rows)
        for form in ("csv", "parquet"):
            answer = subprocess.run(
                [sys.executable, __file__, "--child", folder / form, folder / f"{form}-out"],
                check=True,
                capture_output=True,
                text=True,
            )
            cost = json.loads(answer.stdout)
            what = f"{options.rows:,} rows of {form}"
            left = f"{cost['interactions']:,} interactions after the 5-core"
            kept += [
                goal(
                    "ingest",
                    what,
                    "the clock",
                    [cost["seconds"]],
                    at_most=BAR_SECONDS,
                    figure="seconds",
                    note=left,
                ),
                goal("ingest", what, "memory", [cost["gib"]], at_most=BAR_GIB, figure="peak GiB"),
            ]
    return int(not all(kept))


if __name__ == "__main__":
    sys.exit(main())
