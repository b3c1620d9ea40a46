"""A store extended: old scores bit for bit, new ones as a whole build gives them, and only what is new is asked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.build
from cache.dataset import open_dataset
from cache.errors import StoreError, UsageError
from cache.store import Store
from cache.verify import ATOL, compare, verify
from pipeline import cli_cache
from pipeline.build import build, scorer
from pipeline.extend import check_teacher, extend, open_or_create
from pipeline.grow import join
from pipeline.grown import grow, set_cost
from tests.fakes import PairTeacher, StoppedError, TableTeacher, stopping_at, tree
from tests.later import Counting, dataset_of, later_of, log_of, store_of

SMALL_SHARDS = 400
KILLER = Path(__file__).with_name("kill_extend.py")
BLOCK = 8


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks and files from a tiny plan; power does not fail here, so nobody waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(pipeline.build, "HISTORY_BLOCK", BLOCK)
    monkeypatch.setattr(pipeline.build, "FACTOR_BLOCKS", 2)


def begun(folder: Path, seed: int = 0, teacher=None, keep="both", **how) -> Store:
    """A store with one teacher's sets."""
    store = store_of(folder / "old", log_of(seed), **how)
    build(teacher or TableTeacher(), store, keep=keep, tau=0.2, quality={"ndcg@10": 0.5})
    return store


def extended(folder: Path, old: Store, teacher, seed: int = 1, name="out", log=None) -> Store:
    """That store over a later state of its log, its sets carried on."""
    path = folder / "new"
    if not path.exists():
        dataset_of(path, log or later_of(log_of(seed - 1), seed))
    later = open_dataset(path)
    store = open_or_create(folder / name, old, grow(old, join(old.dataset, later)))
    extend(teacher, old, store, "table", shard_bytes=SMALL_SHARDS)
    return store


def new_instances(old: Store, store: Store) -> set[tuple[int, int]]:
    first = old.plan.num_instances
    pairs = zip(store.plan.instance_users.tolist(), store.plan.instance_ends.tolist(), strict=True)
    return set(list(pairs)[first:])


@settings(max_examples=12)
@given(
    seed=st.integers(0, 10**6),
    batch_size=st.integers(3, 7),
    keep=st.sampled_from(["scores", "factors", "both"]),
)
def test_old_values_are_the_same_bits_and_new_ones_those_of_a_whole_build(
    tmp_path_factory, seed, batch_size, keep
):
    folder = tmp_path_factory.mktemp("extended")
    old = begun(folder, seed, keep=keep, batch_size=batch_size)
    store = extended(folder, old, Counting(), seed + 1)
    assert (store.names, store.factor_names) == (old.names, old.factor_names)
    whole = Store.create(folder / "whole", store.dataset, store.plan)
    build(TableTeacher(), whole, keep=keep, tau=0.2, quality={"ndcg@10": 0.5})
    for name, kinds in (("names", "scores"), ("factor_names", "factors")):
        if not getattr(store, name):
            continue
        ours, before, again = (getattr(one, kinds)("table") for one in (store, old, whole))
        assert (ours.tau, ours.quality) == (before.tau, before.quality) == (0.2, 0.5)
        for index in range(len(store.plan)):
            if index < len(old.plan) and kinds == "scores":
                assert ours[index].tobytes() == before[index].tobytes()
            assert np.abs(ours[index].astype(float) - again[index].astype(float)).max() <= ATOL
        if kinds == "factors":
            n, v = old.plan.num_instances, old.dataset.num_items
            assert ours.history_vectors(np.arange(n)).tobytes() == before.history_vectors(np.arange(n)).tobytes()  # fmt: skip
            assert ours.item_vectors()[:v].tobytes() == before.item_vectors().tobytes()
            assert len(ours.item_vectors()) == store.dataset.num_items
    assert verify(store.path) == []
    assert compare(store, "table", scorer(TableTeacher(), store.dataset), sample=99) == []


def test_a_wider_batch_lays_the_old_chunks_out_anew(tmp_path):
    """Old batches have two targets at most (the catalogue is two items); a new one has four."""
    before = {f"u{k}": ["a", "b", "a", "b", "a"] for k in range(4)}
    after = {user: [*bought, "c", "d", "e", "f", "a"] for user, bought in before.items()}
    old = store_of(tmp_path / "old", before, rounds=1)
    build(TableTeacher(), old)
    store = extended(tmp_path, old, TableTeacher(), log=after)
    assert (old.plan.num_columns, store.plan.num_columns) == (2, 4)
    ours, theirs = store.scores("table"), old.scores("table")
    assert (ours.layout.columns, theirs.layout.columns) == (4, 2)
    for index in range(len(old.plan)):
        assert ours[index].tobytes() == theirs[index].tobytes()


def test_scores_alone_ask_for_new_histories_and_for_the_items_of_new_batches(tmp_path):
    old = begun(tmp_path, keep="scores")
    teacher = Counting()
    store = extended(tmp_path, old, teacher)
    assert set(teacher.asked) == new_instances(old, store)
    assert len(teacher.asked) == len(set(teacher.asked))
    targets = store.plan.targets[old.plan.num_instances :]
    assert teacher.rows == sorted(set(targets.tolist()))
    assert min(teacher.rows) < old.dataset.num_items <= max(teacher.rows)


def test_factors_lend_the_old_items_so_that_new_ones_alone_are_asked_for(tmp_path):
    old = begun(tmp_path, keep="both")
    teacher = Counting()
    store = extended(tmp_path, old, teacher)
    assert set(teacher.asked) == new_instances(old, store)
    assert len(teacher.asked) == len(set(teacher.asked))
    assert teacher.rows == [*range(old.dataset.num_items, store.dataset.num_items)] != []
    assert store.scores("table").manifest.settings["extends"] == old.scores("table").digest
    assert store.factors("table").manifest.settings["extends"] == old.factors("table").digest


def test_a_teacher_that_only_knows_all_items_at_once_is_asked_for_all(tmp_path):
    old = begun(tmp_path, keep="scores")
    teacher = TableTeacher()
    extended(tmp_path, old, teacher)
    assert teacher.calls["items"] == 1


@pytest.mark.parametrize("keep", ["scores", "both"])
def test_what_is_estimated_is_what_is_asked_and_written(tmp_path, keep):
    old = begun(tmp_path, keep=keep)
    later = dataset_of(tmp_path / "new", later_of(log_of(0), 1))
    grown = grow(old, join(old.dataset, later))
    told = set_cost(old, grown, "table", Counting())
    teacher = Counting()
    store = open_or_create(tmp_path / "out", old, grown)
    extend(teacher, old, store, "table")
    assert (told.histories, told.items) == (len(teacher.asked), len(teacher.rows))
    assert told.again is (keep == "scores")
    files = [p for p in store.path.rglob("*") if p.suffix == ".npy" or p.name.startswith("c.")]
    assert told.bytes == sum(p.stat().st_size for p in files)
    assert (grown.new_instances, grown.new_batches) == (
        store.plan.num_instances - old.plan.num_instances,
        len(store.plan) - len(old.plan),
    )


def test_a_teacher_of_pairs_is_extended_batch_by_batch(tmp_path):
    old = begun(tmp_path, teacher=PairTeacher(), keep="scores")
    teacher = PairTeacher()
    store = extended(tmp_path, old, teacher)
    fresh = len(store.plan) - len(old.plan)
    assert teacher.calls == {"items": 1, "histories": fresh, "score": fresh}
    assert compare(store, "table", scorer(PairTeacher(), store.dataset), sample=99) == []


def test_new_items_without_a_new_instance_still_get_their_factors(tmp_path):
    """u has one more item, the catalogue's third: his validation item is now what was his test item. No new instance."""
    log = {"u": ["a", "b", "a", "b"], "v": ["a", "b", "a", "b"]}
    old = store_of(tmp_path / "old", log)
    build(TableTeacher(), old, keep="both")
    store = extended(tmp_path, old, Counting(), log={**log, "w": ["c"]})
    assert len(store.plan) == len(old.plan)
    assert store.factors("table").item_vectors().shape == (3, 8)
    assert verify(store.path) == []


def test_an_interrupted_extension_never_pays_twice_and_ends_in_the_same_bytes(tmp_path):
    old = begun(tmp_path)
    stops = [
        stopping_at(Counting(), "histories", 1),
        stopping_at(Counting(), "score", 2),
        stopping_at(Counting(), "score", 11),
    ]
    for teacher in stops:
        with pytest.raises(StoppedError):
            extended(tmp_path, old, teacher)
    last = Counting()
    store = extended(tmp_path, old, last)
    asked = [pair for teacher in (*stops, last) for pair in teacher.asked]
    assert sorted(asked) == sorted(new_instances(old, store))
    rows = [row for teacher in (*stops, last) for row in teacher.rows]
    assert rows == [*range(old.dataset.num_items, store.dataset.num_items)]
    twin = extended(tmp_path, old, Counting(), name="twin")
    assert tree(twin.path) == tree(store.path)
    before = tree(store.path)
    again = Counting()
    extended(tmp_path, old, again)
    assert (again.asked, again.rows, tree(store.path)) == ([], [], before)


def test_the_old_store_is_only_read(tmp_path):
    old = begun(tmp_path)
    before = tree(old.path)
    extended(tmp_path, old, TableTeacher())
    assert tree(old.path) == before


def test_an_extension_can_be_extended(tmp_path):
    log = log_of(0)
    old = begun(tmp_path)
    middle = later_of(log, 1)
    first = extended(tmp_path, old, Counting(), log=middle)
    last = later_of(middle, 2, users=7, items=6)
    shutil.rmtree(tmp_path / "new")
    second = extended(tmp_path, first, Counting(), log=last, name="second")
    assert second.dataset.rows_of(old.dataset.digest) == old.dataset.num_items
    for index in range(len(old.plan)):
        assert second.scores("table")[index].tobytes() == old.scores("table")[index].tobytes()
    assert compare(second, "table", scorer(TableTeacher(), second.dataset), sample=99) == []


def test_another_teacher_is_refused_with_both_digests(tmp_path):
    old = begun(tmp_path)
    other = TableTeacher(seed=1)
    with pytest.raises(StoreError, match=other.digest) as caught:
        extended(tmp_path, old, other)
    assert caught.value.code == "extend.other_teacher"
    assert TableTeacher().digest in str(caught.value)


def test_a_teacher_of_ids_cannot_speak_of_new_items_but_of_new_users(tmp_path):
    class OfIds(TableTeacher):
        inductive = False

    log = log_of(0)
    old = begun(tmp_path)
    with pytest.raises(UsageError, match="nothing of the 4 new ones") as caught:
        extended(tmp_path, old, OfIds(), log=later_of(log, 1))
    assert caught.value.code == "extend.transductive"
    shutil.rmtree(tmp_path / "new")
    shutil.rmtree(tmp_path / "out")
    known = sorted({item for bought in log.values() for item in bought})
    store = extended(tmp_path, old, OfIds(), log={**log, "v": known})
    assert compare(store, "table", scorer(TableTeacher(), store.dataset), sample=99) == []


def test_a_pooling_without_a_model_to_pool_is_refused(tmp_path):
    words = ["extend", "cache/x", "--data", "data/x", "--out", "cache/y", "--pooling", "cls"]
    with pytest.raises(UsageError, match="--text names") as caught:
        cli_cache.app(words, standalone_mode=False)
    assert caught.value.code == "extend.unused_pooling"


def test_a_set_in_bytes_is_refused_since_its_values_would_be_rounded_again(tmp_path):
    old = begun(tmp_path, 0)
    build(TableTeacher(), old, name="bytes", codec="u8")
    with pytest.raises(UsageError, match=r"scores/bytes: is kept with codec u8") as caught:
        check_teacher(Store.open(old.path), "bytes", TableTeacher(), 0)
    assert caught.value.code == "extend.codec"


def test_a_store_of_another_extension_is_not_filled(tmp_path):
    old = begun(tmp_path)
    extended(tmp_path, old, TableTeacher())
    shutil.rmtree(tmp_path / "new")
    with pytest.raises(StoreError, match="is there already") as caught:
        extended(tmp_path, old, TableTeacher(), log=later_of(log_of(0), 7))
    assert caught.value.code == "store.exists"
    stranger = store_of(tmp_path / "stranger", log_of(5))
    with pytest.raises(StoreError, match="does not go on from") as caught:
        extend(TableTeacher(), old, stranger, "table")
    assert caught.value.code == "extend.foreign"


@pytest.mark.parametrize("kind", ["scores", "factors"])
def test_damage_of_the_old_set_is_told_and_not_copied(tmp_path, kind):
    old = begun(tmp_path, keep="both")
    path = next((old.path / kind).rglob("c.0.0.0" if kind == "scores" else "0000000.npy"))
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="bytes have changed") as caught:
        extended(tmp_path, old, TableTeacher())
    assert caught.value.code == "store.wrong_digest"
    assert not (tmp_path / "out" / kind / "table").exists()


def test_killed_anywhere_the_same_call_ends_in_the_same_bytes(tmp_path):
    done = subprocess.run(
        [sys.executable, str(KILLER), str(tmp_path), "17"],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    told = json.loads(done.stdout)
    assert told["different"] == []
    assert told["died"] == told["points"] >= 8
