"""Training each student here against the same model of RecBole 1.2.1: instances a second, same loss and settings.

    python benchmarks/bench_students.py [NAME ...] [--rounds 3] [--threads 1]

Both sides: the real `scientific`, batches of 512 training instances in random order, the sizes, dropouts and losses that
are RecBole's defaults, Adam at 1e-3, float32 on the CPU, the same release of torch. GRU4Rec, BERT4Rec: 34,101 prefixes,
softmax over all items (BERT4Rec: Cloze). LightGCN: BPR with one negative. FM, DeepFM: binary with one negative, and both
sides know the same five fields, user, history, item, brand and category; RecBole's are also held to the bar when they are
spared the history, which ours are not, and told with user and item alone. A turn is an epoch here, a part of one there;
neither works while the other is timed. SASRec has a benchmark of its own. An instance is a positive.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from epochs import epochs
from real_data import scientific_store
from recbole_side import recbole
from timing import clocks, goal

from cache.store import Store
from student.fields import codes

NAME = "students"
BARS = {"gru4rec": 10, "bert4rec": 10, "lightgcn": 2, "fm": 2, "deepfm": 2}
_THEIRS = {
    "gru4rec": "GRU4Rec",
    "bert4rec": "BERT4Rec",
    "lightgcn": "LightGCN",
    "fm": "FM",
    "deepfm": "DeepFM",
}
_SHARE = 12  # of an epoch there, a turn: theirs take minutes


@dataclass(frozen=True, slots=True)
class Known:
    """What RecBole's factorisation machines are told of what ours know; and in words."""

    attributes: bool
    histories: bool
    words: str = ""
    held: bool = True  #: to the bar


_FIELDS = ("fm", "deepfm")
_NOTHING = (Known(attributes=False, histories=False),)  # the others ask for no fields
_TOLD = (
    Known(attributes=True, histories=True),
    Known(attributes=True, histories=False, words=" without the history"),
    Known(attributes=False, histories=False, words=" of user and item alone", held=False),
)


def compare(
    store: Store, folder: Path, student: str, threads: int, rounds: int, known: Known
) -> bool:
    """The goal of one student, or what it is told beside one."""
    torch.set_num_threads(threads)
    instances = store.plan.num_instances
    attributes = codes(store.dataset).numpy() if known.attributes else None
    name = _THEIRS[student]
    with recbole(store.dataset, folder, name, attributes, histories=known.histories) as peer:
        facts = peer.ask("facts", threads)
        if facts["items"] != store.dataset.num_items:
            raise SystemExit(f"RecBole has {facts['items']} items, not the same as here")
        done: list[int] = []
        their_processor: list[float] = []

        def theirs(number: int) -> None:
            batches = 2 if number < 0 else -(-facts["batches"] // _SHARE)
            answer = peer.ask("train", threads, batches=batches)
            done.append(answer["instances"])
            their_processor.append(answer["processor"])

        (ours_s, theirs_s), (our_processor, _) = clocks(
            [epochs(store, student=student), theirs], rounds
        )
    ours = [instances / seconds for seconds in ours_s]
    other = [count / seconds for count, seconds in zip(done[1:], theirs_s, strict=True)]
    middle = sorted(zip(ours, other, strict=True), key=lambda pair: pair[0] / pair[1])[rounds // 2]
    worked = [
        count / theirs * mine / instances
        for count, theirs, mine in zip(done[1:], their_processor[1:], our_processor, strict=True)
    ]
    return goal(
        NAME,
        f"{name}, instances a second",
        f"RecBole 1.2.1's {name}{known.words}",
        [mine / yours for mine, yours in zip(ours, other, strict=True)],
        at_least=BARS[student] if known.held else None,
        note=f"{middle[0]:,.0f} and {middle[1]:,.0f} in the median round; "
        f"by processor time {1 / np.median(worked):.2f}",
    )


def main() -> int:
    """Run the goals; 1 if one falls short."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("students", nargs="*", default=list(BARS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if unknown := set(options.students) - set(BARS):
        parser.error(f"unknown {', '.join(sorted(unknown))}; known are {', '.join(BARS)}")
    with tempfile.TemporaryDirectory() as name:
        store = scientific_store(Path(name), NAME)
        kept = [
            compare(store, Path(name), student, options.threads, options.rounds, known)
            for student in options.students
            for known in (_TOLD if student in _FIELDS else _NOTHING)
        ]
    return int(not all(kept))


if __name__ == "__main__":
    sys.exit(main())
