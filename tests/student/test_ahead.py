"""What is made ahead: stopped by signals that come anywhere, a start too, and by a program's end that finds it at work."""

from __future__ import annotations

import _thread
import subprocess
import sys
import time
from typing import Any

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


#: stopped 500 times by a signal that may come anywhere: in a start, a wait, a lock
STOPPED = """
import random, signal, sys
from student.ahead import ahead

class Stopped(BaseException):
    pass

def stop(*_):
    raise Stopped

signal.signal(signal.SIGALRM, stop)
sys.setswitchinterval(1e-5)
draws, stopped = random.Random(0), 0
for _ in range(500):
    batches = ahead(lambda number: number, range(10**9), 2)
    try:
        signal.setitimer(signal.ITIMER_REAL, draws.uniform(1e-4, 3e-3))
        for _ in batches:
            pass
    except Stopped:
        stopped += 1
    batches.close()
print(stopped)
"""


def test_a_signal_at_any_time_is_what_surfaces_and_nobody_waits_for_ever() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOPPED], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "500\n", "")


@pytest.mark.parametrize("wait", [0, 0.05])
def test_a_start_that_is_interrupted_leaves_no_thread(
    wait: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    start = _thread.start_new_thread

    def make(number: int) -> int:
        time.sleep(0.01)
        made.append(number)
        return number

    def interrupted(*given: Any) -> None:
        start(*given)
        time.sleep(wait)
        raise SignalledError

    monkeypatch.setattr(_thread, "start_new_thread", interrupted)
    with pytest.raises(SignalledError):
        next(ahead(make, range(1_000_000), 100))
    monkeypatch.undo()
    before = len(made)
    assert before > 0 or wait == 0
    time.sleep(0.1)
    assert len(made) == before < 100


def test_a_signal_before_the_start_leaves_nothing_to_wait_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: Any) -> None:
        raise SignalledError

    monkeypatch.setattr(_thread, "start_new_thread", interrupted)
    with pytest.raises(SignalledError):
        next(ahead(str, range(3), 1))


def test_no_more_is_made_than_there_is_room_for() -> None:
    made: list[int] = []
    batches = ahead(made.append, range(9), 3)
    next(batches)
    time.sleep(0.2)
    assert made == [0, 1, 2, 3]  # the one that was taken, and three that wait
    batches.close()
    assert made == [0, 1, 2, 3]


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
