"""What a clock says of a run's epochs, a line each, in a file beside the run, whose own bytes know nothing of it.

    {"epoch": 5, "stage": "round 1", "instances": 34101, "seconds": 1.6, "validation_seconds": 0.4,
     "instances_per_second": 21313.1}

`seconds` are those of the steps, and so is the speed: ranking takes some students a hundred times as long as an epoch of
steps. The time in which a checkpoint is written belongs to neither.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from cache.atomic import append_line
from student.state import EpochRecord

__all__ = ["Times"]


class Times:
    """Stops the time of one run's epochs, one after the other; the first begins at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.begin()

    def begin(self) -> None:
        """An epoch begins."""
        self._began = time.perf_counter()
        self._trained: float | None = None

    def validate(self) -> None:
        """Its steps are done and validation begins; in an epoch without one this is never called."""
        self._trained = time.perf_counter()

    def end(self, epoch: EpochRecord) -> float:
        """It is over: writes its line; its instances a second."""
        now = time.perf_counter()
        trained = now if self._trained is None else self._trained
        rate = epoch.instances / (trained - self._began)
        line = {
            "epoch": epoch.epoch + 1,
            "stage": epoch.stage,
            "instances": epoch.instances,
            "seconds": round(trained - self._began, 3),
            "validation_seconds": round(now - trained, 3),
            "instances_per_second": round(rate, 1),
        }
        append_line(self._path, json.dumps(line).encode())
        return rate
