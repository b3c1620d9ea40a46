"""Run by test_extend: extends a store over and over, killed by SIGKILL before each N-th change to the disk, then again.

    python kill_extend.py FOLDER N

Prints JSON: {"points", "different", "died"}.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import pipeline.build
from cache.dataset import open_dataset
from cache.store import Store
from pipeline.build import build
from pipeline.extend import extend, open_or_create
from pipeline.grow import join
from pipeline.grown import grow
from tests.fakes import TableTeacher, tree
from tests.later import dataset_of, later_of, log_of, store_of
from tests.pipeline.kill_points import counting, in_child

os.fsync = lambda handle: None  # a kill takes nothing from the kernel; counted, not waited for


def prepare(folder: Path) -> None:
    log = log_of(users=6)
    build(TableTeacher(), store_of(folder / "old", log, rounds=1), keep="both")
    dataset_of(folder / "later", later_of(log, users=3))


def one_extension(folder: Path) -> None:
    pipeline.build.HISTORY_BLOCK = 8
    old = Store.open(folder / "old")
    grown = grow(old, join(old.dataset, open_dataset(folder / "later")))
    store = open_or_create(folder / "out" / "store", old, grown)
    extend(TableTeacher(), old, store, "table", shard_bytes=400)


def main(folder: Path, step: int) -> None:
    in_child(lambda: prepare(folder))
    told, out = folder / "count", folder / "out"

    def whole() -> None:
        counting(-1, told)
        one_extension(folder)

    in_child(whole)
    wanted = tree(out / "store")
    points = range(0, int(told.read_text()), step)
    different, died = [], 0
    for point in points:
        shutil.rmtree(out)

        def killed(point: int = point) -> None:
            counting(point, None)
            one_extension(folder)

        died += in_child(killed) == -signal.SIGKILL
        status = in_child(lambda: one_extension(folder))
        if status or tree(out / "store") != wanted:
            different.append([point, status])
    json.dump({"points": len(points), "different": different, "died": died}, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
