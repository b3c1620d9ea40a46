"""Run by the test of P02: one piece of work under strace, then the disk as each loss of power may have left it.

    python power_points.py FOLDER WORK STEP ROUNDS    before every STEP-th fsync, and at the end; ROUNDS draws of each way

WORK is what a build keeps (scores, factors, both); or `hands`: scores, of which other processes did some before they died;
or `plan`: a store that is made. Prints JSON: a complaint, or "", for
each disk that was gone on with.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[2]))

from cache.dataset import open_dataset
from cache.journal import JOURNAL
from cache.store import Store
from cache.unfinished import HANDS
from cache.verify import verify
from pipeline.build import build
from tests.fakes import TableTeacher, tiny_plan, tiny_store, tree
from tests.pipeline.kill_points import in_child
from tests.promises import traced
from tests.promises.power import CALLS, WAYS, Disk, replayed
from tests.promises.stores import SHARD_BYTES, small_build, small_pieces


def main(folder: Path, kind: str, step: int, rounds: int) -> None:
    small_pieces()
    root = folder / "root"
    root.mkdir()
    place = "cache/store" if kind == "plan" else "store"
    assert in_child(lambda: tiny_store(folder / "made")) == 0

    def work(path: Path) -> None:
        if kind == "plan":
            if not path.exists():
                Store.create(path, open_dataset(folder / "made-data"), tiny_plan)
        else:
            small_build(path, "scores" if kind == "hands" else kind)  # type: ignore[arg-type]

    if kind != "plan":
        shutil.copytree(folder / "made", root / place)
    if kind == "hands":
        assert in_child(lambda: left_by_hands(root / place)) == 0
    disk = Disk(root)
    options = ["-y", "-xx", "-s", "9999999", "-e", f"trace={CALLS}", "-o", str(folder / "log")]
    assert traced.under(lambda: work(root / place), options) == 0
    wanted = tree(root / place)
    complaints, syncs = [], 0
    written: Counter[Path] = Counter()  # lines of journals
    lines: Counter[Path] = Counter()  # those that must be certain, as the program has gone on since
    for name, path in replayed(disk, folder / "log"):
        syncs += name == "fsync"
        if name == "openat":
            lines = written.copy()
        if path.name == JOURNAL and name == "unlink":
            del lines[path], written[path]
        tried = name == "end" or (name == "fsync" and syncs % step == 0)
        for way, draw in WAYS.items() if tried else ():
            for seed in range(rounds if way in {"names and torn bytes", "some of each"} else 1):
                target = folder / "after"
                shutil.rmtree(target, ignore_errors=True)
                disk.left(target, *draw(Random(f"{syncs} {seed}")))
                store = target / place
                # the first line is certain once the journal's name is, too
                certain = {one: n for one, n in lines.items() if one.parent != path}
                complaint = _forgotten(certain, root, target) or _judge(
                    store, wanted, ended=name == "end", work=lambda s=store: work(s)
                )
                where = f"{kind}, {name} {syncs}, {way} {seed}"
                complaints.append(f"{where}: {complaint}" if complaint else "")
        if path.name == JOURNAL and name == "write":
            written[path] += 1
    assert tree(root / place) == wanted
    json.dump(complaints, sys.stdout)


class _StopsError(Exception):
    """Of a teacher who has encoded everything."""


class _Stops(TableTeacher):
    def score(self, users_TD, items_CD):  # type: ignore[no-untyped-def]
        raise _StopsError


def left_by_hands(path: Path) -> None:
    """Unfinished work whose histories are not in the lead's journal, but in one of a process that helped."""
    with contextlib.suppress(_StopsError):
        build(_Stops(), Store.open(path), shard_bytes=SHARD_BYTES)
    work = path / "scores/.work-table"
    hand = work / HANDS / ".work-x"
    hand.mkdir(parents=True)
    (work / "histories").rename(hand / "histories")
    lines = (work / JOURNAL).read_bytes().splitlines(keepends=True)
    theirs = [line for line in lines if b"histories/" in line]
    assert len(theirs) == len(lines) - 1 > 0
    (hand / JOURNAL).write_bytes(b"".join(theirs))
    (work / JOURNAL).write_bytes(b"".join(line for line in lines if line not in theirs))


def _forgotten(lines: dict[Path, int], root: Path, target: Path) -> str:
    """Work that a journal had told of before is not done twice."""
    for path, count in lines.items():
        found = target / path.relative_to(root)
        if not found.exists() or found.read_bytes().count(b"\n") < count:
            return f"{found}: {count} lines were certain"
    return ""


def _judge(store: Path, wanted: dict[str, str], *, ended: bool, work) -> str:
    """Nothing sealed lacks a byte; what was told as done is there; and the same command ends in the same bytes."""
    if store.exists() and (found := verify(store)):
        return f"sealed over missing bytes: {found[0]}"
    if ended and (gone := wanted.items() - (tree(store).items() if store.exists() else set())):
        return f"told as done, then lost: {sorted(gone)[:3]}"
    try:
        work()
    except Exception as error:
        return f"does not go on: {type(error).__name__}: {error}"
    odd = sorted(set(tree(store).items()) ^ set(wanted.items()))
    return f"differs: {odd[:3]}" if odd else ""


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
