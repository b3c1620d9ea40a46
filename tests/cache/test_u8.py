"""A score set of codec `u8`: its bytes, stock zarr-python, the reader, and who refuses it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from cache import manifest as manifests
from cache.codec import decode, half_steps
from cache.describe import describe
from cache.digest import canonical_json
from cache.errors import StoreError, UsageError
from cache.score_writer import log_softmax_32
from cache.scores import ScoreReader
from cache.store import Store
from cache.verify import compare, verify
from pipeline.build import build, scorer
from tests.fakes import TableTeacher, tiny_store

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """The same teacher twice: as it is, and in bytes."""
    store = tiny_store(tmp_path / "store", rounds=2)
    build(TableTeacher(), store, name="plain")
    build(TableTeacher(), store, name="small", codec="u8", shard_bytes=400)
    return store


@pytest.fixture
def reader(store: Store) -> ScoreReader:
    return store.scores("small")


def test_the_values_are_the_teachers_within_half_a_step(store, reader):
    plain = store.scores("plain")
    ask = scorer(TableTeacher(), store.dataset)
    for index in range(len(reader)):
        # of the float32 logarithm: had it been rounded to float16 before, up to 2^-7 more would be lost
        wide = log_softmax_32(ask(store.plan[index]), 0.07)
        assert (np.abs(reader[index] - wide) <= reader.rounding(index) + 1e-4).all()
        assert reader[index].dtype == np.float32
        assert not np.array_equal(reader[index], plain[index])
        assert (plain.rounding(index) == 0).all()


def test_stock_zarr_reads_the_same_bytes(reader):
    stock = zarr.open_array(reader.folder / "scores.zarr", mode="r")
    assert stock.dtype == np.uint8
    assert stock.shape == (len(reader), reader.layout.slots, reader.layout.columns + 4)
    for index in range(len(reader)):
        codes = stock[index]
        rows, width = reader.shape(index)
        found = np.empty((rows, width), np.float32)
        decode(codes, found)
        assert np.array_equal(found, reader[index])
        assert np.array_equal(half_steps(codes[:rows]), reader.rounding(index))
        assert (codes[rows:] == 255).all()
        assert (codes[:, width:-4] == 255).all()


def test_an_instance_takes_a_byte_a_column_and_four(reader):
    layout = reader.layout
    assert layout.chunk_bytes == layout.slots * (layout.columns + 4)
    assert describe(Store.open(reader.folder.parents[1])).score_sets[1].codec == "u8"


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_reading_into_a_buffer_gives_the_same(reader, dtype):
    whole = np.zeros((reader.layout.slots, reader.layout.columns), dtype)
    for index in range(len(reader)):
        wanted = reader[index].astype(dtype)
        assert np.array_equal(reader.read_into(index, whole), wanted)
        exact = np.zeros(reader.shape(index), dtype)
        assert np.array_equal(reader.read_into(index, exact), wanted)
    with pytest.raises(UsageError, match="the buffer has shape"):
        reader.read_into(0, np.zeros((4, reader.layout.columns + 4), dtype))


def test_a_changed_byte_is_noticed(reader):
    reader[0]
    path = reader.folder / reader.layout.shard_path(0)
    with path.open("r+b") as file:
        byte = file.read(1)
        file.seek(0)
        file.write(bytes([byte[0] ^ 1]))
    for ask in (reader.__getitem__, reader.rounding):
        with pytest.raises(StoreError, match="bytes of batch 0 have changed"):
            ask(0)


def test_an_audit_allows_for_the_step_and_for_no_more(store):
    assert verify(store.path) == []
    ask = scorer(TableTeacher(), store.dataset)
    assert compare(store, "small", ask, sample=99) == []
    largest = max(float(store.scores("small").rounding(i).max()) for i in range(len(store.plan)))
    assert largest > 0.02  # without allowing for the step it would be refused

    def moved(batch):
        raw = ask(batch)
        raw[0, 0] += 0.07 * (2 * largest + 0.1)
        return raw

    assert len(compare(store, "small", moved, sample=99)) == len(store.plan)


def test_another_codec_under_the_same_name_is_refused(store):
    with pytest.raises(StoreError, match="codec 'u8' there, 'none' asked for") as caught:
        build(TableTeacher(), store, name="small")
    assert caught.value.code == "scores.exists"


def test_a_codec_without_scores_is_refused(store):
    with pytest.raises(UsageError, match="leave --codec away"):
        build(TableTeacher(), store, name="other", keep="factors", codec="u8")


def test_a_program_of_before_asks_for_an_upgrade(store, monkeypatch):
    monkeypatch.setattr(manifests, "FORMAT", 1)
    with pytest.raises(StoreError, match="format 2, this program reads up to 1; upgrade") as caught:
        store.scores("small")
    assert caught.value.code == "store.newer_format"
    store.scores("plain")[0]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("plain", {"format": 2}),
        ("small", {"format": 1}),
        ("small", {"codec": "none"}),
        ("small", {"codec": "none", "dtype": "float16", "format": 1}),
        ("plain", {"codec": "u8", "dtype": "uint8", "format": 2}),
        ("small", {"dtype": "float16"}),
        ("small", {"codec": ["u8"]}),
    ],
)
def test_a_manifest_that_says_another_codec_is_refused(store, name, change):
    path = store.folder(name) / "manifest.json"
    value = json.loads(path.read_text())
    value["format"] = change.pop("format", value["format"])
    value["settings"] |= change
    path.write_bytes(canonical_json(value) + b"\n")
    with pytest.raises(StoreError) as caught:
        store.scores(name)
    assert caught.value.code in {"store.bad_settings", "store.inconsistent"}


def test_only_score_sets_are_of_format_2(store):
    path = store.path / "plan" / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"format":1', b'"format":2'))
    with pytest.raises(StoreError, match="has format 2") as caught:
        Store.open(store.path)
    assert caught.value.code == "store.bad_manifest"


def test_the_golden_store_of_format_2(tmp_path):
    """Its bytes give these values for ever; and the same build gives these bytes."""
    reader = Store.open(GOLDEN / "store_v2").scores("bytes")
    wanted = np.load(GOLDEN / "store_v2_bytes.npy", allow_pickle=False)
    for index in range(len(reader)):
        rows, width = reader.shape(index)
        assert np.array_equal(reader[index], wanted[index, :rows, :width])
        # beside the values of format 1: float16's 2^-7 at most, and half a step
        plain = Store.open(GOLDEN / "store_v2").scores("table")[index].astype(np.float32)
        assert (np.abs(plain - reader[index]) <= reader.rounding(index) + 2**-7).all()
    raw = zarr.open_array(reader.folder / "scores.zarr", mode="r")[:]
    assert np.array_equal(raw, np.load(GOLDEN / "store_v2_raw.npy", allow_pickle=False))
    assert verify(GOLDEN / "store_v2") == []
    again = tmp_path / "store"
    shutil.copytree(GOLDEN / "store_v2", again)
    shutil.rmtree(again / "scores" / "bytes")
    build(TableTeacher("table"), Store.open(again), name="bytes", codec="u8", shard_bytes=300)
    # another processor may add in another order: the layout is exact, a code may differ by one
    rebuilt = Store.open(again).scores("bytes")
    assert rebuilt.layout == reader.layout
    assert np.abs(np.subtract(rebuilt[0], reader[0])).max() <= 4 * reader.rounding(0).max()
