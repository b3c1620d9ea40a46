"""What is given back to the system, and that a training run does so."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from pipeline import fit as fit_module
from pipeline.memory import give_back
from student.registry import find_student
from student.schedule import TrainSettings
from tests.student.small import shop


def held() -> int:
    """KiB of this process that no file is behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library")
def test_what_is_free_between_things_in_use_goes_back() -> None:
    """20,000 blocks of 5 KiB, of which every hundredth stays: the library keeps the 100 MB between them."""
    blocks = [bytearray(b"x" * 5_000) for _ in range(20_000)]
    kept = blocks[::100]
    del blocks
    before = held()
    give_back()
    assert before - held() > 50_000
    assert all(block == b"x" * 5_000 for block in kept)


@pytest.mark.parametrize(("seconds", "times"), [(0.0, 3), (3600.0, 0)])
def test_a_run_gives_back_between_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, times: int
) -> None:
    given: list[None] = []
    monkeypatch.setattr(fit_module, "_GIVE_BACK_AFTER", seconds)
    monkeypatch.setattr(fit_module, "give_back", lambda: given.append(None))
    store = shop(tmp_path / "store")
    config = find_student("sasrec").config(hidden=8, layers=1)
    settings = TrainSettings(epochs=3, curriculum=False)
    fit_module.fit(store, (), tmp_path / "run", config, settings)
    assert len(given) == times
