"""A store's batches under `DataLoader`, with workers and without: the order and numbers of a run of ours."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from cache.errors import StoreError, UsageError
from cache.store import Store
from pipeline.build import build
from student.prepared import prepared
from student.schedule import TrainSettings, epoch_batches
from student.stream import StoreBatches
from student.targets import join_settings
from tests.fakes import TableTeacher
from tests.student.small import shop


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = shop(tmp_path_factory.mktemp("shop") / "store")
    build(TableTeacher(), store, keep="both")
    build(TableTeacher("other", seed=1), store)
    return Store.open(store.path)


def loader(batches: StoreBatches, workers: int, *, stay: bool = False) -> DataLoader:
    start = {"multiprocessing_context": "forkserver"} if workers else {}
    return DataLoader(
        batches, batch_size=None, num_workers=workers, persistent_workers=stay, **start
    )


def expected(store: Store, epoch: int, **settings: int) -> list:
    """What the loop of `kd-student fit` sees in that epoch."""
    given = TrainSettings(seed=5, **settings)
    _, source, order = epoch_batches(given, store.plan, epoch)
    readers = [store.reader(name) for name in store.teachers]
    return list(prepared(store.dataset, source, order, readers, join_settings(readers)))


def same(one, other) -> None:
    assert torch.equal(one.packed.items, other.packed.items)
    assert torch.equal(one.items_C, other.items_C)
    assert torch.equal(one.rows_T, other.rows_T)
    assert torch.equal(one.target.q_TC, other.target.q_TC)
    assert one.target.entropy == other.target.entropy


@pytest.mark.parametrize("workers", [0, 2])
def test_every_epoch_is_that_of_a_run_of_ours_however_many_workers(store, workers) -> None:
    batches = StoreBatches(store.path, seed=5)
    assert batches.curriculum_epochs == 2  # tiny_plan has two buckets
    feed = loader(batches, workers, stay=workers > 0)
    for epoch in range(4):  # two stages, then the one round twice, in other orders
        batches.set_epoch(epoch)
        found, known = list(feed), expected(store, epoch)
        assert len(found) == len(known) > 2
        for one, other in zip(found, known, strict=True):
            same(one, other)


def test_a_store_of_factors_gives_batches_of_any_size(store) -> None:
    batches = StoreBatches(
        store.path, teachers=["table"], seed=5, curriculum=False, batch_size=50, items="all"
    )
    first, *_, last = list(loader(batches, 0))
    assert first.slots == 50
    assert first.target.q_TC.shape == (50, 24)
    total = store.plan.num_instances
    assert last.slots == total % 50 or 50


def test_a_batch_moves_as_a_whole(store) -> None:
    batch = next(iter(StoreBatches(store.path)))
    moved = batch.to("meta")
    assert moved.slots == batch.slots
    tensors = [moved.items_C, moved.columns_T, moved.rows_T, moved.target.q_TC]
    tensors += [moved.packed.items, moved.packed.tiles[0].mask]
    assert {one.device.type for one in tensors} == {"meta"}
    assert [f.name for f in fields(moved)] == [f.name for f in fields(batch)]


def test_a_batch_comes_back_from_elsewhere_or_says_why_not(store) -> None:
    """A meta tensor holds nothing that could be sent: it may not be taken for one of the processor."""
    with pytest.raises(NotImplementedError, match="meta"):
        next(iter(StoreBatches(store.path))).to("meta").to("cpu")


def test_checkpoints_of_a_teacher_are_no_teachers_where_nobody_is_named(
    store, tmp_path: Path
) -> None:
    shutil.copytree(store.path, tmp_path / "store")
    build(TableTeacher("table@1", seed=2), Store.open(tmp_path / "store"))
    assert StoreBatches(tmp_path / "store").teachers == ("other", "table")
    named = StoreBatches(tmp_path / "store", teachers=["table@1", "table"])
    assert named.teachers == ("table@1", "table")


def test_padded_histories_are_the_packed_ones(store) -> None:
    packed = next(iter(StoreBatches(store.path))).packed
    items_BL, lengths_B = packed.padded()
    rows = [row[:length] - 1 for row, length in zip(items_BL, lengths_B, strict=True)]
    assert torch.equal(torch.cat(rows), packed.items)
    assert int((items_BL > 0).sum()) == len(packed.items)  # the rest is zeros
    assert items_BL.shape[1] == int(lengths_B.max())


def test_what_crosses_to_a_worker_is_a_path(store) -> None:
    batches = StoreBatches(store.path)
    list(batches)
    assert len(pickle.dumps(batches)) < 2000


def test_refusals(store, tmp_path: Path) -> None:
    with pytest.raises(StoreError) as missing:
        StoreBatches(tmp_path / "nowhere")
    assert missing.value.code == "store.missing"
    with pytest.raises(StoreError) as scores_only:
        StoreBatches(store.path, teachers=["other"], batch_size=8)
    assert scores_only.value.code == "factors.missing"
    bare = shop(tmp_path / "bare")
    with pytest.raises(UsageError) as silent:
        StoreBatches(bare.path)
    assert silent.value.code == "fit.no_teachers"


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_reaches_the_loop_from_a_worker_too(store, tmp_path: Path, workers: int) -> None:
    shutil.copytree(store.path, tmp_path / "copy")
    shard = next((tmp_path / "copy" / "scores" / "other" / "scores.zarr").glob("c.*"))
    data = bytearray(shard.read_bytes())
    data[3] ^= 1
    shard.write_bytes(data)
    # torch cannot build our error anew on this side, and hands on its sentence
    kind = RuntimeError if workers else StoreError
    with pytest.raises(kind, match=r"scores\.zarr/c\.0\.0\.0"):
        list(loader(StoreBatches(tmp_path / "copy"), workers))
