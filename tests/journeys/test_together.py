"""The same build typed in two terminals at once: one store, and each says what it did."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tests.fakes import tree
from tests.journeys.conftest import Road
from tests.journeys.shell import LIMIT, environment, words

LINE = "kd-cache build --teacher unisrec --keep both --together"


def test_two_terminals_build_one_store(road: Road, home: Path) -> None:
    """120 shoppers are one block of histories: one of them does it, and the other waits or comes late."""
    store = home / "cache" / "toys"
    shutil.rmtree(store / "scores")
    typed = [
        subprocess.Popen(
            words(LINE),
            cwd=home,
            env=environment(RANK=str(rank), WORLD_SIZE="2"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=LIMIT) for process in typed]
    assert [process.returncode for process in typed] == [0, 0], said
    shares = []
    for out, _ in said:
        lines = out.splitlines()
        assert [line.partition(":")[0] for line in lines] == [
            "cache/toys/scores/unisrec",
            "cache/toys/factors/unisrec",
            "cache/toys",
        ]
        shares.append(re.sub(".*this process ", "", lines[2]))
    late = {"did 0 of 1 piece of the work", "came late, all was done"}
    assert "did 1 of 1 piece of the work" in shares
    assert set(shares) - {"did 1 of 1 piece of the work"} <= late
    assert len(set(shares)) == 2
    assert tree(store / "scores") == tree(road.store / "scores")
    assert sorted(path.name for path in (store / "factors").iterdir()) == ["unisrec"]
