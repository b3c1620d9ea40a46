"""Training SASRec here against RecBole 1.2.1's SASRec: instances a second, at the same number of threads.

    python benchmarks/bench_sasrec.py [--rounds 5]

Both sides: the real `scientific`, the same 34,101 training prefixes of at most 50 items, batches of 512 in random order,
width 64, two blocks of two heads, dropout 0.5, cross-entropy over all 4,385 items, Adam at 1e-3, float32 on the CPU, the
same release of torch. No evaluation on either side.

Here a turn is one epoch of `student.loop.train`, everything that `kd-student fit --no-distill` does between two
validations: reading the plan, packing histories, forward, backward, optimizer. There it is RecBole's own
`Trainer._train_epoch` over the next batches of its own data loader, default configuration else; all the turns together
make one epoch there, because theirs takes minutes. The two processes take turns; neither works while the other is
timed. What RecBole needs to load and augment its data is not counted, nor what ingest and plan need here.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from epochs import epochs
from real_data import scientific_store
from recbole_side import RecBole, recbole
from timing import goal, turns

from cache.store import Store

NAME = "sasrec"
BAR = 10


def compare(store: Store, peer: RecBole, threads: int, rounds: int) -> bool:
    """The goal at one number of threads."""
    torch.set_num_threads(threads)
    instances = store.plan.num_instances
    facts = peer.ask("facts", threads)
    there = (facts["instances"], facts["items"])
    if there != (instances, store.dataset.num_items):
        raise SystemExit(f"RecBole has {there} instances and items, not the same as here")
    done: list[int] = []

    def theirs(number: int) -> None:
        # the first, which warms up, is short; the others make one epoch
        batches = 2 if number < 0 else -(-facts["batches"] // rounds)
        done.append(peer.ask("train", threads, batches=batches)["instances"])

    ours_s, theirs_s = turns([epochs(store), theirs], rounds)
    ours = [instances / seconds for seconds in ours_s]
    other = [count / seconds for count, seconds in zip(done[1:], theirs_s, strict=True)]
    middle = sorted(zip(ours, other, strict=True), key=lambda pair: pair[0] / pair[1])[rounds // 2]
    return goal(
        NAME,
        f"instances a second on {threads} thread{'s' if threads > 1 else ''}",
        "RecBole 1.2.1's SASRec",
        [mine / yours for mine, yours in zip(ours, other, strict=True)],
        at_least=BAR,
        note=f"{middle[0]:,.0f} and {middle[1]:,.0f} in the median round",
    )


def main() -> int:
    """Run the goals; 1 if one falls short."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, torch.get_num_threads()])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        store = scientific_store(Path(name), NAME)
        with recbole(store.dataset, Path(name)) as peer:
            kept = [
                compare(store, peer, threads, options.rounds)
                for threads in sorted(set(options.threads))
            ]
    return int(not all(kept))


if __name__ == "__main__":
    sys.exit(main())
