"""What distillation adds to a student's epoch: stored scores read, checked, joined and learnt from, against plain training.

    python benchmarks/bench_fit.py [--rounds 9] [--folder DIR]

One epoch of the product's loop (`student.loop.train`, the default settings of `kd-student fit`, no time for validation in
it) over the real `scientific`: 34,101 prefixes, batches of 512, SASRec of width 64, full cross-entropy. The scores are
those of UniSRecs tuned for an epoch on MiniLM vectors, one or three of them (three differ in their seeds, so that
the consistency rule has work to do). All contenders take turns epoch by epoch in one process; the sha256 of a shard, which a
reader checks once a run, falls into the round that is not counted. With --folder what was made is kept and found again.

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

import torch
from epochs import epochs
from real_data import scientific, scientific_store
from timing import goal, ratios, turns

from cache.store import Store
from pipeline.build import build
from pipeline.teach import tune
from teachers.registry import load_teacher
from teachers.text import TextSettings
from teachers.trainer import Recipe

NAME = "fit"
BAR, LEAST = 1.10, 0.9
TEACHERS = 3


def taught_store(folder: Path) -> Store:
    """The store with the score sets of three teachers."""
    dataset = scientific(folder, NAME)
    store = scientific_store(folder, NAME)
    for seed in range(TEACHERS):
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
        build(load_teacher(tuned), store, name=f"seed-{seed}")
    return store


def compare(store: Store, threads: int, rounds: int) -> bool:
    """The goals at one number of threads."""
    torch.set_num_threads(threads)
    readers = [store.scores(name) for name in store.names]
    base, one, three = turns(
        [epochs(store, ()), epochs(store, readers[:1]), epochs(store, readers)], rounds
    )
    plain = f"a plain epoch, {threads} thread{'s' if threads > 1 else ''}"
    kept = goal(
        NAME, "an epoch with one score set", plain, ratios(one, base), at_least=LEAST, at_most=BAR
    )
    goal(NAME, f"an epoch with {TEACHERS} score sets", plain, ratios(three, base))
    return kept


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
