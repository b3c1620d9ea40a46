"""What is given back to the system, and that a training run does so; and what is said when there is no more."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline import fit as fit_module
from pipeline.memory import give_back, short_of
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


#: more than any machine has; 2**60 bytes are 1,073,741,824 GiB
TOO_MUCH = {
    "torch": (lambda: torch.empty(2**60, dtype=torch.uint8), "1073741824.0 GiB at once, more"),
    "numpy": (lambda: np.empty(2**60, np.uint8), "1.00 EiB at once, more"),
    "arrow": (lambda: pa.allocate_buffer(2**60), "more"),
    "python": (lambda: bytearray(2**60), "more"),
}


@pytest.mark.parametrize(("ask", "said"), TOO_MUCH.values(), ids=TOO_MUCH)
def test_memory_that_is_not_there_is_one_sentence(ask: Callable[[], object], said: str) -> None:
    with pytest.raises((MemoryError, RuntimeError)) as found:
        ask()
    error = short_of(found.value)
    assert error is not None
    assert (error.code, error.exit) == ("memory.short", 8)
    assert str(error) == (
        f"memory: {said} than the machine or its accelerator has free was asked for; ask for less, such as a smaller "
        "--batch-size, --hidden or --max-length, or make room."
    )


def test_an_accelerators_memory_is_told_too_and_other_errors_are_not() -> None:
    # as CUDA's allocator words it: pytorch.org/docs/stable/notes/faq.html
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a ...")
    assert "memory: 2.50 GiB at once, more than" in str(short_of(full))
    assert short_of(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
