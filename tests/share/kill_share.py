"""Run by test_killed_share: pushes and pulls over and over, killed by SIGKILL before each change to the disk, then once more.

    python kill_share.py FOLDER push|pull     Prints JSON: {"points", "died", "different"}.

One thread moves files, so that the points are the same each time.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from cache.remote import locate
from cache.transfer import run_jobs
from pipeline.build import build
from pipeline.share import pull, push
from tests.fakes import TableTeacher, tiny_store, tree
from tests.pipeline.kill_points import counting, in_child


def silent(done: int, total: int) -> None:
    """Nobody watches."""


def main(folder: Path, verb: str) -> None:
    assert run_jobs.__kwdefaults__
    run_jobs.__kwdefaults__["workers"] = 1
    os.environ["KD_CACHE_DIR"] = str(folder / "kept")
    made, there, here = folder / "made", folder / "there", folder / "here" / "toys"

    def prepare() -> None:
        store = tiny_store(made)
        build(TableTeacher(), store, shard_bytes=600)
        if verb == "pull":
            push(made, locate(str(there)), (), silent)

    assert in_child(prepare) == 0
    target = here if verb == "pull" else there
    seen: list[str] = []

    def work() -> None:
        if verb == "pull":
            pull(locate(str(there)), here, (), silent)
        else:
            push(made, locate(str(there)), (), silent)

    def run(kill_at: int, told: Path | None) -> Callable[[], None]:
        def inner() -> None:
            counting(kill_at, told)
            work()

        return inner

    def fresh() -> None:
        shutil.rmtree(target.parent if verb == "pull" else target, ignore_errors=True)

    assert in_child(run(-1, folder / "count")) == 0
    points, died, wanted = int((folder / "count").read_text()), 0, tree(made)
    for point in range(points):
        fresh()
        died += in_child(run(point, None)) == -signal.SIGKILL
        # half of it is never seen: the target is whole or absent, the place published or unfinished
        if verb == "pull" and here.exists() and tree(here) != wanted:
            seen.append(f"{point}: half a store is seen")
        if verb == "push" and (there / "dataset" / "manifest.json").exists():
            shown = {name: one for name, one in tree(there).items() if ".partial-" not in name}
            if shown != wanted:
                seen.append(f"{point}: published before it was whole")
        if in_child(work) != 0:
            seen.append(f"{point}: did not go on")
        found = {name: one for name, one in tree(target).items() if ".partial-" not in name}
        if found != wanted:
            seen.append(f"{point}: {sorted(found.items() ^ wanted.items())}")
        if verb == "pull" and [p.name for p in here.parent.iterdir()] != ["toys"]:
            seen.append(f"{point}: {[p.name for p in here.parent.iterdir()]}")
    json.dump({"points": points, "died": died, "different": seen}, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
