"""Damage of every kind, to every file, is found by name: by the audit, and by whoever reads."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import cache.manifest
from cache.errors import CkdError, DiskError, StoreError
from cache.store import Store
from cache.vectors import write_vectors
from cache.verify import compare, verify
from pipeline.build import build, scorer
from tests.fakes import PairTeacher, TableTeacher, tiny_store

SMALL_SHARDS = 400


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tiny_store(tmp_path_factory.mktemp("sound") / "store")
    build(TableTeacher("one"), store, shard_bytes=SMALL_SHARDS, quality={"ndcg@10": 0.05})
    build(TableTeacher("two", seed=1), store, shard_bytes=SMALL_SHARDS)
    write_vectors(store.dataset, "text", np.ones((9, 3), np.float32), {"model": "none"})
    return store.path


@pytest.fixture
def path(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "store")
    return tmp_path / "store"


def files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file())


def read_all(path: Path) -> None:
    """What a student does with a store."""
    store = Store.open(path)
    for name in ("one", "two"):
        reader = store.scores(name)
        for index in range(len(reader)):
            reader[index]


def told(findings: list[CkdError]) -> str:
    return "\n".join(map(str, findings))


def test_a_sound_store_has_no_findings(path):
    assert verify(path) == []
    read_all(path)


def test_an_unfinished_build_is_no_damage(path):
    (path / "scores" / ".work-three").mkdir()
    (path / "scores" / ".work-three" / "journal.jsonl").write_text("{}\n")
    assert verify(path) == []


def test_all_damage_is_listed_not_only_the_first(path):
    (path / "scores/one/scores.zarr/c.0.0.0").unlink()
    (path / "scores/two/scores.zarr/zarr.json").write_bytes(b"{}")
    (path / "extra").write_text("x")
    assert len(verify(path)) == 3


def test_a_file_that_the_disk_cannot_read_is_told_and_the_others_are_looked_at(path, monkeypatch):
    bad = path / "scores" / "one" / "scores.zarr" / "c.0.0.0"
    after = path / "scores" / "two" / "scores.zarr" / "c.0.0.0"
    after.write_bytes(after.read_bytes()[::-1])
    real = cache.manifest.sha256_file

    def failing(file, *, progress=None):
        if file == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(file, progress=progress)

    monkeypatch.setattr(cache.manifest, "sha256_file", failing)
    one, two = verify(path)
    assert isinstance(one, DiskError)
    assert str(one).startswith(f"{bad}: Input/output error")
    assert str(two).startswith(f"{after}: its bytes have changed")


def test_two_swapped_chunks_are_refused(path):
    """Each keeps its own valid crc32c, so only the digest of the shard can tell."""
    file = path / "scores/one/scores.zarr/c.0.0.0"
    stride = Store.open(path).scores("one").layout.stored_bytes
    data = file.read_bytes()
    file.write_bytes(data[stride : 2 * stride] + data[:stride] + data[2 * stride :])
    assert str(file) in told(verify(path))
    with pytest.raises(StoreError, match="bytes have changed") as caught:
        Store.open(path).scores("one")[5]
    assert str(file) in str(caught.value)


def test_a_damaged_batch_is_named(path):
    layout = Store.open(path).scores("one").layout
    file = path / "scores/one" / layout.shard_path(1)
    data = bytearray(file.read_bytes())
    data[2 * layout.stored_bytes + 5] ^= 4
    file.write_bytes(data)
    with pytest.raises(StoreError, match=rf"batch {layout.per_shard + 2} is damaged"):
        Store.open(path).scores("one")[layout.per_shard]


def test_scores_of_another_plan_are_told(path, tmp_path):
    other = tiny_store(tmp_path / "other", rounds=3)
    build(TableTeacher("three"), other)
    shutil.copytree(other.folder("three"), path / "scores" / "three")
    assert [finding.code for finding in verify(path)] == ["scores.foreign"]


def test_vectors_of_another_dataset_are_told(path, tmp_path):
    other = tiny_store(tmp_path / "other", users=20)
    write_vectors(other.dataset, "odd", np.ones((9, 3), np.float32), {})
    shutil.copytree(other.path / "dataset/vectors/odd", path / "dataset/vectors/odd")
    assert [finding.code for finding in verify(path)] == ["vectors.foreign"]


def test_progress_ends_at_all_bytes(path):
    heard: list[tuple[int, int]] = []
    verify(path, progress=lambda done, total: heard.append((done, total)))
    size = sum(f.stat().st_size for f in files(path) if f.name != "manifest.json")
    assert heard[-1] == (size, size)
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)


def test_no_store_there(tmp_path):
    assert [finding.code for finding in verify(tmp_path / "nowhere")] == ["store.missing"]


@pytest.mark.parametrize("kind", [TableTeacher, PairTeacher])
def test_the_same_teacher_agrees_with_its_scores(path, kind):
    store = Store.open(path)
    build(kind("again", seed=3), store)
    assert compare(store, "again", scorer(kind("again", seed=3), store.dataset), sample=99) == []


def test_another_teacher_is_told_by_batch(path):
    store = Store.open(path)
    findings = compare(store, "one", scorer(TableTeacher(seed=7), store.dataset), sample=3)
    assert len(findings) == 3
    assert all("batch " in str(finding) for finding in findings)
    assert {finding.code for finding in findings} == {"scores.unlike_teacher"}


def test_a_teacher_of_another_shape_is_told(path):
    store = Store.open(path)
    (finding,) = compare(store, "one", lambda batch: np.zeros((1, 1), np.float32), sample=1)
    assert "has shape (1, 1)" in str(finding)
