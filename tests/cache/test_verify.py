"""Damage of every kind, to every file, is found by name: by the audit, and by whoever reads."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from cache.errors import CkdError, StoreError
from cache.store import Store
from cache.vectors import write_vectors
from cache.verify import compare, verify
from pipeline.build import build, scorer
from tests.fakes import PairTeacher, TableTeacher, tiny_store

SMALL_SHARDS = 400
FLIPS = 24  # per file, beside the first and the last bit


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


def test_every_flipped_bit_is_found(path):
    rng = np.random.default_rng(0)
    tried = 0
    for file in files(path):
        if file.match("vectors/*/manifest.json"):
            continue  # nothing is made from vectors that would name their digest
        good = file.read_bytes()
        bits = {0, len(good) * 8 - 1, *map(int, rng.integers(0, len(good) * 8, FLIPS))}
        for bit in bits:
            bad = bytearray(good)
            bad[bit // 8] ^= 1 << bit % 8
            file.write_bytes(bad)
            findings = verify(path)
            assert findings, (file, bit)
            # a manifest that lies about a file is told by that file's name
            named = file.parent if file.name == "manifest.json" else file
            assert str(named) in told(findings), (file, bit)
            assert all(isinstance(finding, CkdError) for finding in findings)
            if "vectors" not in file.parts:  # students do not read those
                with pytest.raises(StoreError) as caught:
                    read_all(path)
                assert str(named) in str(caught.value), (file, bit)
            tried += 1
        file.write_bytes(good)
    assert tried >= FLIPS * (len(files(path)) - 1)
    assert verify(path) == []


DAMAGE = {
    "missing": (lambda file: file.unlink(), "missing"),
    "empty": (lambda file: file.write_bytes(b""), "found"),
    "shorter": (lambda file: os.truncate(file, file.stat().st_size - 1), "found"),
    "longer": (lambda file: file.write_bytes(file.read_bytes() + b"\0"), "found"),
    "a link": (lambda file: _link(file), "regular file"),
    "a folder": (lambda file: _folder(file), ""),
}


def _link(file: Path) -> None:
    away = file.parents[3] / "away"
    file.rename(away)
    file.symlink_to(away)


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("kind", DAMAGE)
def test_each_damage_to_each_file_is_named(path, kind):
    spoil, words = DAMAGE[kind]
    for relative in [file.relative_to(path) for file in files(path)]:
        if relative.name == "manifest.json":
            continue
        copy = path.with_name("copy")
        shutil.copytree(path, copy)
        spoil(copy / relative)
        for deep in (False, True):
            findings = verify(copy, deep=deep)
            assert str(copy / relative) in told(findings)
            assert words in told(findings)
        if "vectors" not in relative.parts:
            with pytest.raises(StoreError) as caught:
                read_all(copy)
            assert str(copy / relative) in str(caught.value)
        shutil.rmtree(copy)
        (path.parent / "away").unlink(missing_ok=True)


def test_a_part_without_manifest_is_unfinished(path):
    for part in ("dataset", "plan", "scores/one", "dataset/vectors/text"):
        copy = path.with_name("copy")
        shutil.copytree(path, copy)
        (copy / part / "manifest.json").unlink()
        assert f"{copy / part}: " in told(verify(copy))
        shutil.rmtree(copy)


@pytest.mark.parametrize(
    "stranger",
    [
        "notes.txt",
        "dataset/extra",
        "plan/.partial-x",
        "scores/one/scores.zarr/c.9.0.0",
        "scores/one/journal.jsonl",
        "scores/README",
        "scores/.hidden",
        "scores/bad name/manifest.json",
    ],
)
def test_strangers_are_named(path, stranger):
    (path / stranger).parent.mkdir(exist_ok=True)
    (path / stranger).write_text("x")
    findings = verify(path)
    assert [finding.code for finding in findings] == ["store.unexpected"]
    first = stranger if "bad name" not in stranger else "scores/bad name"
    assert str(path / first) in told(findings)


def test_all_damage_is_listed_not_only_the_first(path):
    (path / "scores/one/scores.zarr/c.0.0.0").unlink()
    (path / "scores/two/scores.zarr/zarr.json").write_bytes(b"{}")
    (path / "extra").write_text("x")
    assert len(verify(path)) == 3


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


def test_two_swapped_shards_are_refused(path):
    zero, one = (path / f"scores/one/scores.zarr/c.{k}.0.0" for k in (0, 1))
    a, b = zero.read_bytes(), one.read_bytes()
    assert len(a) == len(b)
    zero.write_bytes(b)
    one.write_bytes(a)
    assert len(verify(path)) == 2
    with pytest.raises(StoreError, match=r"c\.1\.0\.0"):
        Store.open(path).scores("one")[Store.open(path).scores("one").layout.per_shard]


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
