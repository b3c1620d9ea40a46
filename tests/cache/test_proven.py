"""Bytes that were hashed are the bytes that are read, and long columns read the same from a file."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache import column as columns
from cache import proven as module
from cache.column import Column
from cache.digest import sha256_bytes
from cache.errors import DiskError, StoreError
from cache.manifest import Entry
from cache.proven import proven
from tests.promises.grounds import in_memory


def entry_of(path: Path, data: bytes) -> Entry:
    return Entry(path=path.name, size=len(data), sha256=sha256_bytes(data))


@given(data=st.binary(min_size=1, max_size=40), small=st.sampled_from([0, 20, 40]))
def test_it_is_what_the_file_held_whatever_is_written_there_later(data, small):
    with in_memory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SMALL", small)
        patch.setattr(module, "_BLOCK", 7)
        path = folder / "file"
        path.write_bytes(data)
        kept = proven(path, entry_of(path, data), advice="restore it")
        path.write_bytes(data[::-1] + b"more")
        path.unlink()
        assert kept.to_pybytes() == data
        assert [kept[at] for at in range(len(kept))] == list(data)


@pytest.mark.parametrize("small", [0, 1 << 20])
@pytest.mark.parametrize(
    ("found", "code"),
    [(b"abd", "store.wrong_digest"), (b"ab", "store.wrong_size"), (b"abcd", "store.wrong_size")],
)
def test_other_bytes_are_refused_and_no_copy_is_left(found, code, small, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SMALL", small)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = tmp_path / "file"
    path.write_bytes(found)
    with pytest.raises(StoreError, match=str(path)) as caught:
        proven(path, entry_of(path, b"abc"), advice="restore it")
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == [path]


def test_a_copy_that_finds_no_room_is_told_with_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SMALL", 0)
    monkeypatch.setattr(tempfile, "tempdir", "/dev/full/nowhere")
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    with pytest.raises(DiskError, match="/dev/full/nowhere: Not a directory"):
        proven(path, entry_of(path, b"abc"), advice="restore it")


def test_a_copy_that_fills_the_disk_is_told_as_that(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SMALL", 0)
    full = io.FileIO("/dev/full", "wb")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: full)
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    with pytest.raises(DiskError, match=": No space left on device; free some space"):
        proven(path, entry_of(path, b"abc"), advice="restore it")


@pytest.mark.parametrize(("small", "taken"), [(1 << 23, 1 << 22), (0, 0)])
def test_the_copy_is_arrows_or_the_systems_and_never_pythons(small, taken, tmp_path, monkeypatch):
    # an Arrow thread that lets go of a Python object while Python shuts down aborts the process, now and then
    monkeypatch.setattr(module, "_SMALL", small)
    path = tmp_path / "file"
    data = bytes(1 << 22)
    path.write_bytes(data)
    entry = entry_of(path, data)
    before = pa.total_allocated_bytes()
    kept = proven(path, entry, advice="restore it")
    assert kept.size == 1 << 22
    assert pa.total_allocated_bytes() - before == taken


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_a_column_is_what_was_appended_wherever_it_lies(limit, monkeypatch):
    monkeypatch.setattr(columns, "IN_MEMORY", limit)
    with Column(np.int32, 5) as column:
        column.append(np.array([7, 8]))
        column.append(np.array([], np.int32))
        column.append(np.array([9, 10, 11], np.int32))
        values = column.array()
    assert values.tolist() == [7, 8, 9, 10, 11]
    assert values.dtype == np.int32
    assert not values.flags.writeable
    with Column(np.int32, 2) as short:
        short.append(np.array([1], np.int32))
        with pytest.raises(ValueError, match="1 numbers came, 2 were expected"):
            short.array()
