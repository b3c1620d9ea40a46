"""Bytes that were hashed are the bytes that are read, and long columns read the same from a file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache import column as columns
from cache import proven
from cache.column import Column
from cache.digest import sha256_bytes
from cache.errors import StoreError
from cache.manifest import Entry
from cache.proven import ProvenFile
from tests.promises.grounds import in_memory


def opened(path: Path, data: bytes) -> ProvenFile:
    path.write_bytes(data)
    entry = Entry(path=path.name, size=len(data), sha256=sha256_bytes(data))
    return ProvenFile(path, entry, advice="restore it")


@given(
    data=st.binary(max_size=40),
    steps=st.lists(st.tuples(st.integers(-3, 45), st.integers(0, 45), st.sampled_from([0, 1, 2]))),
    small=st.sampled_from([0, 20]),
)
def test_it_reads_as_bytes_in_memory_do(data, steps, small):
    with in_memory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(proven, "_SMALL", small)
        patch.setattr(proven, "_BLOCK", 7)  # reads begin, end and lie across blocks
        plain = io.BytesIO(data)
        with opened(folder / "file", data) as file:
            assert len(file) == len(data)
            assert [file[at] for at in range(len(file))] == list(data)
            for offset, count, whence in steps:
                if whence == io.SEEK_SET and offset < 0:
                    continue
                assert file.seek(offset, whence) == plain.seek(offset, whence) == file.tell()
                assert file.read(count) == plain.read(count)


def test_a_block_that_changes_after_the_check_is_refused(tmp_path, monkeypatch):
    size = 1 << 16  # larger than what Python reads ahead
    monkeypatch.setattr(proven, "_SMALL", 0)
    monkeypatch.setattr(proven, "_BLOCK", size)
    path = tmp_path / "file"
    with opened(path, b"a" * size + b"b" * size + b"c" * 10) as file:
        assert file.read(3) == b"aaa"
        with path.open("r+b") as other:
            other.seek(2 * size - 1)
            other.write(b"B")
        assert file.read(size - 3) == b"a" * (size - 3)  # a block that is as it was
        with pytest.raises(StoreError, match="its bytes have changed") as caught:
            file.read(1)
        assert caught.value.code == "store.wrong_digest"
        path.write_bytes(b"abc")
        file.seek(2 * size)
        with pytest.raises(StoreError, match="its bytes have changed"):
            file.read(4)


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
