"""Serving a distilled student against serving its base: Table 5's 1.0x, from the exported files.

    python benchmarks/bench_export.py [--rounds 100] [--threads 1]

Two SASRecs of the default sizes (width 64, two blocks of two heads) on the real `scientific` (4,385 items), one trained
alone and one from a teacher's scores, an epoch each: the numbers in a model do not change what it costs. Both are exported
to ONNX and take turns in one process, request by request, with onnxruntime on the processor: one user of 50 items, and a
batch of 64 users of 50. Latency is that of the quickest turn of each, since whatever else a machine does only adds to it
(a turn is 20 requests of one user, or one request of 64). The files must have the same size; a benchmark that finds
otherwise stops.

The teacher is a table of random numbers: nothing here depends on what it knows.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from real_data import scientific_store
from timing import goal, turns

from cache.store import Store
from pipeline.build import build
from pipeline.export import export
from pipeline.fit import fit
from student.sasrec import SASRecConfig
from student.schedule import TrainSettings
from student.targets import join_settings

NAME = "export"
LEAST, BAR = 0.95, 1.05
REQUESTS = {1: 20, 64: 1}  #: in a turn, by the batch
LENGTH = 50


class Random:
    """A teacher of random vectors."""

    name, factorises, digest = "random", True, f"sha256:{0:064x}"
    quality = {"ndcg@10": 0.1}  # noqa: RUF012

    def encode_items(self, dataset):
        return _unit(np.random.default_rng(0).normal(size=(dataset.num_items, 8)))

    def encode_histories(self, dataset, users, ends):
        return _unit(np.random.default_rng(1).normal(size=(len(users), 8)))

    def score(self, users_TD, items_CD):
        return users_TD @ items_CD.T


def _unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def sessions(folder: Path, threads: int) -> list[onnxruntime.InferenceSession]:
    """Base and distilled, exported; of the same size to the byte."""
    store = scientific_store(folder, NAME)
    build(Random(), store)
    store = Store.open(store.path)
    readers = [store.reader(name) for name in store.teachers]
    sizes, opened = [], []
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for kind, some in (("base", []), ("distilled", readers)):
        settings = TrainSettings(
            epochs=1, curriculum=False, join=join_settings(some) if some else None
        )
        fit(store, some, folder / kind, SASRecConfig(), settings)
        out = folder / f"{kind}-onnx"
        export(folder / kind, store, out, "onnx")
        sizes.append((out / "model.onnx").stat().st_size)
        opened.append(onnxruntime.InferenceSession(out / "model.onnx", options))
    if sizes[0] != sizes[1]:
        raise SystemExit(f"the base takes {sizes[0]:,} bytes, the distilled student {sizes[1]:,}")
    print(f"{NAME:<8}  both files take {sizes[0]:,} bytes", flush=True)
    return opened


def asking(session: onnxruntime.InferenceSession, items: np.ndarray) -> Callable[[int], object]:
    """A turn: some requests."""

    def turn(number: int) -> None:
        for _ in range(REQUESTS[len(items)]):
            session.run(None, {"items": items})

    return turn


def main() -> int:
    """Run the goals; 1 if one falls short."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kept = True
    with tempfile.TemporaryDirectory() as name:
        base, ours = sessions(Path(name), options.threads)
        for batch, requests in REQUESTS.items():
            items = np.random.default_rng(0).integers(0, 4385, (batch, LENGTH))
            plain, taught = turns(
                [asking(base, items), asking(ours, items)], options.rounds, warm=20
            )
            each = 1000 * min(plain) / requests
            kept &= goal(
                NAME,
                f"latency of the distilled student, batch {batch}, {options.threads} thread",
                "its base",
                [min(taught) / min(plain)],
                at_least=LEAST,
                at_most=BAR,
                note=f"{each:.2f} ms a request of the base, {options.rounds} rounds",
            )
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
