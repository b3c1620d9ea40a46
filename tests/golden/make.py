"""Writes the golden store of format 1, or of format 2, anew: `python tests/golden/make.py 2`. Only a new format needs that.

Each store must stay readable by every later version; beside it lie the values that it must give.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import zarr

sys.path.insert(0, str(Path(__file__).parents[2]))

import pipeline.build
from cache.store import Store
from pipeline.build import build
from tests.fakes import PairTeacher, TableTeacher, tiny_store

HERE = Path(__file__).parent


def main(format: int) -> None:
    if format == 2:
        _second()
        return
    with tempfile.TemporaryDirectory() as folder:
        store = tiny_store(Path(folder) / "store", users=8, items=7)
        build(TableTeacher("table"), store, shard_bytes=300, quality={"ndcg@10": 0.0625})
        build(PairTeacher("pairs"), store, tau=0.5)
        pipeline.build.HISTORY_BLOCK, pipeline.build.FACTOR_BLOCKS = (
            5,
            1,
        )  # several files of few rows
        build(TableTeacher("table"), store, keep="factors", quality={"ndcg@10": 0.0625})
        target = HERE / "store_v1"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(store.path, target)
    for name in Store.open(target).names:
        np.save(HERE / f"store_v1_{name}.npy", values(Store.open(target), name))
    factors = Store.open(target).factors("table")
    instances = np.arange(factors.layout.instances)
    np.save(HERE / "store_v1_table_histories.npy", factors.history_vectors(instances))
    np.save(HERE / "store_v1_table_items.npy", factors.item_vectors())


def _second() -> None:
    """One teacher's scores in both codecs."""
    with tempfile.TemporaryDirectory() as folder:
        store = tiny_store(Path(folder) / "store", users=8, items=7)
        build(TableTeacher("table"), store, shard_bytes=300)
        build(TableTeacher("table"), store, name="bytes", codec="u8", shard_bytes=300)
        target = HERE / "store_v2"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(store.path, target)
    np.save(HERE / "store_v2_bytes.npy", values(Store.open(target), "bytes"))
    raw = zarr.open_array(target / "scores" / "bytes" / "scores.zarr", mode="r")[:]
    np.save(HERE / "store_v2_raw.npy", raw)


def values(store: Store, name: str) -> np.ndarray:
    """[batches, T, C] with NaN beyond each batch."""
    reader = store.scores(name)
    kind = "<f2" if reader.layout.codec == "none" else "<f4"
    whole = np.full((len(reader), store.plan.batch_size, store.plan.num_columns), np.nan, kind)
    for index in range(len(reader)):
        rows, width = reader.shape(index)
        whole[index, :rows, :width] = reader[index]
    return whole


if __name__ == "__main__":
    main(int(sys.argv[1]))
