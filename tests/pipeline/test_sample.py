"""The sample: the same bytes each time, ready to ingest, sparse, and with texts that know what comes next."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cache.errors import StoreError, UsageError
from pipeline.ingest import ingest
from pipeline.sample import write_sample

ROOT = Path(__file__).resolve().parents[2]


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    write_sample(tmp_path / "a", users=200, items=300)
    program = (
        "import sys; from pathlib import Path; from pipeline.sample import write_sample;"
        "write_sample(Path(sys.argv[1]), users=200, items=300)"
    )
    subprocess.run(
        [sys.executable, "-c", program, tmp_path / "b"],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "3"},
    )
    write_sample(tmp_path / "c", users=200, items=300, seed=8)
    for name in ("interactions.parquet", "items.parquet"):
        a, b, c = ((tmp_path / folder / name).read_bytes() for folder in "abc")
        assert a == b
        assert a != c


def test_it_ingests_as_it_is(tmp_path: Path) -> None:
    write_sample(tmp_path / "raw")
    done = ingest(tmp_path / "raw", tmp_path / "data")
    assert done.format == "parquet"
    assert (done.counts.users_before, done.counts.duplicates) == (3000, 0)
    assert done.counts.items_without_text == 0
    lengths = done.dataset.lengths
    assert lengths.min() >= 5
    assert 5.5 < lengths.mean() < 8.5
    # sparse, with a long tail: half of the items have fewer than ten clicks, some over thirty
    counts = done.dataset.train_counts
    assert np.median(counts) < 10
    assert counts.max() > 30


def test_titles_say_what_the_walk_does(tmp_path: Path) -> None:
    write_sample(tmp_path / "raw")
    items = pq.read_table(tmp_path / "raw" / "items.parquet").to_pylist()
    log = pq.read_table(tmp_path / "raw" / "interactions.parquet").to_pydict()
    by_item = {row["item"]: row for row in items}
    last: dict[str, str] = {}
    same_brand = pairs = 0
    for user, item in zip(log["user"], log["item"], strict=True):  # rows are in time order
        if user in last:
            pairs += 1
            same_brand += by_item[last[user]]["brand"] == by_item[item]["brand"]
        last[user] = item
    # twelve topics of five brands: one pair in sixty would share the brand by chance
    assert same_brand / pairs > 0.25
    assert all(row["title"].startswith(row["brand"]) for row in items)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 1 and 96 were expected"):
        write_sample(tmp_path / "a", items=95)
    for too_many in ({"items": 3_000_000_000}, {"users": 3_000_000_000}):
        with pytest.raises(UsageError, match="at most 10000000 and 10000000") as caught:
            write_sample(tmp_path / "a", **too_many)
        assert caught.value.code == "sample.too_large"
    (tmp_path / "there").mkdir()
    with pytest.raises(StoreError, match="never overwritten"):
        write_sample(tmp_path / "there")
