"""Sealed parts: what a manifest promises, and every way of breaking it that is told by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cache.digest import canonical_json, sha256_bytes
from cache.errors import StoreError
from cache.manifest import MANIFEST, check_part, read_manifest, seal


@pytest.fixture
def part(tmp_path: Path) -> Path:
    folder = tmp_path / "part"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"abc")
    (folder / "deep" / "b.bin").write_bytes(b"")
    seal(folder, kind="plan", settings={"alpha": 1.0}, counts={"rows": 3})
    return folder


def test_a_sealed_part_reads_back(part: Path) -> None:
    manifest = check_part(part, "plan", deep=True)
    assert [(e.path, e.size) for e in manifest.files] == [("a.bin", 3), ("deep/b.bin", 0)]
    assert manifest.files[0].sha256 == sha256_bytes(b"abc")
    assert manifest.digest == sha256_bytes((part / MANIFEST).read_bytes())
    assert (manifest.settings, manifest.counts) == ({"alpha": 1.0}, {"rows": 3})


def test_the_same_content_has_the_same_digest_wherever_it_lies(part: Path) -> None:
    moved = part.rename(part.with_name("elsewhere"))
    assert seal(moved, kind="plan", settings={"alpha": 1.0}, counts={"rows": 3}).digest == (
        read_manifest(moved, "plan").digest
    )


def _flip(part: Path) -> None:
    (part / "a.bin").write_bytes(b"abd")


def _truncate(part: Path) -> None:
    (part / "a.bin").write_bytes(b"ab")


def _remove(part: Path) -> None:
    (part / "a.bin").unlink()


def _add(part: Path) -> None:
    (part / "deep" / "c.bin").write_bytes(b"")


def _link(part: Path) -> None:
    (part / "a.bin").rename(part.parent / "outside")
    (part / "a.bin").symlink_to(part.parent / "outside")


@pytest.mark.parametrize(
    ("harm", "code", "file"),
    [
        (_flip, "store.wrong_digest", "a.bin"),
        (_truncate, "store.wrong_size", "a.bin"),
        (_remove, "store.missing", "a.bin"),
        (_add, "store.unexpected", "c.bin"),
        (_link, "store.not_a_file", "a.bin"),
    ],
)
def test_harm_is_told_by_file_and_code(
    part: Path, harm: Callable[[Path], None], code: str, file: str
) -> None:
    harm(part)
    with pytest.raises(StoreError, match=file) as caught:
        check_part(part, "plan", deep=True)
    assert caught.value.code == code


def _edited(part: Path, **changes: Any) -> bytes:
    value = json.loads((part / MANIFEST).read_bytes())
    return canonical_json({**value, **changes}) + b"\n"


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda p: b"", "store.bad_manifest"),
        (lambda p: b"[" * 100_000, "store.bad_manifest"),
        (lambda p: _edited(p, format=3), "store.newer_format"),
        (lambda p: _edited(p, format=True), "store.bad_manifest"),
        (lambda p: _edited(p, kind="dataset"), "store.wrong_kind"),
        (lambda p: _edited(p, extra=1), "store.bad_manifest"),
        (lambda p: _edited(p, counts={"rows": -1}), "store.bad_manifest"),
        (lambda p: _edited(p, parents={"dataset": "sha256:no"}), "store.bad_manifest"),
        (lambda p: _edited(p, files=[{"path": "a.bin"}]), "store.bad_manifest"),
        (lambda p: (p / MANIFEST).read_bytes().replace(b"1.0", b"NaN"), "store.bad_manifest"),
        (lambda p: (p / MANIFEST).read_bytes().replace(b"1.0", b"1e999"), "store.bad_manifest"),
        (lambda p: (p / MANIFEST).read_bytes() + b" ", "store.bad_manifest"),
        (lambda p: b'{"kind":1,' + (p / MANIFEST).read_bytes()[1:], "store.bad_manifest"),
    ],
)
def test_odd_manifests_are_refused(part: Path, make: Callable[[Path], bytes], code: str) -> None:
    (part / MANIFEST).write_bytes(make(part))
    with pytest.raises(StoreError) as caught:
        read_manifest(part, "plan")
    assert caught.value.code == code


@pytest.mark.parametrize(
    "name", ["../x", "/x", "C:\\x", "a//b", "./a", "a/.", "nul", "x\0", "é", "a" * 300, ""]
)
def test_names_that_bite_are_refused(part: Path, name: str) -> None:
    entry = {"path": name, "size": 0, "sha256": sha256_bytes(b"")}
    (part / MANIFEST).write_bytes(_edited(part, files=[entry]))
    with pytest.raises(StoreError) as caught:
        read_manifest(part, "plan")
    assert caught.value.code == "store.unsafe_name"


def test_no_manifest_is_unfinished_never_small(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not there"):
        read_manifest(tmp_path / "nothing", "plan")
    with pytest.raises(StoreError, match="unfinished"):
        read_manifest(tmp_path, "plan")
