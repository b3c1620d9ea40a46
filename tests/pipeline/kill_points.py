"""Run by test_p01_killed_build: builds a store over and over, killed by SIGKILL at one chosen instant, then builds again.

    python kill_points.py FOLDER KEEP every N      killed before each N-th change that it makes to the disk, in turn
    python kill_points.py FOLDER KEEP random N     killed at N random times, up to five times in a row

KEEP is what is built: scores, factors or both; or u8, which is scores of that codec.

A fork a build keeps this fast; this parent itself never runs a thread. Prints JSON: {"points", "different", "died"}.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

# what reading a table imports when it is first done: here once, not in every fork
import numpy.ma
import numpy.random  # noqa: F401
import pyarrow.compute
import pyarrow.dataset
import pyarrow.parquet  # noqa: F401

from cache.store import Store
from pipeline.build import Keep, build
from tests.fakes import TableTeacher, tiny_store, tree

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.truncate"}


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a fork; its exit status, negative if a signal ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def one_build(path: Path, keep: Keep) -> None:
    import pipeline.build

    pipeline.build.HISTORY_BLOCK = 32  # two blocks from a tiny plan
    pipeline.build.FACTOR_BLOCKS = 1
    small = keep == "u8"
    build(
        TableTeacher(),
        Store.open(path),
        shard_bytes=300 if small else 600,
        keep="scores" if small else keep,
        codec="u8" if small else "none",
    )


def counting(kill_at: int, told: Path | None) -> None:
    """Count changes to the disk below; die right before number `kill_at`, or tell the count."""
    seen = 0

    def hear() -> None:
        nonlocal seen
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1
        if told is not None:
            os.pwrite(counter, str(seen).encode(), 0)

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & 0o3
        if event in CHANGES or writes:
            hear()

    sync = os.fsync

    def heard_sync(handle: int) -> None:
        hear()
        sync(handle)

    counter = os.open(told, os.O_RDWR | os.O_CREAT) if told is not None else -1
    os.fsync = heard_sync
    sys.addaudithook(audit)


def every(
    folder: Path, keep: Keep, fresh: Callable[[], Path], wanted: dict[str, str], step: int
) -> dict[str, object]:
    told = folder / "count"
    path = fresh()

    def whole() -> None:
        counting(-1, told)
        one_build(path, keep)

    in_child(whole)
    points = range(0, int(told.read_text()), step)
    different, died = [], 0
    for point in points:
        path = fresh()

        def killed(path: Path = path, point: int = point) -> None:
            counting(point, None)
            one_build(path, keep)

        died += in_child(killed) == -signal.SIGKILL
        status = in_child(lambda path=path: one_build(path, keep))
        if status or tree(path) != wanted:
            different.append([point, status, sorted(set(tree(path).items()) ^ set(wanted.items()))])
    return {"points": len(points), "different": different, "died": died}


def at_random(
    fresh: Callable[[], Path], keep: Keep, wanted: dict[str, str], count: int
) -> dict[str, object]:
    dice = random.Random(0)
    path = fresh()
    start = time.monotonic()
    in_child(lambda: one_build(path, keep))
    span = time.monotonic() - start
    different, died = [], 0
    for number in range(count):
        path = fresh()
        for attempt in range(dice.randint(1, 5)):
            child = os.fork()
            if child == 0:
                one_build(path, keep)
                os._exit(0)
            delay = dice.random() * span
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL:
                if attempt == 0:  # too late: a whole build takes less than that
                    span = delay
                break  # nothing is left to kill
            died += 1
        status = in_child(lambda path=path: one_build(path, keep))
        if status or tree(path) != wanted:
            different.append(
                [number, status, sorted(set(tree(path).items()) ^ set(wanted.items()))]
            )
    return {"points": count, "different": different, "died": died}


def main(folder: Path, keep: Keep, how: str, count: int) -> None:
    clean = folder / "clean"

    def prepare() -> None:
        tiny_store(clean)

    in_child(prepare)

    def fresh() -> Path:
        path = folder / "store"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(clean, path)
        return path

    path = fresh()
    in_child(lambda: one_build(path, keep))
    wanted = tree(path)
    told = (
        every(folder, keep, fresh, wanted, count)
        if how == "every"
        else at_random(fresh, keep, wanted, count)
    )
    json.dump({**told, "files": len(wanted)}, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
