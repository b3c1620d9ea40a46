"""What distillation adds to a student's epoch: stored scores read, checked, joined and learnt from, against plain training.

    python benchmarks/bench_fit.py [--rounds 9] [--folder DIR]

One epoch of the product's loop (`student.loop.train`, the default settings of `kd-student fit`, no time for validation in
it) over the real `scientific`: 34,101 prefixes, batches of 512, SASRec of width 64, full cross-entropy. The scores are
those of UniSRecs tuned for an epoch on MiniLM vectors, one to eight of them (three differ in their seeds, so that the
consistency rule has work to do; the other five sets are of the same three again). All contenders take turns epoch by epoch in
one process; the sha256 of a shard, which a reader checks once a run, falls into the round that is not counted, and so
does joining, whose targets a run keeps (student/kept.py). What an epoch costs that joins anew is told too: the first of
every run, and the share of later ones that does not fit into what is kept. With --folder what was made is found again.

Threads that wait must sleep (OMP_WAIT_POLICY): where other programs want the cores too, threads that spin slow the plain
epoch most, and on such a machine a ratio of 0.12 was once measured. Learning from scores is more work than not doing
so, so a median below 0.9 says that the measurement is spoilt, and counts as short.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read once, when torch is loaded

import numpy as np
import torch
from epochs import epochs
from real_data import scientific, scientific_store
from timing import clocks, goal, ratios

from cache.store import Store
from pipeline.build import Keep, build
from pipeline.teach import tune
from teachers.registry import load_teacher
from teachers.text import TextSettings
from teachers.trainer import Recipe

NAME = "fit"
BAR, FLAT, LEAST = 1.05, 1.05, 0.9
TEACHERS, SETS = 3, 8


def taught_store(folder: Path) -> Store:
    """The store with eight score sets of three teachers, and the factors of the first."""
    dataset = scientific(folder, NAME)
    store = scientific_store(folder, NAME)
    for number in range(SETS):
        seed = number % TEACHERS
        tuned = folder / "tuned" / f"seed-{seed}"
        tune(
            dataset,
            tuned,
            text=TextSettings(),
            vectors=None,
            whiten=True,
            start=None,
            transductive=True,
            freeze_encoder=False,
            architecture={},
            recipe=Recipe(epochs=1, seed=seed),
            device="cpu",
            report=lambda done, total, note: None,
        )
        keep: Keep = "scores" if number else "both"
        build(load_teacher(tuned), store, name=f"seed-{number}", keep=keep)
    return store


def compare(store: Store, threads: int, rounds: int) -> bool:
    """The goals at one number of threads."""
    torch.set_num_threads(threads)
    readers = [store.scores(name) for name in store.names]
    many = f"{threads} thread{'s' if threads > 1 else ''}"
    plain, two = f"a plain epoch, {many}", f"one with 2, {many}"
    measured = clocks([epochs(store, readers[:n]) for n in (0, 1, 2, TEACHERS, SETS)], rounds)
    kept = _told(measured, "an epoch with one score set", 1, plain, 0, BAR)
    kept &= _told(measured, f"an epoch with {TEACHERS} score sets", 3, plain, 0, BAR)
    kept &= _told(measured, f"an epoch with {SETS} score sets", 4, two, 2, FLAT)
    # what is only told takes turns of its own, and the goals need not wait for it
    factors, size = [store.factors("seed-0")], store.plan.batch_size
    others = {
        f"an epoch that joins {n} anew": epochs(store, readers[:n], kept_bytes=0)
        for n in (1, TEACHERS, SETS)
    } | {
        "an epoch of fresh batches from factors": epochs(store, factors, batch_size=size),
        "an epoch over all items from factors": epochs(
            store, factors, batch_size=size, items="all"
        ),
    }
    measured = clocks([epochs(store), *others.values()], rounds)
    for which, what in enumerate(others, start=1):
        _told(measured, what, which, plain, 0, None)
    return kept


def _told(
    measured: tuple[list[list[float]], list[list[float]]],
    what: str,
    which: int,
    against: str,
    of: int,
    bar: float | None,
) -> bool:
    """The line of one contender against another; without a bar it is only told."""
    taken, worked = measured
    return goal(
        NAME,
        what,
        against,
        ratios(taken[which], taken[of]),
        at_least=None if bar is None else LEAST,
        at_most=bar,
        note=f"processor time {np.median(ratios(worked[which], worked[of])):.2f}",
    )


def main() -> int:
    """Run the goals; 1 if one falls short."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = torch.get_num_threads()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="*", default=sorted({1, default}))
    parser.add_argument("--folder", type=Path, default=None, help="keeps the store; made if absent")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        store = taught_store(options.folder or Path(temporary))
        kept = [compare(store, threads, options.rounds) for threads in options.threads]
    return int(not all(kept))


if __name__ == "__main__":
    sys.exit(main())
