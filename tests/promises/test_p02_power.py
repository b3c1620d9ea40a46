"""P02: nothing is lost or half sealed where the power goes, whichever of the bytes and names not yet fsynced are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.promises import traced
from tests.promises.ledger import all_kept
from tests.promises.power import WAYS, Disk, File
from tests.promises.stores import script

pytestmark = pytest.mark.timeout(1800)  # of the long attacks

HARNESS = Path(__file__).with_name("power_points.py")

if traced.available():

    @pytest.mark.parametrize(
        ("work", "step"), [("scores", 2), ("both", 3), ("hands", 3), ("plan", 2)]
    )
    def test_the_power_goes_before_an_fsync(memory, long, work, step):
        rounds = 12 if long else 1
        complaints = json.loads(script(HARNESS, memory, work, 1 if long else step, rounds))
        assert len(complaints) >= 4 * 8
        all_kept("P02", complaints)


def test_the_disk_that_forgets_by_hand(tmp_path):
    """One file is written and renamed over another; only what was fsynced is certain."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "a").write_bytes(b"old")
    disk = Disk(root)

    def path(name: str) -> bytes:
        return str(root / name).encode()

    def after(keeps: bool) -> dict[str, bytes]:
        target = tmp_path / "after"
        target.mkdir(exist_ok=True)
        for old in target.iterdir():
            old.unlink()
        disk.left(target, lambda: keeps, lambda file: file.synced)
        return {one.name: one.read_bytes() for one in target.iterdir()}

    disk.call("openat", [b"/", path("b")], 3, "O_CREAT")
    disk.call("write", [path("b"), b"newer"], 3, "")  # the system took three of five bytes
    assert after(False) == {"a": b"old"}
    assert after(True) == {"a": b"old", "b": b""}
    disk.call("fsync", [path("b")], 0, "")
    assert after(True) == {"a": b"old", "b": b"new"}
    disk.call("rename", [path("b"), path("a")], 0, "")
    assert after(False) == {"a": b"old"}
    assert after(True) == {"a": b"new"}
    disk.call("fsync", [str(root).encode()], 0, "")
    assert after(False) == {"a": b"new"}
    assert set(WAYS) > {"all lost"}
    assert File().data == b""
