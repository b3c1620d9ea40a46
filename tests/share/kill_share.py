"""Run by test_killed_share: pushes and pulls over and over, killed by SIGKILL before each change to the disk, then once more.

    python kill_share.py FOLDER push|pull [growing]     Prints JSON: {"points", "died", "different"}.

Growing: scores and a signature are at the other end already; what moves are factors of two teachers, one of which has the
scores, and a signature of all, killed at every third point. One thread moves files, so that the points are the same each time.
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

from cache.errors import CkdError
from cache.manifest import check_part
from cache.outline import outline
from cache.remote import FolderRemote, locate
from cache.signature import read_signature_here
from cache.transfer import run_jobs
from pipeline.build import build
from pipeline.share import pull, push
from pipeline.sign import sign_store
from tests.fakes import TableTeacher, tiny_store, tree
from tests.keys import Keys
from tests.pipeline.kill_points import counting, in_child


def silent(done: int, total: int) -> None:
    """Nobody watches."""


def torn(store: Path) -> str:
    """What is wrong with a place or copy that grows: all that is seen in it is whole and signed, at every instant."""
    try:
        found = outline(FolderRemote(store))
        for part in found.parts:
            check_part(store / part.folder, part.manifest.kind, deep=True)
        signature = read_signature_here(store)
    except CkdError as error:
        return str(error)
    return ", ".join(signature.uncovered(found.parts)) if signature else "the signature is gone"


def main(folder: Path, verb: str, growing: bool) -> None:
    assert run_jobs.__kwdefaults__
    run_jobs.__kwdefaults__["workers"] = 1
    os.environ["KD_CACHE_DIR"] = str(folder / "kept")
    made, there, here = folder / "made", folder / "there", folder / "here" / "toys"

    before = folder / "before"  # what is at the other end when it grows

    def prepare() -> None:
        store = tiny_store(made)
        build(TableTeacher(), store, shard_bytes=600)
        if growing:
            keys = Keys.make(folder, "owner")
            sign_store(made, keys.private, silent)
            push(made, locate(str(before)), (), silent)
            build(TableTeacher(), store, keep="factors")
            build(TableTeacher("other"), store, keep="factors")
            sign_store(made, keys.private, silent)
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
        if growing:
            shutil.copytree(before, target)

    fresh()
    assert in_child(run(-1, folder / "count")) == 0
    points = range(0, int((folder / "count").read_text()), 3 if growing else 1)
    died, wanted = 0, tree(made)
    for point in points:
        fresh()
        died += in_child(run(point, None)) == -signal.SIGKILL
        # half of it is never seen: the target is whole or absent, the place published or unfinished
        if growing:
            if wrong := torn(target):
                seen.append(f"{point}: {wrong}")
        elif verb == "pull" and here.exists() and tree(here) != wanted:
            seen.append(f"{point}: half a store is seen")
        elif verb == "push" and (there / "dataset" / "manifest.json").exists():
            shown = {name: one for name, one in tree(there).items() if ".partial-" not in name}
            if shown != wanted:
                seen.append(f"{point}: published before it was whole")
        if in_child(work) != 0:
            seen.append(f"{point}: did not go on")
        found = tree(target)
        if found != wanted:
            seen.append(f"{point}: {sorted(found.items() ^ wanted.items())}")
        if verb == "pull" and [p.name for p in here.parent.iterdir()] != ["toys"]:
            seen.append(f"{point}: {[p.name for p in here.parent.iterdir()]}")
    json.dump({"points": len(points), "died": died, "different": seen}, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], "growing" in sys.argv[3:])
