"""Every score set is a plain Zarr v3 array: zarr-python, zarrs and tensorstore read the same values from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import zarr
from zarr.registry import register_pipeline
from zarrs import ZarrsCodecPipeline

from cache.codec import decode
from pipeline.build import build
from tests.fakes import TableTeacher, tiny_store


def _zarr_python(array: Path) -> np.ndarray:
    return np.asarray(zarr.open_array(array, mode="r")[:])


def _zarrs(array: Path) -> np.ndarray:
    register_pipeline(ZarrsCodecPipeline)
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        opened = zarr.open_array(array, mode="r")
        assert isinstance(opened.async_array.codec_pipeline, ZarrsCodecPipeline)
        return np.asarray(opened[:])


def _tensorstore(array: Path) -> np.ndarray:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(array)}}
    return np.asarray(tensorstore.open(spec, read=True).result().read().result())


@pytest.mark.parametrize("codec", ["none", "u8"])
@pytest.mark.parametrize("read", [_zarr_python, _zarrs, _tensorstore])
def test_they_read_what_our_reader_reads(tmp_path, codec, read: Callable[[Path], np.ndarray]):
    store = tiny_store(tmp_path / "store", rounds=2)
    # shards of two batches, so that inner chunks and shards that are not full are read too
    build(TableTeacher(), store, codec=codec, shard_bytes=400)
    ours = store.scores("table")
    assert 1 < len(ours.layout.shards) < len(ours)
    theirs = read(ours.folder / "scores.zarr")
    assert len(theirs) == len(ours)
    for index, stored in enumerate(theirs):
        rows, width = ours.shape(index)
        found = stored[:rows, :width]
        if codec == "u8":
            found = np.empty((rows, width), np.float32)
            decode(stored, found)
        assert found.dtype == ours[index].dtype
        assert np.array_equal(found, ours[index])
