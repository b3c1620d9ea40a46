"""P17: training that is killed anywhere goes on to the same weights, bit for bit.

Killed before every step, before every change to the disk and, by strace, at every system call that makes one, so in the
middle of writing each checkpoint and of the final files too; then run again and compared byte for byte. From the checkpoint
of every epoch: tests/student/test_loop_resume.py; the real command, and teachers in training: tests/journeys/test_killed.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.promises import traced
from tests.promises.grounds import in_memory
from tests.promises.ledger import all_kept, kept

HARNESS = Path(__file__).with_name("stop_fit.py")


def stopped(*how: str) -> dict[str, Any]:
    with in_memory() as folder:
        done = subprocess.run(
            [sys.executable, str(HARNESS), str(folder), *how],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=290, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


WAYS = [("steps", 5, 25), ("changes", 3, 30)]
if (
    traced.available()
):  # between two writes of a file, too, where no hook inside the program can reach
    WAYS.append(("calls", 9, 60))


@pytest.mark.parametrize(("how", "every", "least"), WAYS)
def test_killed_before_each_step_and_each_change_to_the_disk(
    how: str, every: int, least: int, long: bool
) -> None:
    told = stopped(how, "1" if long else str(every))
    assert told["points"] >= least // (1 if long else every)
    assert told["stopped"] == told["points"]
    kept("P17", told["points"] - len(told["different"]), told["points"])
    assert told["different"] == []
    all_kept("P17", [""])
