"""What is made ahead: a thread whose start is interrupted, and one that the program's end finds at work."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from student.ahead import ahead

#: a generator that nobody closes, its thread in the middle of a tensor (gathers, which let other threads run) as Python ends
LEFT_OPEN = """
import torch
from student.ahead import ahead

torch.set_num_threads(1)
many = torch.zeros(200_000, dtype=torch.long)

def make(_: int) -> float:
    return sum(float(many[many][0]) for _ in range(200))

batches = ahead(make, range(10_000), 2)
"""


class SignalledError(BaseException):
    """As a signal's handler raises it."""


def after(start: Callable[[threading.Thread], None], wait: float) -> Callable[..., None]:
    """`Thread.start` with a signal that comes `wait` seconds after the thread has begun."""

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        time.sleep(wait)
        raise SignalledError

    return interrupted


@pytest.mark.parametrize("wait", [0, 0.05])
def test_a_start_that_is_interrupted_leaves_no_thread(
    wait: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def make(number: int) -> int:
        time.sleep(0.01)
        made.append(number)
        return number

    monkeypatch.setattr(threading.Thread, "start", after(threading.Thread.start, wait))
    with pytest.raises(SignalledError):
        next(ahead(make, range(1_000_000), 100))
    monkeypatch.undo()
    assert not [one for one in threading.enumerate() if one.name == "prepare-batches"]
    assert len(made) < 100


@pytest.mark.parametrize("ended", ["next(batches)", "next(batches); raise KeyboardInterrupt"])
def test_the_programs_end_waits_for_what_is_being_made(ended: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEFT_OPEN + ended],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "terminate" not in done.stderr
    assert done.returncode == (-2 if "raise" in ended else 0)
