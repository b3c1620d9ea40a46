"""Stage one: asked once, resumed without paying twice, the same bytes every time."""

from __future__ import annotations

import os
from pathlib import Path

import filelock
import numpy as np
import pytest
import typer

import pipeline.build
from cache.errors import StoreError, TeacherError, UsageError
from cache.score_writer import log_softmax
from cache.store import Store
from cache.verify import verify
from pipeline import cli_build, cli_cache
from pipeline.build import build
from pipeline.estimate import estimate
from tests.fakes import HalvesTeacher, PairTeacher, TableTeacher, tiny_store, tree

SMALL_SHARDS = 400


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several history blocks from a tiny plan."""
    monkeypatch.setattr(pipeline.build, "HISTORY_BLOCK", 16)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return tiny_store(tmp_path / "store")


@pytest.fixture
def finished(tmp_path: Path) -> dict[str, str]:
    """What the store looks like after an undisturbed build."""
    store = tiny_store(tmp_path / "undisturbed")
    build(TableTeacher(), store, shard_bytes=SMALL_SHARDS)
    return tree(store.path)


class StoppedError(Exception):
    pass


class Interrupted(TableTeacher):
    """Stops at its n-th answer of a kind."""

    def __init__(self, kind: str, at: int) -> None:
        super().__init__()
        self._stop = (kind, at)

    def _count(self, kind: str) -> None:
        if (kind, self.calls[kind]) == self._stop:
            raise StoppedError

    def encode_histories(self, dataset, users, ends):
        self._count("histories")
        return super().encode_histories(dataset, users, ends)

    def score(self, users_TD, items_CD):
        self._count("score")
        return super().score(users_TD, items_CD)


@pytest.mark.parametrize("kind", [TableTeacher, PairTeacher])
def test_every_batch_holds_what_the_teacher_says(store, kind):
    teacher = kind()
    build(teacher, store, tau=0.2, shard_bytes=SMALL_SHARDS)
    reader = store.scores("table")
    items_VD = teacher.encode_items(store.dataset)
    for index in range(len(store.plan)):
        batch = store.plan[index]
        users_TD = teacher.encode_histories(store.dataset, batch.users, batch.ends)
        asked = log_softmax(teacher.score(users_TD, items_VD[batch.items]), 0.2)
        assert np.array_equal(reader[index], asked)


def test_items_and_histories_are_encoded_once(store):
    teacher = TableTeacher()
    build(teacher, store, shard_bytes=SMALL_SHARDS)
    blocks = -(-store.plan.num_instances // 16)
    assert teacher.calls == {"items": 1, "histories": blocks, "score": len(store.plan)}


def test_an_interrupted_build_never_pays_twice(store, finished):
    blocks = -(-store.plan.num_instances // 16)
    assert blocks >= 2
    first = Interrupted("histories", 1)
    with pytest.raises(StoppedError):
        build(first, store, shard_bytes=SMALL_SHARDS)
    per_shard = 7
    second = Interrupted("score", per_shard + 2)  # in the second shard
    with pytest.raises(StoppedError):
        build(second, store, shard_bytes=SMALL_SHARDS)
    assert store.unfinished == ["table"]
    assert store.names == []
    third = TableTeacher()
    build(third, store, shard_bytes=SMALL_SHARDS)
    assert store.scores("table").layout.per_shard == per_shard
    assert first.calls["items"] + second.calls["items"] + third.calls["items"] == 1
    assert [t.calls["histories"] for t in (first, second, third)] == [1, blocks - 1, 0]
    assert third.calls["score"] == len(store.plan) - per_shard
    assert tree(store.path) == finished


def test_nothing_is_left_over(store, finished):
    build(TableTeacher(), store, shard_bytes=SMALL_SHARDS)
    assert [p.name for p in (store.path / "scores").iterdir()] == ["table"]
    assert verify(store.path) == []
    assert tree(store.path) == finished


def test_a_finished_set_is_left_as_it_is(store):
    first = build(TableTeacher(), store)
    before = tree(store.path)
    again = TableTeacher()
    assert build(again, store).digest == first.digest
    assert again.calls == {"items": 0, "histories": 0, "score": 0}
    assert tree(store.path) == before


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"tau": 0.1}, "tau 0.07 there, 0.1 asked for"),
        ({"quality": {"ndcg@10": 0.5}}, "quality"),
        ({"shard_bytes": 100}, "batches_per_shard"),
        ({"teacher": TableTeacher(seed=1)}, "teacher_digest"),
    ],
)
def test_a_finished_set_with_other_settings_is_not_touched(store, change, word):
    build(TableTeacher(), store)
    before = tree(store.path)
    change = dict(change)
    teacher = change.pop("teacher", TableTeacher())
    with pytest.raises(StoreError, match=word) as caught:
        build(teacher, store, **change)
    assert caught.value.code == "scores.exists"
    assert "--name" in str(caught.value)
    assert tree(store.path) == before


def test_unfinished_work_of_another_teacher_is_refused_by_name(store):
    with pytest.raises(StoppedError):
        build(Interrupted("score", 1), store)
    before = tree(store.path)
    other = TableTeacher(seed=1)
    with pytest.raises(StoreError) as caught:
        build(other, store)
    assert caught.value.code == "scores.foreign_work"
    for word in (".work-table", "teacher_digest", TableTeacher().digest, other.digest):
        assert word in str(caught.value)
    assert tree(store.path) == before


def test_two_names_for_one_teacher(store):
    build(TableTeacher(), store, name="warm", tau=0.2)
    build(TableTeacher(), store, name="cold", tau=0.05)
    assert store.names == ["cold", "warm"]
    assert store.scores("warm").tau == 0.2


def _spoil_journal(work: Path) -> None:
    (work / "journal.jsonl").unlink()


def _damage(pattern: str):
    def spoil(work: Path) -> None:
        for path in work.glob(pattern):
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)

    return spoil


def _litter(work: Path) -> None:
    (work / "set/scores.zarr/c.99.0.0").write_bytes(b"stray")
    (work / "set/odd/deep").mkdir(parents=True)
    (work / "set/.partial-1").write_bytes(b"debris")
    (work / ".partial-2").mkdir()
    (work / "set/manifest.json").write_bytes(b"{}")


@pytest.mark.parametrize(
    "spoil",
    [
        _spoil_journal,
        _damage("set/scores.zarr/c.*"),
        _damage("histories/*.npy"),
        _damage("items.npy"),
        _damage("journal.jsonl"),
        lambda work: [p.unlink() for p in work.glob("set/scores.zarr/c.0.*")],
        lambda work: [os.truncate(p, 10) for p in work.glob("histories/*")],
        _litter,
    ],
    ids=["journal", "shard", "histories", "items", "line", "gone", "truncated", "litter"],
)
def test_damaged_work_never_reaches_the_set(store, finished, spoil):
    with pytest.raises(StoppedError):
        build(Interrupted("score", 9), store, shard_bytes=SMALL_SHARDS)
    work = store.path / "scores" / ".work-table"
    assert (work / "set/scores.zarr/c.0.0.0").exists()
    spoil(work)
    build(TableTeacher(), store, shard_bytes=SMALL_SHARDS)
    assert tree(store.path) == finished


class Broken(TableTeacher):
    """Hands over something else than it should."""

    def __init__(self, where: str, spoil) -> None:
        super().__init__()
        self._where, self._spoil = where, spoil

    def encode_items(self, dataset):
        vectors = super().encode_items(dataset)
        return self._spoil(vectors) if self._where == "items" else vectors

    def encode_histories(self, dataset, users, ends):
        vectors = super().encode_histories(dataset, users, ends)
        late = self._where == "histories" and self.calls["histories"] == 2
        return self._spoil(vectors) if late else vectors


def _nan(vectors):
    vectors[3, 5] = np.nan
    return vectors


@pytest.mark.parametrize(
    ("where", "spoil", "words"),
    [
        ("items", _nan, "items: row 3 holds nan at 5"),
        ("items", lambda v: v[1:], r"items from row 0: float32 of shape \(8, 8\)"),
        ("items", lambda v: v.astype(np.float64), "items from row 0: float64"),
        ("histories", _nan, "histories: row 19 holds nan at 5"),
        ("histories", lambda v: v[:, 0], r"histories from row 16: float32 of shape \(\d+,\)"),
    ],
)
def test_a_broken_teacher_is_told_by_row(store, where, spoil, words):
    with pytest.raises(TeacherError, match=rf"teacher 'table', {words}"):
        build(Broken(where, spoil), store)
    assert store.names == []


def test_a_second_writer_is_refused(store):
    lock = filelock.FileLock(store.path / "scores" / ".lock-table")
    with lock, pytest.raises(StoreError, match="another process is building it") as caught:
        build(TableTeacher(), store)
    assert caught.value.code == "store.busy"
    build(TableTeacher(), store)
    assert store.names == ["table"]


def test_a_teacher_that_says_how_far_it_is_is_heard_within_a_block(store, finished):
    heard = []
    build(HalvesTeacher(), store, shard_bytes=SMALL_SHARDS, progress=lambda *a: heard.append(a))
    total = store.plan.num_instances
    expected = []
    for first in range(0, total, 16):
        count = min(16, total - first)
        expected += [(first + count // 2), first + count, first + count]  # half, all, kept
    assert [done for stage, done, _ in heard if stage == "histories"] == expected
    assert tree(store.path) == finished


def test_progress_reaches_its_total_and_counts_earlier_work(store):
    heard: list[tuple[str, int, int]] = []
    with pytest.raises(StoppedError):
        build(Interrupted("score", 9), store, shard_bytes=SMALL_SHARDS)
    build(TableTeacher(), store, shard_bytes=SMALL_SHARDS, progress=lambda *a: heard.append(a))
    scores = [done for stage, done, _ in heard if stage == "scores"]
    assert scores == list(range(7, len(store.plan) + 1))  # 7 batches a shard, one shard was done
    for stage in ("items", "histories", "scores"):
        assert [(d, t) for s, d, t in heard if s == stage][-1][0] == [
            t for s, _, t in heard if s == stage
        ][-1]


def test_the_estimate_is_what_it_takes(store):
    build(TableTeacher(), store)
    shards = store.folder("table").glob("scores.zarr/c.*")
    assert estimate(store.plan) == sum(path.stat().st_size for path in shards)


def test_a_plan_without_batches_is_refused(tmp_path):
    empty = tiny_store(tmp_path / "empty", users=0)
    with pytest.raises(StoreError, match="no batches") as caught:
        build(TableTeacher(), empty)
    assert caught.value.code == "scores.empty_plan"
    assert tree(empty.path / "scores") == {}


def test_a_codec_of_scores_is_refused_where_none_are_kept(store):
    """By the build and, before a teacher is asked about anything, by its dry run."""
    teacher = TableTeacher()
    for ask in (
        lambda: build(teacher, store, keep="factors", codec="u8"),
        lambda: cli_build._tell_cost(store, teacher, "factors", "u8"),
    ):
        with pytest.raises(UsageError, match="--codec u8 is for scores") as caught:
            ask()
        assert caught.value.code == "build.unused_codec"
    assert sum(teacher.calls.values()) == 0


@pytest.mark.parametrize("tau", ["1e308", "inf", "1e-9"])
def test_a_temperature_out_of_range_is_refused(store, tau):
    line = ["build", "--teacher", "unisrec", "--cache", str(store.path), "--tau", tau]
    with pytest.raises(typer.TyperException) as caught:
        cli_cache.app(line, standalone_mode=False)
    assert caught.value.format_message().startswith("Invalid value for '--tau'")
