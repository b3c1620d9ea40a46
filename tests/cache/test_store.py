"""A store: made whole or not at all, parts that know their parents, teachers that do not touch each other."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from cache.describe import describe
from cache.digest import canonical_json
from cache.errors import DiskError, StoreError
from cache.plan import open_plan
from cache.store import Store, copy_score_set
from pipeline.build import build
from tests.fakes import TableTeacher, tiny_dataset, tiny_plan, tiny_store, tree


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return tiny_store(tmp_path / "store")


def test_a_plan_is_copied_in_or_written_in_place_with_the_same_bytes(tmp_path):
    dataset = tiny_dataset(tmp_path / "data")
    plan = tiny_plan(tmp_path / "plan", dataset)
    copied = Store.create(tmp_path / "copied", dataset, plan)
    written = Store.create(tmp_path / "written", dataset, tiny_plan)
    assert tree(copied.path) == tree(written.path)
    assert copied.dataset.digest == dataset.digest
    assert copied.plan.digest == plan.digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copied", "data", "plan", "written"]


def test_item_vectors_stay_behind(tmp_path):
    dataset = tiny_dataset(tmp_path / "data")
    (dataset.path / "vectors" / "text").mkdir(parents=True)
    store = Store.create(tmp_path / "store", dataset, tiny_plan)
    assert not (store.path / "dataset" / "vectors").exists()


def test_a_store_is_never_overwritten(store):
    before = tree(store.path)
    with pytest.raises(StoreError, match="already there") as caught:
        Store.create(store.path, store.dataset, tiny_plan)
    assert caught.value.code == "store.exists"
    assert tree(store.path) == before


def test_a_failing_planner_leaves_nothing(tmp_path):
    dataset = tiny_dataset(tmp_path / "data")

    def planner(path, inside):
        raise StoreError("no plan today", code="test")

    with pytest.raises(StoreError, match="no plan today"):
        Store.create(tmp_path / "store", dataset, planner)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_a_plan_of_another_dataset_is_refused_with_both_digests(tmp_path):
    mine, other = tiny_dataset(tmp_path / "mine"), tiny_dataset(tmp_path / "other", seed=1)
    plan = tiny_plan(tmp_path / "plan", other)
    with pytest.raises(StoreError) as caught:
        Store.create(tmp_path / "store", mine, plan)
    assert caught.value.code == "plan.foreign"
    assert mine.digest[:19] in str(caught.value)
    assert other.digest[:19] in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_a_swapped_dataset_is_refused_with_both_digests(store, tmp_path):
    other = tiny_dataset(tmp_path / "other", seed=1)
    shutil.rmtree(store.path / "dataset")
    shutil.copytree(other.path, store.path / "dataset")
    with pytest.raises(StoreError) as caught:
        Store.open(store.path)
    assert caught.value.code == "store.lineage"
    for words in (store.dataset.digest, other.digest, "kd-cache plan"):
        assert words in str(caught.value)


@pytest.mark.parametrize("different", ["plan", "dataset"])
def test_scores_over_another_plan_are_refused_with_both_digests(store, tmp_path, different):
    build(TableTeacher(), store)
    if different == "plan":
        plan = tiny_plan(tmp_path / "plan", store.dataset, seed=5)
    else:
        plan = tiny_plan(tmp_path / "plan", tiny_dataset(tmp_path / "other", seed=1))
    other = Store.create(
        tmp_path / "elsewhere",
        store.dataset if different == "plan" else tiny_dataset(tmp_path / "again", seed=1),
        plan,
    )
    shutil.copytree(store.folder("table"), other.folder("table"))
    with pytest.raises(StoreError) as caught:
        other.scores("table")
    assert caught.value.code == "scores.foreign"
    ours, theirs = (
        (store.plan.digest, other.plan.digest)
        if different == "plan"
        else (store.dataset.digest, other.dataset.digest)
    )
    for words in (ours, theirs, "kd-cache build --teacher table"):
        assert words in str(caught.value)


def test_a_missing_teacher_is_told_with_those_that_are_there(store):
    build(TableTeacher("unisrec"), store)
    with pytest.raises(StoreError, match=r"no scores of 'recformer' \(there: unisrec\)"):
        store.scores("recformer")


def test_no_store_there(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(StoreError) as caught:
            Store.open(path)
        assert caught.value.code == "store.missing"


def test_another_teacher_adds_a_folder_and_touches_nothing_else(store):
    build(TableTeacher("one"), store)
    before = tree(store.path)
    build(TableTeacher("two", seed=1), store)
    after = tree(store.path)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[1] for name in after.keys() - before.keys()} == {"two"}


def test_nothing_inside_tells_when_or_where(store):
    build(TableTeacher(), store)
    assert store.log.parent == store.path.parent
    fact = json.loads(store.log.read_text())
    for path in store.path.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            for secret in (str(store.path), str(fact["host"]), fact["utc"][:10]):
                assert secret.encode() not in data


def test_describe_counts_what_is_there(store):
    build(TableTeacher("one"), store, quality={"ndcg@10": 0.05, "recall@10": 0.1})
    (store.path / "scores" / ".work-two").mkdir()
    told = describe(store)
    assert told.dataset.counts["users"] == 12
    assert told.plan.digest == store.plan.digest
    assert told.unfinished == ("two",)
    (one,) = told.score_sets
    assert (one.name, one.tau, one.quality["recall@10"]) == ("one", 0.07, 0.1)
    files = [p for p in store.folder("one").rglob("*") if p.is_file() and p.suffix != ".json"]
    zarr_json = store.folder("one") / "scores.zarr" / "zarr.json"
    assert one.bytes == sum(p.stat().st_size for p in [*files, zarr_json])


def test_a_score_set_moves_between_stores_of_one_plan(store, tmp_path):
    build(TableTeacher(), store)
    twin = Store.create(tmp_path / "twin", store.dataset, store.plan)
    copy_score_set(store, "table", twin)
    assert tree(twin.path) == tree(store.path)
    with pytest.raises(StoreError, match="already there"):
        copy_score_set(store, "table", twin)


def test_a_score_set_does_not_move_to_another_plan(store, tmp_path):
    build(TableTeacher(), store)
    other = Store.create(
        tmp_path / "other", store.dataset, tiny_plan(tmp_path / "p", store.dataset, seed=3)
    )
    with pytest.raises(StoreError) as caught:
        copy_score_set(store, "table", other)
    assert store.plan.digest in str(caught.value)
    assert other.plan.digest in str(caught.value)
    assert other.names == []


def _set(manifest: dict, key: str, value: object) -> None:
    *where, last = key.split(".")
    for name in where:
        manifest = manifest[name]
    manifest[last] = value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("settings.tau", 0.1),
        ("settings.tau", -1),
        ("settings.tau", "warm"),
        ("settings.quality", {"ndcg@10": 0.9}),
        ("settings.quality", [1]),
        ("settings.quality", {"ndcg@10": True}),
        ("settings.batches_per_shard", 0),
        ("settings.batches_per_shard", 1),
        ("settings.batches_per_shard", 10**9),
        ("settings.dtype", "float32"),
        ("settings.score", "raw"),
        ("settings.codec", "zstd"),
        ("settings.teacher", 5),
        ("counts.batches", 1),
        ("counts.slots", 10**12),
    ],
)
def test_an_edited_manifest_is_refused(store, key, value):
    """Even one that is canonical and whose files are all right: zarr.json says the same again."""
    build(TableTeacher(), store)
    path = store.folder("table") / "manifest.json"
    manifest = json.loads(path.read_text())
    _set(manifest, key, value)
    path.write_bytes(canonical_json(manifest) + b"\n")
    with pytest.raises(StoreError, match=r"manifest\.json|scores/table"):
        store.scores("table")


def test_opening_reads_the_plan_through_its_parent(store):
    assert open_plan(store.path / "plan", store.dataset).digest == store.plan.digest


def test_a_copy_that_finds_no_room_names_where_it_was_to_be(tmp_path, monkeypatch):
    """Python names the file that it read, which lies on another disk."""
    store = tiny_store(tmp_path / "store")

    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(DiskError) as caught:
        Store.create(tmp_path / "copy", store.dataset, store.plan)
    assert str(caught.value).startswith(f"{tmp_path / 'copy'}: No space left on device")
