"""P03: any flipped bit, in any file of a store, is found, and the file is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cache.errors import StoreError
from cache.layout import crc32c
from cache.manifest import read_manifest, seal
from cache.store import Store
from cache.verify import verify
from tests.journeys.shell import quick
from tests.promises.ledger import all_kept
from tests.promises.stores import copied, files, read_all, sealed_store

pytestmark = pytest.mark.timeout(1800)  # of the long attacks


@pytest.fixture
def path(memory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("pipeline.build.HISTORY_BLOCK", 16)
    monkeypatch.setattr("pipeline.build.FACTOR_BLOCKS", 1)
    return sealed_store(memory / "cache/toys")


def named(file: Path) -> Path:
    """A manifest that lies about a file is told by that file's name, or by its part's."""
    return file.parent if file.name == "manifest.json" else file


def bits(file: Path, dice: np.random.Generator, count: int) -> list[int]:
    """The first and the last, and random ones between."""
    size = file.stat().st_size * 8
    return sorted({0, 7, size - 8, size - 1, *map(int, dice.permutation(size)[:count])})


def flip(file: Path, bit: int) -> bytes:
    """The bytes that were there."""
    good = file.read_bytes()
    bad = bytearray(good)
    bad[bit // 8] ^= 1 << bit % 8
    file.write_bytes(bad)
    return good


def test_every_flipped_bit_is_found_by_verify(path, long):
    everything, dice, complaints = files(path), np.random.default_rng(0), []
    each = -(-(20_000 if long else 4_096) // len(everything))
    assert {file.suffix for file in everything} == {".json", ".npy", ".parquet", ".0"}
    for file in everything:
        for bit in bits(file, dice, each):
            good = flip(file, bit)
            told = [str(error) for error in verify(path) if isinstance(error, StoreError)]
            sound = any(str(named(file)) in one for one in told)
            complaints.append("" if sound else f"{file}, bit {bit}: {told}")
            file.write_bytes(good)
    assert verify(path) == []
    assert len(complaints) >= 4_096
    all_kept("P03", complaints)


def test_every_flipped_bit_stops_whoever_reads(path, long):
    dice, complaints = np.random.default_rng(1), []
    read_all(path)
    for file in files(path):
        for bit in bits(file, dice, 400 if long else 24):
            good = flip(file, bit)
            try:
                read_all(path)
            except StoreError as error:
                complaints.append("" if str(named(file)) in str(error) else f"{file}: {error}")
            else:
                complaints.append(f"{file}, bit {bit}: was read")
            file.write_bytes(good)
    all_kept("P03", complaints)


VICTIMS = {
    "kd-cache verify": [
        "dataset/items.parquet",
        "plan/manifest.json",
        "scores/table/scores.zarr/c.1.0.0",
        "factors/table/items/0000000.npy",
    ],
    "kd-student fit --cache cache/toys --epochs 1 --threads 1": [
        "dataset/sequences.parquet",
        "plan/plan.parquet",
        "scores/table/scores.zarr/zarr.json",
        "scores/table/scores.zarr/c.0.0.0",
    ],
}


@pytest.mark.parametrize("line", VICTIMS)
def test_the_commands_name_the_file_and_exit_with_3(path, memory, line):
    complaints = []
    for number, name in enumerate(VICTIMS[line]):
        home = copied(memory / "cache", memory / f"home{number}/cache").parent
        file = home / "cache/toys" / name
        flip(file, file.stat().st_size * 4)
        done = quick(home, line, expect=None)
        sound = done.status == 3 and f"cache/toys/{named(Path(name))}" in done.err
        complaints.append("" if sound and not (home / "runs").exists() else f"{name}: {done}")
    all_kept("P03", complaints)


def test_an_index_that_is_sealed_but_false_is_refused(path):
    """By someone who can seal: two places of the index point at one chunk, and every digest is right."""
    folder = path / "scores/table"
    name = "scores.zarr/c.0.0.0"
    layout = Store.open(path).scores("table").layout
    data = bytearray((folder / name).read_bytes())
    index = len(layout.index(0))
    data[-index : -index + 16] = data[-index + 16 : -index + 32]
    table = np.frombuffer(bytes(data[-index:-4]), np.uint8)
    data[-4:] = crc32c(table).to_bytes(4, "little")
    (folder / name).write_bytes(data)
    old = read_manifest(folder, "scores")
    (folder / "manifest.json").unlink()
    seal(folder, kind="scores", parents=old.parents, settings=old.settings, counts=old.counts)
    with pytest.raises(StoreError, match="its index is not the one of its layout") as caught:
        Store.open(path).scores("table")[0]
    all_kept("P03", ["" if str(folder / name) in str(caught.value) else str(caught.value)])
