"""P15: old formats stay readable, newer ones are refused politely.

A store was written once and kept: whatever is changed in the code, these bytes read back as these values.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from cache.describe import describe
from cache.errors import StoreError
from cache.store import Store
from cache.verify import verify
from tests.promises.grounds import code_of, copied, in_memory, opened, resealed, typed
from tests.promises.ledger import all_kept, kept

GOLDEN = Path(__file__).parents[1] / "golden"
STORE = GOLDEN / "store_v1"


def test_the_golden_store_is_sound():
    assert verify(STORE) == []
    assert describe(Store.open(STORE)).score_sets[1].quality == {"ndcg@10": 0.0625}


@pytest.mark.parametrize(("name", "tau"), [("table", 0.07), ("pairs", 0.5)])
def test_the_golden_store_gives_the_same_values(name, tau):
    wanted = np.load(GOLDEN / f"store_v1_{name}.npy", allow_pickle=False)
    reader = Store.open(STORE).scores(name)
    assert reader.tau == tau
    for index in range(len(reader)):
        rows, width = reader.shape(index)
        assert np.array_equal(reader[index], wanted[index, :rows, :width])
    kept("P15", len(reader), len(reader))
    stock = zarr.open_array(STORE / "scores" / name / "scores.zarr", mode="r")[:]
    assert np.array_equal(stock, wanted, equal_nan=True)


def test_the_golden_factors_give_the_same_vectors():
    histories, items = (
        np.load(GOLDEN / f"store_v1_table_{table}.npy", allow_pickle=False)
        for table in ("histories", "items")
    )
    reader = Store.open(STORE).factors("table")
    # 15 instances and 7 items, five rows a file
    assert (reader.layout.per_file, reader.tau, reader.quality) == (5, 0.07, 0.0625)
    assert histories.shape[1] == items.shape[1] == 8
    assert np.array_equal(reader.history_vectors(np.arange(len(histories))), histories)
    assert np.array_equal(reader.item_vectors(), items)
    for table, wanted in (("histories", histories), ("items", items)):
        files = sorted((STORE / "factors" / "table" / table).glob("*.npy"))
        stock = np.concatenate([np.load(path, allow_pickle=False) for path in files])
        assert np.array_equal(stock, wanted)
        assert len(files) == -(-len(wanted) // 5) > 1
    # their product, at the set's temperature, is what the golden scores hold, but for the rounding of both
    scores = Store.open(STORE).scores("table")
    for index in range(len(reader)):
        assert np.abs(reader[index].astype(float) - scores[index].astype(float)).max() < 0.03


def test_a_newer_format_is_refused_politely(tmp_path):
    store = tmp_path / "store"
    shutil.copytree(STORE, store)
    manifest = store / "scores" / "table" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"format":1', b'"format":3'))
    with pytest.raises(StoreError, match="upgrade") as caught:
        Store.open(store).scores("table")
    assert caught.value.code == "store.newer_format"


@pytest.mark.parametrize("part", ["dataset", "plan", "scores/one", "factors/one"])
def test_any_newer_part_asks_for_an_upgrade_and_an_unknown_feature_is_refused(part):
    told = []
    with in_memory() as folder:
        for change, code in (
            ({"format": 3}, "store.newer_format"),
            ({"format": 10**18, "features": ["x"]}, "store.newer_format"),
            ({"features": ["x"]}, "store.bad_manifest"),
            ({"format": 0}, "store.bad_manifest"),
            ({"format": "1"}, "store.bad_manifest"),
            ({"format": 1.0}, "store.bad_manifest"),
        ):
            store = copied(folder / "store")
            resealed(
                store / part / "manifest.json", lambda value, change=change: value.update(change)
            )
            found = code_of(lambda store=store: opened(store))
            told.append("" if found == code else f"{part} {change}: {found}")
            shutil.rmtree(store)
    all_kept("P15", told)


def test_the_command_line_names_the_upgrade_and_ends_with_3():
    with in_memory() as folder:
        store = copied(folder / "store")
        resealed(store / "plan/manifest.json", lambda value: value.update(format=3))
        told = []
        for line in ("kd-cache show", "kd-cache verify", "kd-student fit"):
            done = typed(folder, *line.split(), "--cache", "store")
            polite = (
                done.status == 3 and done.code == "store.newer_format" and "upgrade" in done.err
            )
            told.append("" if polite else f"{line}: {done}")
    all_kept("P15", told)
