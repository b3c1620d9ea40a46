"""The frozen dataset: split, histories, instances, vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.dataset import Dataset, open_dataset, write_dataset
from cache.errors import StoreError
from cache.vectors import list_vectors, read_vectors, write_vectors

# users: a has 0 1 2 3 4, b has 4 3, c has 2 2 0
FLAT, OFFSETS = [0, 1, 2, 3, 4, 4, 3, 2, 2, 0], [0, 5, 7, 10]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make(tmp_path / "toys", max_length=2)


def make(path: Path, *, max_length: int, **more: object) -> Dataset:
    items = pa.table(
        {
            "item": list("vwxyz"),
            "title": ["red shoe", "blue shoe", None, "", "hat"],
            "brand": ["acme", "", None, "", ""],
        }
    )
    return write_dataset(
        path,
        items=items,
        user_ids=pa.array(["a", "b", "c"]),
        flat=np.array(FLAT),
        offsets=np.array(OFFSETS),
        max_length=max_length,
        **more,  # type: ignore[arg-type]
    )


def test_counts_and_texts(dataset: Dataset) -> None:
    assert (dataset.num_users, dataset.num_items, len(dataset.flat)) == (3, 5, 10)
    assert dataset.texts() == ["red shoe acme", "blue shoe", ".", ".", "hat"]
    ids = dataset.user_ids()
    assert ids is not None
    assert ids.to_pylist() == ["a", "b", "c"]


def test_leave_one_out(dataset: Dataset) -> None:
    # a: 0 1 2 train, 3 valid, 4 test; b: only trains; c: 2 train, 2 valid, 0 test
    assert dataset.train_lengths.tolist() == [3, 2, 1]
    users, ends = dataset.held_out("valid")
    assert dataset.targets(users, ends).tolist() == [3, 2]
    users, ends = dataset.held_out("test")
    assert (users.tolist(), dataset.targets(users, ends).tolist()) == ([0, 2], [4, 0])
    assert dataset.train_counts.tolist() == [1, 1, 2, 1, 1]


def test_training_instances(dataset: Dataset) -> None:
    users, ends = dataset.training_instances("prefixes")
    assert (users.tolist(), ends.tolist()) == ([0, 0, 1], [1, 2, 1])
    users, ends = dataset.training_instances("last")
    assert (users.tolist(), ends.tolist()) == ([0, 1], [2, 1])


def test_histories_are_cut_at_max_length(dataset: Dataset) -> None:
    flat, lengths = dataset.histories(np.array([0, 2, 0], np.int32), np.array([4, 2, 1], np.int32))
    assert (flat.tolist(), lengths.tolist()) == ([2, 3, 2, 2, 0], [2, 2, 1])


@given(st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=9), max_size=8), st.integers(1, 5))
def test_no_instance_sees_its_target_or_what_is_held_out(
    tmp_path_factory: pytest.TempPathFactory, sequences: list[list[int]], max_length: int
) -> None:
    dataset = write_dataset(
        tmp_path_factory.mktemp("law") / "d",
        items=pa.table({"item": list("abcdefg")}),
        user_ids=None,
        flat=np.array([i for s in sequences for i in s], np.int64),
        offsets=np.cumsum([0, *map(len, sequences)]),
        max_length=max_length,
    )
    users, ends = dataset.training_instances()
    flat, lengths = dataset.histories(users, ends)
    expected = [
        (s[max(0, end - max_length) : end], s[end])
        for s in sequences
        for end in range(1, len(s) - 2 if len(s) >= 3 else len(s))
    ]
    pieces = np.split(flat, np.cumsum(lengths)[:-1]) if len(lengths) else []
    found = zip([p.tolist() for p in pieces], dataset.targets(users, ends).tolist(), strict=True)
    assert list(found) == expected


def test_the_same_content_is_the_same_dataset(tmp_path: Path) -> None:
    one, other = make(tmp_path / "one", max_length=2), make(tmp_path / "two", max_length=2)
    assert one.digest == other.digest
    assert make(tmp_path / "three", max_length=3).digest != one.digest


def test_a_dataset_is_never_overwritten(dataset: Dataset) -> None:
    with pytest.raises(StoreError, match="never overwritten"):
        make(dataset.path, max_length=2)


def test_a_flipped_bit_is_found(dataset: Dataset) -> None:
    path = dataset.path / "items.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"items\.parquet"):
        open_dataset(dataset.path, deep=True)


def test_vectors_lie_beside_the_dataset(dataset: Dataset) -> None:
    before = dataset.digest
    vectors = np.arange(10, dtype=np.float32).reshape(5, 2)
    write_vectors(dataset, "minilm", vectors, {"pooling": "mean"})
    assert list_vectors(dataset) == ["minilm"]
    assert np.array_equal(read_vectors(dataset, "minilm"), vectors)
    assert open_dataset(dataset.path, deep=True).digest == before


def test_vectors_that_do_not_fit_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"\(5, d\) expected"):
        write_vectors(dataset, "short", np.zeros((4, 2), np.float32), {})
    bad = np.zeros((5, 2), np.float32)
    bad[3, 1] = np.nan
    with pytest.raises(StoreError, match="row 3 holds NaN"):
        write_vectors(dataset, "nan", bad, {})
    with pytest.raises(StoreError, match="there: none"):
        read_vectors(dataset, "minilm")
    write_vectors(dataset, "mine", np.zeros((5, 2), np.float32), {})
    other = make(tmp_path / "other", max_length=9)
    (dataset.path / "vectors").rename(other.path / "vectors")
    with pytest.raises(StoreError, match="was made from the dataset"):
        read_vectors(other, "mine")
