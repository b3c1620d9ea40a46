"""The frozen dataset: split, histories, instances, vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache import tables
from cache.dataset import Dataset, open_dataset, write_dataset
from cache.digest import canonical_json
from cache.errors import StoreError
from cache.manifest import seal
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


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["settings"].update(max_length="50"),
        lambda m: m["settings"].update(max_length=None),
        lambda m: m["settings"].update(max_length=0),
        lambda m: m["settings"].pop("max_length"),
        lambda m: m["counts"].pop("items"),
    ],
    ids=["text", "null", "zero", "none", "count"],
)
def test_a_manifest_without_its_numbers_is_refused(dataset: Dataset, change: Any) -> None:
    """Canonical, and so found out by nobody but whoever reads by these numbers."""
    path = dataset.path / "manifest.json"
    value = json.loads(path.read_bytes())
    change(value)
    path.write_bytes(canonical_json(value) + b"\n")
    with pytest.raises(StoreError, match="whole numbers for") as caught:
        open_dataset(dataset.path)
    assert caught.value.code == "store.bad_settings"


@pytest.mark.parametrize(
    "inside",
    [
        b"junk",
        np.zeros((2, 3), np.float32),
        np.zeros((5, 3), np.float64),
        np.full((5, 3), np.nan, np.float32),
    ],
    ids=["junk", "rows", "doubles", "nan"],
)
def test_sealed_vectors_that_are_none_are_refused(dataset: Dataset, inside: Any) -> None:
    """Their seal is right: somebody sealed nonsense."""
    folder = dataset.path / "vectors" / "odd"
    folder.mkdir(parents=True)
    if isinstance(inside, bytes):
        (folder / "vectors.npy").write_bytes(inside)
    else:
        np.save(folder / "vectors.npy", inside)
    counts = {"items": 5, "width": 3}
    seal(folder, kind="vectors", parents={"dataset": dataset.digest}, counts=counts)
    with pytest.raises(StoreError, match=r"shape \(5, 3\)") as caught:
        read_vectors(dataset, "odd")
    assert caught.value.code == "vectors.damaged"


def test_a_table_that_packs_too_well_is_stored_so_that_readers_take_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30,000 equal numbers take 12 bytes each to unpack, and 700 bytes on disk: more than 256 times as much."""
    monkeypatch.setattr(tables, "_SMALL", 0)
    schema = pa.schema([("n", pa.int32()), ("text", pa.string())])
    table = pa.table([pa.array([7] * 30_000, pa.int32()), ["brand"] * 30_000], schema=schema)
    tables.write_table(tmp_path / "dense", table)
    again = tables.read_table(tmp_path, seal(tmp_path, kind="plan"), "dense", schema, 30_000)
    assert again.equals(table)
    # plain: 4 bytes a number, 4 + 5 a text, and little else
    assert 30_000 * 13 < (tmp_path / "dense").stat().st_size < 30_000 * 13 * 1.01
