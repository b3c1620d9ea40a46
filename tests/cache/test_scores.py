"""The score set: its numbers, its bytes, and what stock zarr-python makes of them."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cache.errors import StoreError, TeacherError, UsageError
from cache.layout import SHARD_BYTES, Layout
from cache.score_writer import ScoreWriter, log_softmax, score_settings
from cache.scores import ScoreReader
from cache.store import Store
from pipeline.build import build
from tests.fakes import TableTeacher, tiny_store

SMALL_SHARDS = 400  # bytes: about ten batches of 4 x 4 a shard


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Four slots a batch; the last batch of each bucket and round is smaller."""
    return tiny_store(tmp_path / "store", rounds=2)


@pytest.fixture
def reader(store: Store) -> ScoreReader:
    build(TableTeacher(), store, shard_bytes=SMALL_SHARDS, quality={"ndcg@10": 0.07})
    return store.scores("table")


def writer_of(store: Store, *, tau: float = 0.07, shard_bytes: int = SHARD_BYTES) -> ScoreWriter:
    layout = Layout.of(store.plan, shard_bytes=shard_bytes)
    described = score_settings(
        layout,
        teacher="hand",
        teacher_digest="sha256:" + "0" * 64,
        quality={},
        tau=tau,
        extra={},
    )
    return ScoreWriter.open(store.folder("hand"), store.plan, layout, described)


def test_a_row_by_hand():
    # softmax of (1, 0) / 0.5 is (e^2, 1) / (e^2 + 1); its logarithm is -(log(1 + e^-2)), that - 2
    tail = math.log(1 + math.exp(-2))
    expected = np.array([[-tail, -2 - tail], [-math.log(2)] * 2], np.float16)
    got = log_softmax(np.array([[1.0, 0.0], [3.0, 3.0]], np.float32), tau=0.5)
    assert got.dtype == np.float16
    assert np.array_equal(got, expected)


def test_far_scores_do_not_overflow():
    got = log_softmax(np.array([[1000.0, 0.0]], np.float32), tau=1.0)
    assert got.tolist() == [[0.0, -1000.0]]


scores_of_a_batch = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=st.floats(-1, 1, width=32),
)
temperatures = st.floats(0.05, 1.0)


@given(raw=scores_of_a_batch, tau=temperatures)
def test_rows_are_distributions(raw, tau):
    total = np.exp(log_softmax(raw, tau).astype(np.float64)).sum(axis=1)
    # half precision keeps -40 to within 2^-6, and such an entry weighs nothing
    assert np.allclose(total, 1, atol=4e-3)


@given(raw=scores_of_a_batch, tau=temperatures, asked=temperatures)
@settings(max_examples=200)
def test_the_temperature_stays_tunable(raw, tau, asked):
    """softmax(stored * tau / asked) is the softmax at `asked`: the law that logarithms buy."""
    stored = log_softmax(raw, tau).astype(np.float64)
    again = np.exp(stored * tau / asked)
    again /= again.sum(axis=1, keepdims=True)
    direct = np.exp(raw.astype(np.float64) / asked)
    direct /= direct.sum(axis=1, keepdims=True)
    # an entry of the logarithm is off by at most 2^-11 of itself, here at most |raw| 2 / tau + log 6
    bound = 2.0**-11 * (2 / tau + math.log(6)) * tau / asked
    assert np.abs(again - direct).max() <= 2 * bound + 1e-6


@given(raw=scores_of_a_batch, shift=st.floats(-2, 2, width=32))
def test_a_constant_changes_nothing(raw, shift):
    moved = log_softmax(raw + np.float32(shift), 0.1).astype(np.float32)
    assert np.allclose(moved, log_softmax(raw, 0.1).astype(np.float32), atol=0.03)


def test_what_was_put_is_what_is_read(store):
    writer = writer_of(store, tau=0.5, shard_bytes=SMALL_SHARDS)
    rng = np.random.default_rng(0)
    raws = [
        rng.uniform(-1, 1, (len(batch.users), len(batch.items))).astype(np.float32)
        for batch in (store.plan[i] for i in range(len(store.plan)))
    ]
    assert len(writer.layout.shards) > 2
    for unit in reversed(writer.layout.shards):  # any order
        writer.put(unit, [raws[i] for i in writer.layout.shard_batches(unit)])
    manifest = writer.seal()
    got = store.scores("hand")
    assert got.digest == manifest.digest
    assert got.tau == 0.5
    assert got.quality is None
    for index, raw in enumerate(raws):
        assert np.array_equal(got[index], log_softmax(raw, 0.5))


def test_stock_zarr_reads_the_same_values(reader):
    stock = zarr.open_array(reader.folder / "scores.zarr", mode="r")
    assert stock.shape == (len(reader), reader.layout.slots, reader.layout.columns)
    assert stock.attrs["ckd"]["settings"]["tau"] == 0.07
    last = reader.layout.shard_batches(reader.layout.shards[-1])
    assert len(last) < reader.layout.per_shard  # the last shard file is a partial one
    short = 0
    for index in range(len(reader)):
        rows, width = reader.shape(index)
        short += rows < reader.layout.slots
        whole = stock[index]
        assert np.array_equal(whole[:rows, :width], reader[index])
        assert np.isnan(whole[rows:]).all()
        assert np.isnan(whole[:, width:]).all()
    assert short >= 2


def test_a_batch_has_the_shape_of_its_plan(reader, store):
    for index in range(len(store.plan)):
        batch = store.plan[index]
        assert reader[index].shape == (len(batch.users), len(batch.items)) == reader.shape(index)


def test_views_are_read_only_and_cost_no_copy(reader):
    view = reader[0]
    assert not view.flags.writeable
    assert not view.flags.owndata
    assert np.shares_memory(view, reader[0])


def test_reading_into_a_buffer_gives_the_same(reader):
    whole = np.zeros((reader.layout.slots, reader.layout.columns), np.float16)
    for index in range(len(reader)):
        assert np.array_equal(reader.read_into(index, whole), reader[index])
        exact = np.zeros(reader.shape(index), np.float16)
        assert reader.read_into(index, exact).base is exact
        assert np.array_equal(exact, reader[index])


def test_a_buffer_of_another_shape_is_refused(reader):
    with pytest.raises(UsageError, match=r"batch 0: the buffer has shape \(1, 1\)"):
        reader.read_into(0, np.zeros((1, 1), np.float16))


def test_no_batch_beyond_the_last(reader):
    with pytest.raises(IndexError):
        reader[len(reader)]
    with pytest.raises(IndexError):
        reader[-1]


def test_quality_is_the_validation_ndcg(reader):
    assert reader.quality == 0.07


BAD = {
    "nan": (lambda raw: _with(raw, 1, 2, np.nan), "row 1, column 2: the score is nan"),
    "infinity": (lambda raw: _with(raw, 0, 1, np.inf), "row 0, column 1: the score is inf"),
    "a row too few": (lambda raw: raw[1:], r"shape \(3, "),
    "a column too many": (lambda raw: np.pad(raw, ((0, 0), (0, 1))), r"shape \(4, "),
    "integers": (lambda raw: raw.astype(np.int64), "type int64"),
    "a gulf": (lambda raw: _with(raw, 2, 0, 1e6), "row 2, column 1: the log-probability at tau"),
}


def _with(raw, row, column, value):
    raw = raw.copy()
    raw[row, column] = value
    return raw


@pytest.mark.parametrize("kind", BAD)
def test_a_broken_teacher_writes_nothing(store, kind):
    spoil, words = BAD[kind]
    writer = writer_of(store, shard_bytes=SMALL_SHARDS)
    unit = writer.layout.shards[0]
    batches = [store.plan[i] for i in writer.layout.shard_batches(unit)]
    raws = [np.zeros((len(batch.users), len(batch.items)), np.float32) for batch in batches]
    raws[1] = spoil(raws[1])
    with pytest.raises(TeacherError, match=rf"teacher 'hand', batch 1.*{words}"):
        writer.put(unit, raws)
    assert unit in list(writer.missing())
    assert not list(writer.work.rglob("c.*"))


def test_sealing_too_early_is_refused(store):
    writer = writer_of(store, shard_bytes=SMALL_SHARDS)
    with pytest.raises(StoreError, match="are not there yet"):
        writer.seal()
    assert not store.folder("hand").exists()


def test_a_temperature_of_nothing_is_refused(store):
    for tau in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="tau is"):
            writer_of(store, tau=tau)


def test_swapped_files_are_noticed_between_two_reads(reader, store, tmp_path):
    """A file replaced after it was verified is hashed again before a byte of it is used."""
    other = tmp_path / "other"
    shutil.copytree(reader.folder, other)
    path = reader.folder / reader.layout.shard_path(0)
    first = reader[0].copy()
    data = bytearray((other / reader.layout.shard_path(0)).read_bytes())
    data[0] ^= 1
    (other / "forged").write_bytes(data)
    (other / "forged").replace(path)
    assert np.array_equal(reader[0], first)  # still the verified file, which has no name any more
    reader._maps.clear()
    with pytest.raises(StoreError, match=r"c\.0\.0\.0"):
        reader[0]


def test_chunks_swapped_in_place_are_noticed_at_once(reader):
    """Each chunk must have its own crc32c, not just some crc32c that fits the bytes behind it."""
    reader[0]
    path = reader.folder / reader.layout.shard_path(0)
    stride = reader.layout.stored_bytes
    with path.open("r+b") as file:
        data = file.read()
        file.seek(0)
        file.write(data[stride : 2 * stride] + data[:stride])
    with pytest.raises(StoreError, match="bytes of batch 0 have changed"):
        reader[0]


def test_a_prefetching_thread_may_read_beside_the_main_one(reader, monkeypatch):
    """Few maps, so that each thread drops what the other one holds."""
    monkeypatch.setattr(reader, "_max_maps", 1)
    wanted = [reader[index].copy() for index in range(len(reader))]

    def read(order: int) -> bool:
        dice = np.random.default_rng(order)
        chosen = [int(index) for index in dice.integers(0, len(reader), 500)]
        return all(np.array_equal(reader[index], wanted[index]) for index in chosen)

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(read, range(4)))


def test_mapped_memory_is_bounded(tmp_path):
    """Every batch of a set of 150 MB is read in random order; resident memory grows by far less."""
    script = Path(__file__).with_name("read_large_store.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["set_mb"] > 150
    assert told["grown_mb"] < 100, told
