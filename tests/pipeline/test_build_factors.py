"""Stage one keeping factors: encoded once, resumed without paying twice, never touching what is sealed."""

from __future__ import annotations

import numpy as np
import pytest

import pipeline.build
from cache.errors import StoreError, TeacherError, UsageError
from cache.store import Store
from cache.verify import verify
from pipeline.build import build
from pipeline.estimate import estimate_factors
from tests.fakes import PairTeacher, StoppedError, TableTeacher, stopping_at, tiny_store, tree

SMALL_SHARDS = 400
BLOCK = 8


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four history blocks from a tiny plan of 31 instances, two of them in a file of factors."""
    monkeypatch.setattr(pipeline.build, "HISTORY_BLOCK", BLOCK)
    monkeypatch.setattr(pipeline.build, "FACTOR_BLOCKS", 2)


@pytest.fixture
def store(tmp_path) -> Store:
    return tiny_store(tmp_path / "store")


def kept(store: Store, **how) -> dict[str, str]:
    """What lies in scores/ and factors/ after a build."""
    build(TableTeacher(), store, shard_bytes=SMALL_SHARDS, **how)
    return {
        f"{part}/{path}": digest
        for part in ("scores", "factors")
        if (store.path / part).is_dir()
        for path, digest in tree(store.path / part).items()
    }


def test_both_are_the_same_bytes_as_each_alone(tmp_path):
    scores, factors, both = (
        kept(tiny_store(tmp_path / keep), keep=keep) for keep in ("scores", "factors", "both")
    )
    assert scores.keys() == {f"scores/{p}" for p in tree(tmp_path / "scores/scores")}
    assert {path for path in factors if path.startswith("scores")} == set()
    assert both == scores | factors
    assert sorted(path for path in both if path.endswith(".npy")) == [
        "factors/table/histories/0000000.npy",
        "factors/table/histories/0000001.npy",
        "factors/table/items/0000000.npy",
    ]
    for keep in ("scores", "factors", "both"):
        assert verify(tmp_path / keep) == []


def test_vectors_are_what_the_teacher_says_rounded(store):
    teacher = TableTeacher()
    build(teacher, store, keep="factors", tau=0.2, quality={"ndcg@10": 0.5})
    reader = store.factors("table")
    users, ends = store.plan.instance_users, store.plan.instance_ends
    said = teacher.encode_histories(store.dataset, users, ends).astype(np.float16)
    assert np.array_equal(reader.history_vectors(np.arange(len(users))), said)
    assert np.array_equal(reader.item_vectors(), teacher.encode_items(store.dataset).astype("<f2"))
    assert (reader.tau, reader.quality) == (0.2, 0.5)


@pytest.mark.parametrize("keep", ["factors", "both"])
def test_items_and_histories_are_encoded_once(store, keep):
    teacher = TableTeacher()
    build(teacher, store, keep=keep)
    assert (teacher.calls["items"], teacher.calls["histories"]) == (1, 4)
    again = TableTeacher()
    build(again, store, keep=keep)
    assert again.calls == {"items": 0, "histories": 0, "score": 0}


def test_an_interrupted_build_of_both_never_pays_twice(store, tmp_path):
    stops = [stopping_at(TableTeacher(), "histories", 2), stopping_at(TableTeacher(), "score", 6)]
    for teacher in stops:
        with pytest.raises(StoppedError):
            build(teacher, store, keep="both", shard_bytes=SMALL_SHARDS)
    assert store.factor_names == ["table"]  # sealed first
    assert store.names == []
    assert store.unfinished == ["table"]
    last = TableTeacher()
    build(last, store, keep="both", shard_bytes=SMALL_SHARDS)
    teachers = [*stops, last]
    assert [t.calls["items"] for t in teachers] == [1, 0, 0]
    assert [t.calls["histories"] for t in teachers] == [2, 2, 0]
    assert store.unfinished == []
    twin = tiny_store(tmp_path / "twin")
    build(TableTeacher(), twin, keep="both", shard_bytes=SMALL_SHARDS)
    assert tree(store.path) == tree(twin.path)


@pytest.mark.parametrize(("first", "then"), [("scores", "factors"), ("factors", "scores")])
@pytest.mark.parametrize("last", ["alone", "both"])
def test_what_is_sealed_is_not_touched_by_what_is_added(store, tmp_path, first, then, last):
    before = kept(store, keep=first)
    after = kept(store, keep=then if last == "alone" else "both")
    assert before.items() < after.items()
    assert after == kept(tiny_store(tmp_path / "twin"), keep="both")


def test_scores_begun_alone_lend_their_vectors_to_both(store):
    first = stopping_at(TableTeacher(), "score", 3)
    with pytest.raises(StoppedError):
        build(first, store)
    second = TableTeacher()
    build(second, store, keep="both")
    assert (first.calls["histories"], second.calls["histories"]) == (4, 0)


def test_a_teacher_of_pairs_has_no_factors(store):
    before = tree(store.path)
    for keep in ("factors", "both"):
        with pytest.raises(UsageError, match="no products of vectors") as caught:
            build(PairTeacher(), store, keep=keep)
        assert caught.value.code == "teacher.no_factors"
    assert tree(store.path) == before


class Scaled(TableTeacher):
    """Says of itself that it factorises, but its score is more than the product."""

    def score(self, users_TD, items_CD):
        return 3 * super().score(users_TD, items_CD)


def test_a_teacher_that_says_it_factorises_is_not_believed(store):
    with pytest.raises(TeacherError, match="the product of its vectors") as caught:
        build(Scaled(), store, keep="both")
    assert caught.value.code == "teacher.not_a_product"
    assert store.teachers == []
    build(Scaled(), store)  # its scores alone are fine
    assert store.names == ["table"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"tau": 0.1}, "tau 0.07 there, 0.1 asked for"),
        ({"quality": {"ndcg@10": 0.5}}, "quality"),
        ({"teacher": TableTeacher(seed=1)}, "teacher_digest"),
    ],
)
@pytest.mark.parametrize(("first", "then"), [("scores", "factors"), ("factors", "scores"), ("factors", "factors")])  # fmt: skip
def test_one_name_has_scores_and_factors_of_one_teacher(store, change, word, first, then):
    build(TableTeacher(), store, keep=first)
    before = tree(store.path)
    change = dict(change)
    teacher = change.pop("teacher", TableTeacher())
    for keep in (then, "both"):
        with pytest.raises(StoreError, match=word) as caught:
            build(teacher, store, keep=keep, **change)
        assert caught.value.code == "scores.exists"
        assert "--name" in str(caught.value)
    assert tree(store.path) == before
    build(teacher, store, keep=then, name="other", **change)
    assert store.teachers == ["other", "table"]


def test_progress_reaches_its_totals(store):
    heard: list[tuple[str, int, int]] = []
    build(TableTeacher(), store, keep="both", progress=lambda *told: heard.append(told))
    assert list(dict.fromkeys(stage for stage, *_ in heard)) == [
        "items",
        "histories",
        "factors",
        "scores",
    ]
    for stage in ("items", "histories", "factors", "scores"):
        _, done, total = [one for one in heard if one[0] == stage][-1]
        assert done == total
    assert [done for stage, done, _ in heard if stage == "factors"] == [0, 1, 2, 3]


def test_the_estimate_is_what_factors_take(store):
    build(TableTeacher(), store, keep="factors")
    files = (store.path / "factors").rglob("*.npy")
    told = estimate_factors(store.plan, items=store.dataset.num_items, width=8)
    assert told == sum(path.stat().st_size for path in files)


def test_a_plan_without_batches_is_refused(tmp_path):
    empty = tiny_store(tmp_path / "empty", users=0)
    with pytest.raises(StoreError, match="no batches"):
        build(TableTeacher(), empty, keep="factors")
    assert not (empty.path / "factors").exists()
