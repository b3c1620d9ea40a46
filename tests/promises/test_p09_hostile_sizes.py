"""P09: what a publisher claims cannot exhaust memory or disk, though every digest of his is right.

Each attack runs in a process of its own kind and its peak of memory is read from the kernel: it may take what the files
take on disk and 256 MiB more. That a pull never writes more than was declared is in tests/share/test_faults.py.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.errors import StoreError
from cache.pages import check_pages
from cache.store import Store
from tests.promises.grounds import copied, in_memory, measured, opened, reparented, resealed
from tests.promises.ledger import all_kept

ALLOWED = 256 << 20
REFUSED = {
    "store.bad_table", "store.inconsistent", "store.bad_settings", "store.bad_header", "store.bad_index", "store.wrong_size",
    "store.bad_manifest", "plan.foreign", "store.not_finite", "disk.too_small",
}  # fmt: skip

OPEN = """
from tests.promises.grounds import opened
for name in sorted(p.name for p in Path(sys.argv[1]).iterdir()):
    told[name] = attack(lambda: opened(Path(sys.argv[1]) / name))
"""


def judged(told: dict[str, Any], declared: Callable[[str], int]) -> list[str]:
    """A complaint for each attack that was taken, or took too much."""
    return [
        f"{name}: {found}"
        if found["code"] not in REFUSED or found["grown"] > declared(name) + ALLOWED
        else ""
        for name, found in told.items()
    ]


def bytes_below(folder: Path) -> int:
    return sum(p.stat().st_blocks * 512 for p in folder.rglob("*") if p.is_file())


# ---- tables that unpack to gigabytes

TEXT = "x" * 1_000_000


def of_runs(schema: pa.Schema, rows: int) -> pa.Table:
    """Rows that are all the same, which runs and dictionaries make small; or one user who bought that often."""
    columns, users = [], any(pa.types.is_list(field.type) for field in schema)
    for field in schema:
        if field.type == pa.string():
            text = TEXT if field.name == "title" else ""
            columns.append(pa.array([text] * (1 if users else rows)))
        elif pa.types.is_list(field.type):
            offsets, values = pa.array([0, rows], pa.int32()), pa.array(np.zeros(rows, np.int32))
            columns.append(pa.ListArray.from_arrays(offsets, values, type=field.type))
        else:
            columns.append(pa.array(np.zeros(rows, np.int32)).cast(field.type))
    return pa.table(columns, schema=schema)


def bomb(path: Path, rows: int, **options: Any) -> None:
    schema = pq.read_schema(path)
    pq.write_table(
        of_runs(schema, rows),
        path,
        **{"compression": "zstd", "write_page_checksum": True, **options},
    )


#: the table, rows in millions, how it is written, which counts of the manifest are made to say so
BOMBS: dict[str, tuple[str, float, dict[str, Any], tuple[str, ...]]] = {
    "texts in a dictionary": ("dataset/items.parquet", 4e-4, {}, ("items",)),
    "texts one by one": ("dataset/items.parquet", 4e-4, {"use_dictionary": False}, ("items",)),
    "texts in deltas": (
        "dataset/items.parquet", 4e-4,
        {"use_dictionary": False, "column_encoding": {"title": "DELTA_BYTE_ARRAY"}}, ("items",),
    ),
    "an endless history": ("dataset/sequences.parquet", 64, {}, ("interactions",)),
    "slots in runs": ("plan/plan.parquet", 24, {}, ("slots",)),
    "slots in zstd": ("plan/plan.parquet", 24, {"use_dictionary": False}, ("slots",)),
    "slots in deltas": (
        "plan/plan.parquet", 24,
        {"use_dictionary": False, "column_encoding": {"slot": "DELTA_BINARY_PACKED"}}, ("slots",),
    ),
    "instances in runs": ("plan/instances.parquet", 48, {}, ("instances",)),
    "instances nobody declared": ("plan/instances.parquet", 48, {}, ()),
}  # fmt: skip


def test_tables_that_unpack_to_gigabytes(long: bool) -> None:
    """To 400 MB each; in the short run to a fifth of that, which must be refused all the same and is made sooner."""
    with in_memory() as folder:
        (folder / "stores").mkdir()
        for name, (table, millions, options, counts) in BOMBS.items():
            store = copied(folder / "stores" / name)
            rows = int(millions * 1_000_000 / (1 if long else 5))
            bomb(store / table, rows, **options)
            new = dict.fromkeys(counts, rows)
            if "interactions" in new:
                new["users"] = 1
            part = (store / table).parent / "manifest.json"
            resealed(part, lambda value, new=new: value["counts"].update(new))
            reparented(store)
        told = measured(OPEN, folder / "stores")
        assert told.keys() == BOMBS.keys()
        all_kept("P09", judged(told, lambda name: bytes_below(folder / "stores" / name)))


# ---- numbers in manifests

NUMBERS: dict[str, tuple[str, str, str, Any]] = {
    f"{part} {kind} {name} {number}": (part, kind, name, number)
    for part, kind, name in (
        ("dataset", "counts", "items"), ("dataset", "counts", "users"), ("dataset", "counts", "interactions"),
        ("dataset", "settings", "max_length"),
        ("plan", "counts", "batches"), ("plan", "counts", "columns"), ("plan", "counts", "instances"),
        ("plan", "counts", "slots"),
        ("plan", "settings", "batch_size"), ("plan", "settings", "buckets"), ("plan", "settings", "rounds"),
        ("scores/one", "counts", "columns"), ("scores/one", "settings", "batches_per_shard"),
        ("factors/one", "counts", "width"), ("factors/one", "settings", "rows_per_file"),
    )
    for number in ((1 << 31) + 7, (1 << 62) - 1)
}  # fmt: skip


def test_numbers_in_manifests_that_ask_for_room() -> None:
    with in_memory() as folder:
        (folder / "stores").mkdir()
        for place, (part, kind, name, number) in NUMBERS.items():
            store = copied(folder / "stores" / place.replace("/", "-"))
            resealed(
                store / part / "manifest.json",
                lambda value, kind=kind, name=name, number=number: value[kind].update(
                    {name: number}
                ),
            )
            reparented(store)
        told = measured(OPEN, folder / "stores")
        assert len(told) == len(NUMBERS)
        # a score set of larger batches than the plan has is only a set of another size: batch_size alone is no attack
        all_kept("P09", judged(told, lambda name: bytes_below(folder / "stores" / name)))


# ---- files that lie about themselves

HEADER = "{'descr': '<f2', 'fortran_order': False, 'shape': (%d, 8), }"


def npy(path: Path, text: str) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:10] + text.encode().ljust(117) + b"\n" + data[128:])


def enlarged(path: Path) -> None:
    """400 MB of nothing, which take no room on disk: a zarr.json that nobody should read."""
    os.truncate(path, 400 << 20)


def index(path: Path, offset: int, size: int) -> None:
    """A shard whose index says that its chunks are elsewhere."""
    data = bytearray(path.read_bytes())
    data[-4 - 16 : -4] = struct.pack("<QQ", offset, size)
    path.write_bytes(data)


LIES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "npy of 2^40 rows": ("factors/one/items/0000000.npy", lambda p: npy(p, HEADER % 2**40)),
    "npy of objects": (
        "factors/one/items/0000000.npy", lambda p: npy(p, HEADER.replace("<f2", "|O") % 9),
    ),
    "zarr.json of 400 MB": ("scores/one/scores.zarr/zarr.json", enlarged),
    "zarr.json of another shape": (
        "scores/one/scores.zarr/zarr.json",
        lambda p: p.write_bytes(p.read_bytes().replace(b'"shape": [\n  ', b'"shape": [\n  99999999')),
    ),
    "a chunk beyond the end": ("scores/one/scores.zarr/c.0.0.0", lambda p: index(p, 2**60, 2**60)),
    "a chunk of everything": ("scores/one/scores.zarr/c.0.0.0", lambda p: index(p, 0, 2**63)),
    "a shard that is a zstd bomb": (
        "scores/one/scores.zarr/c.0.0.0",
        lambda p: p.write_bytes(pa.compress(bytes(64 << 20), "zstd", asbytes=True)[: p.stat().st_size].ljust(p.stat().st_size)),
    ),
}  # fmt: skip


def test_files_that_lie_about_themselves() -> None:
    with in_memory() as folder:
        (folder / "stores").mkdir()
        for name, (file, harm) in LIES.items():
            store = copied(folder / "stores" / name)
            harm(store / file)
            _sealed_again(store / Path(*Path(file).parts[:2]), file)
        told = measured(OPEN, folder / "stores")
        assert told.keys() == LIES.keys()
        all_kept("P09", judged(told, lambda name: bytes_below(folder / "stores" / name)))


def _sealed_again(part: Path, file: str) -> None:
    """The size and digest of that one file put right, without reading it all into memory here."""
    from cache.digest import sha256_file

    path = part.parents[1] / file

    def change(value: dict[str, Any]) -> None:
        for entry in value["files"]:
            if file.endswith(entry["path"]):
                entry.update(size=path.stat().st_size, sha256=sha256_file(path))

    resealed(part / "manifest.json", change)


# ---- servers

ENDLESS = """
import shutil
from cache.mirror import open_mirror
from cache.remote import locate
from pipeline.share import pull
from tests.promises.grounds import serving, silent
from tests.places import _Handler

folder, store = Path(sys.argv[1]), Path(sys.argv[2])
from pipeline.share import push
with serving(folder) as (url, fake):
    push(store, locate(url), (), silent)
    plain, block = _Handler.do_GET, b"x" * (1 << 16)

    def endless(self):
        key = self._key()[0]
        if not key.endswith(fake.victim):
            return plain(self)
        self.send_response(206 if self.headers.get("Range") else 200)
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("ETag", '"x"')
        if fake.kind == "claimed":
            self.send_header("Content-Length", str(1 << 50))
        else:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        sent = 0
        try:
            while sent < (4 << 30):
                self.wfile.write(block if fake.kind == "claimed" else b"10000\\r\\n" + block + b"\\r\\n")
                sent += len(block)
        except OSError:
            pass

    _Handler.do_GET = endless
    for fake.kind in ("claimed", "chunked"):
        for fake.victim in ("plan/manifest.json", "plan/plan.parquet", "scores/one/scores.zarr/c.0.0.0"):
            name = f"{fake.kind} {fake.victim}"
            shutil.rmtree(folder / "home", ignore_errors=True)
            told[name] = attack(lambda: pull(locate(url), folder / "home" / "x", (), silent))
            told[name]["disk"] = sum(p.stat().st_size for p in (folder / "home").rglob("*") if p.is_file())
            told[name]["made"] = (folder / "home" / "x").exists()
"""


def test_a_body_without_end_is_not_read_to_its_end() -> None:
    with in_memory() as folder:
        store = copied(folder / "store")
        told = measured(ENDLESS, folder, store)
        assert len(told) == 6
        declared = bytes_below(store)
        all_kept(
            "P09",
            [
                ""
                if found["code"] in {"store.wrong_size", "store.bad_manifest", "remote.failed"}
                and found["grown"] <= ALLOWED
                and found["disk"] <= declared
                and not found["made"]
                else f"{name}: {found}"
                for name, found in told.items()
            ],
        )


# ---- the walk over page headers


def test_every_table_that_we_write_passes_and_a_limit_is_a_limit() -> None:
    with in_memory() as folder:
        store = copied(folder / "store")
        for path in store.rglob("*.parquet"):
            data = path.read_bytes()
            metadata = pq.read_metadata(path)
            check_pages(data, metadata, 1 << 20)
            with pytest.raises(ValueError, match="claim more than 10 bytes"):
                check_pages(data, metadata, 10)
            with pytest.raises(ValueError, match="outside the file"):
                check_pages(data[:20], metadata, 1 << 20)


@settings(max_examples=30)
@given(data=st.data())
def test_a_table_with_any_bytes_changed_is_read_or_refused_in_our_words(
    data: st.DataObject,
) -> None:
    """Sealed again by the publisher: digests are right, so only decoding stands between him and the reader."""
    table = data.draw(
        st.sampled_from(
            ["plan/plan.parquet", "plan/instances.parquet", "dataset/sequences.parquet"]
        )
    )
    with in_memory() as folder:
        store = copied(folder / "store")
        path = store / table
        spoilt = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(spoilt)
        reparented(store)
        try:
            opened(store)
        except StoreError as error:
            assert "\n" not in str(error)
        all_kept("P09", [""])


def test_empty_cells_are_refused() -> None:
    with in_memory() as folder:
        for table in ("plan/plan.parquet", "plan/instances.parquet", "dataset/sequences.parquet"):
            store = copied(folder / "store")
            path = store / table
            whole = pq.read_table(path)
            first = pa.array([None, *whole[1].to_pylist()[1:]], whole.schema[1].type)
            pq.write_table(whole.set_column(1, whole.schema[1], first), path)
            reparented(store)
            with pytest.raises(StoreError, match="has empty cells") as caught:
                Store.open(store)
            all_kept("P09", ["" if caught.value.code == "store.bad_table" else table])
            shutil.rmtree(store)


def test_the_measure_measures() -> None:
    """Or else the tests above would prove nothing: 300 MB that are taken are seen, and given back they are gone."""
    told = measured(
        "told['a'] = attack(lambda: b'x' * (300 << 20)); told['b'] = attack(lambda: None)"
    )
    assert told["a"]["grown"] >= 299 << 20
    assert told["b"]["grown"] < 50 << 20
    assert json.dumps(told)
