"""Writing a score set against writing plain files: what checksums, digests, journal and names cost beside the disk.

    python benchmarks/bench_writer.py [--batches 480] [--rounds 7]

The batches' log-probabilities lie ready in memory, as many shards as a real set has. Plain: the same bytes written to files
of the same sizes, each fsynced. Ours: every chunk laid out with its crc32c, every shard hashed, written aside, fsynced,
renamed, its folder fsynced, its line in the journal fsynced. The bar is 1 GB/s or 60% of what the
disk gives plain files. What a whole `ScoreWriter` takes, softmax and reading back with it, is told beside.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from bench_reader import make_store
from numpy.typing import NDArray
from timing import goal, ratios, turns

sys.path.insert(0, str(Path(__file__).parents[1]))

from cache.layout import Layout, encode_shard
from cache.score_writer import ScoreWriter, log_softmax, score_settings
from cache.store import Store

NAME, BAR, ENOUGH = "writer", 0.6, 1.0


def random_scores(store: Store) -> list[NDArray[np.float32]]:
    """Bare scores [T_b, C_b] of every batch, a few hundred different batches' worth of them."""
    rng = np.random.default_rng(0)
    pool = rng.normal(scale=0.15, size=(8, store.plan.batch_size, store.plan.num_columns))
    return [
        pool[i % 8, : len(batch.users), : len(batch.items)].astype(np.float32)
        for i, batch in enumerate(store.plan[i] for i in range(len(store.plan)))
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=480)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        store = make_store(folder, options.batches)
        layout = Layout.of(store.plan)
        raws = random_scores(store)
        ready = [log_softmax(raw, 0.07) for raw in raws]
        shards = [
            encode_shard(layout, unit, (ready[i] for i in layout.shard_batches(unit)))
            for unit in layout.shards
        ]

        def begin(name: str) -> ScoreWriter:
            who = {"teacher": name, "teacher_digest": "sha256:" + "0" * 64}
            settings = score_settings(layout, **who, quality={}, tau=0.07, extra={})
            return ScoreWriter.open(store.folder(name), store.plan, layout, settings)

        def plain(number: int) -> None:
            target = folder / "plain"
            target.mkdir()
            for unit, shard in enumerate(shards):
                handle = os.open(target / str(unit), os.O_WRONLY | os.O_CREAT)
                view = shard.data.cast("B")
                while view.nbytes:
                    view = view[os.write(handle, view) :]
                os.fsync(handle)
                os.close(handle)
            shutil.rmtree(target)

        def ours(number: int) -> None:
            writer = begin("ours")
            for unit in layout.shards:
                shard = encode_shard(layout, unit, (ready[i] for i in layout.shard_batches(unit)))
                writer.part.put(layout.shard_path(unit), shard.data)
            shutil.rmtree(writer.work)

        def whole(number: int) -> None:
            writer = begin("whole")
            for unit in layout.shards:
                writer.put(unit, [raws[i] for i in layout.shard_batches(unit)])
            writer.seal()
            shutil.rmtree(store.folder("whole"))

        plain_s, ours_s, whole_s = turns([plain, ours, whole], options.rounds)
        size = sum(layout.sizes().values()) / 1e9
        disk, speed = size / median(plain_s), size / median(ours_s)
        print(
            f"# {len(layout.shards)} shards, {size:.2f} GB; plain files {disk:.2f} GB/s", flush=True
        )
        what = "bytes a second of a score set, checked and fsynced,"
        share = ratios(plain_s, ours_s)
        # 1 GB/s is enough, however fast the disk
        enough = min(BAR, ENOUGH / disk)
        kept = goal(
            NAME, what, "plain files", share, at_least=round(enough, 2), note=f"{speed:.2f} GB/s"
        )
        goal(
            NAME,
            "the same with softmax and sealing",
            "plain files",
            ratios(plain_s, whole_s),
            note=f"{size / median(whole_s):.2f} GB/s",
        )
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
