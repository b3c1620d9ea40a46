"""Training SASRec here against RecBole 1.2.1, pmixer's recipe and RecTools 0.19: instances a second, same threads.

    python benchmarks/bench_sasrec.py [--rounds 5] [--threads 1]

All sides: the real `scientific`, histories of at most 50 items, width 64, two blocks of two heads, dropout 0.5, Adam at 1e-3,
float32 on the CPU, the same release of torch. No evaluation on any side. An instance is a target that is learnt from.

- instance by instance: an epoch of `student.loop.train` as `kd-student fit --no-distill` does it, 34,101 prefixes in batches of
  512, cross-entropy over all 4,385 items. RecBole does the same with its own `Trainer._train_epoch`, default configuration
  else; all its turns together make one epoch, because theirs takes minutes.
- by user: `--batching user --ce in-batch --batch-size 2048`, what docs/results.md says of its quality.
- pmixer's recipe and RecTools (its softmax over all items; its BCE with one negative) read a user once as well, padded.

What any side needs to load and prepare its data before the first step is not counted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from epochs import epochs
from real_data import scientific_store
from recbole_side import recbole
from sequence_peers import pmixer, rectools
from timing import goal

from cache.store import Store

NAME = "sasrec"
BAR, BY_USER_BAR = 10, 60
RECTOOLS_BATCHES = 4  # of 67, a turn

Rate = Callable[[int], float]
"""rate(round): instances a second in one turn."""


def ours(store: Store, **settings: object) -> Rate:
    """Epochs of our own loop."""
    epoch = epochs(store, **settings)

    def rate(number: int) -> float:
        start = time.perf_counter()
        epoch(number)
        return store.plan.num_instances / (time.perf_counter() - start)

    return rate


def timed(contender: Callable[[int], int]) -> Rate:
    """One that says how many it did."""

    def rate(number: int) -> float:
        start = time.perf_counter()
        done = contender(number)
        return done / (time.perf_counter() - start)

    return rate


def compare(store: Store, folder: Path, threads: int, rounds: int) -> bool:
    """The goals at one number of threads."""
    torch.set_num_threads(threads)
    with ExitStack() as stack:
        peer = stack.enter_context(recbole(store.dataset, folder))
        facts = peer.ask("facts", threads)
        if (facts["instances"], facts["items"]) != (
            store.plan.num_instances,
            store.dataset.num_items,
        ):
            raise SystemExit(f"RecBole has {facts}, not the same instances and items as here")

        def theirs(number: int) -> float:
            # the first, which warms up, is short; the others make one epoch
            batches = 2 if number < 0 else -(-facts["batches"] // rounds)
            found = peer.ask("train", threads, batches=batches)
            return found["instances"] / found["seconds"]

        rivals: dict[str, Rate] = {
            "ours": ours(store),
            "by user": ours(store, batching="user", batch_size=2048, ce="in-batch"),
            "RecBole 1.2.1's SASRec": theirs,
            "pmixer's recipe, BCE with one negative": timed(pmixer(store.dataset)),
        }
        for loss, title in (("softmax", "softmax"), ("BCE", "BCE with one negative")):
            turn = stack.enter_context(
                rectools(store.dataset, folder, threads, RECTOOLS_BATCHES, loss=loss)
            )

            def rate(number: int, turn: Callable[[int], tuple[int, float]] = turn) -> float:
                done, seconds = turn(number)
                return done / seconds

            rivals[f"RecTools 0.19's SASRecModel, {title}"] = rate
        found: dict[str, list[float]] = {name: [] for name in rivals}
        for number in range(-1, rounds):
            for name, one in rivals.items():
                value = one(number)
                if number >= 0:
                    found[name].append(value)

    def line(mine: str, other: str, bar: float) -> bool:
        pairs = sorted(
            zip(found[mine], found[other], strict=True), key=lambda pair: pair[0] / pair[1]
        )
        middle = pairs[len(pairs) // 2]
        how = "instances a second" + ("" if mine == "ours" else " by user, in-batch loss")
        return goal(
            NAME,
            f"{how}, {threads} thread{'s' if threads > 1 else ''},",
            other,
            [one / two for one, two in zip(found[mine], found[other], strict=True)],
            at_least=bar,
            note=f"{middle[0]:,.0f} and {middle[1]:,.0f} in the median round",
        )

    kept = [line("ours", "RecBole 1.2.1's SASRec", BAR)]
    kept.append(line("by user", "RecBole 1.2.1's SASRec", BY_USER_BAR))
    kept += [line("ours", other, 1) for other in list(found)[3:]]
    return all(kept)


def main() -> int:
    """Run the goals; 1 if one falls short."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, torch.get_num_threads()])
    options = parser.parse_args()
    kept = []
    for threads in sorted(set(options.threads)):
        with tempfile.TemporaryDirectory() as name:
            store = scientific_store(Path(name), NAME)
            kept.append(compare(store, Path(name), threads, options.rounds))
    return int(not all(kept))


if __name__ == "__main__":
    sys.exit(main())
