"""Score sets of codec `u8` travel like others: pushed, pulled, merged, mirrored."""

from __future__ import annotations

import numpy as np

from cache.store import Store
from cache.verify import verify
from pipeline.build import build
from pipeline.share import merge
from tests.fakes import TableTeacher, tree
from tests.share.test_mirror import opened
from tests.share.test_share import pulled, pushed, silent


def test_a_set_in_bytes_travels_like_others(store, place, kept, tmp_path):
    build(TableTeacher("three"), store, codec="u8", shard_bytes=400)
    pushed(store, place)
    pulled(place, tmp_path / "copy")
    assert tree(tmp_path / "copy") == tree(store.path)
    assert verify(tmp_path / "copy") == []
    pulled(place, tmp_path / "few", ["one"])
    assert Store.open(tmp_path / "few").names == ["one"]
    merge(tmp_path / "few", store.path, silent)
    there, mirror = Store.open(tmp_path / "few"), opened(place)
    for index in range(len(store.plan)):
        wanted = store.scores("three")[index]
        assert np.array_equal(there.scores("three")[index], wanted)
        assert np.array_equal(mirror.scores("three")[index], wanted)
