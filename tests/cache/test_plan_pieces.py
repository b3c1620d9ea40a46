"""A plan is read piece by piece, and reads the same however many pieces its file has."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from cache import tables
from tests.fakes import tiny_dataset, tiny_plan


def test_pieces_do_not_show(tmp_path: Path, monkeypatch):
    dataset = tiny_dataset(tmp_path / "data")
    whole = tiny_plan(tmp_path / "whole", dataset, rounds=2)
    # seven rows: batches of four begin in one piece and end in another
    monkeypatch.setattr(tables.pq, "write_table", partial(pq.write_table, row_group_size=7))
    cut = tiny_plan(tmp_path / "cut", dataset, rounds=2)
    assert pq.ParquetFile(cut.path / "plan.parquet").num_row_groups > 5
    for name in ("rounds", "buckets", "starts", "slot_instances", "slot_columns"):
        assert np.array_equal(getattr(cut, name), getattr(whole, name)), name
        assert getattr(cut, name).dtype == getattr(whole, name).dtype
