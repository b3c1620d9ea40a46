"""P01: a build may be killed at any instant; the same command then ends in the byte-identical store, nothing beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.promises import traced
from tests.promises.ledger import all_kept, kept
from tests.promises.stores import script

pytestmark = pytest.mark.timeout(1800)  # of the long attacks

KILL_POINTS = Path(__file__).parents[1] / "pipeline" / "kill_points.py"
TRACE_POINTS = Path(__file__).with_name("trace_points.py")


def survived(told: dict[str, object], least: int) -> None:
    points, died, different = told["points"], told["died"], told["different"]
    assert isinstance(points, int)
    assert isinstance(different, list)
    kept("P01", points - len(different), points)
    assert different == []
    assert points >= least
    assert died == points


@pytest.mark.parametrize(
    ("keep", "step", "least"),
    # both is made of the two others: of its 130 changes every fifth, a file being some six of them
    [("scores", 1, 50), ("factors", 1, 50), ("both", 5, 20), ("u8", 12, 5)],
)
def test_killed_before_each_change_to_the_disk(memory, long, keep, step, least):
    told = json.loads(script(KILL_POINTS, memory, keep, "every", 1 if long else step))
    survived(told, least)


def test_killed_at_random_times(memory, long):
    count = 300 if long else 15
    told = json.loads(script(KILL_POINTS, memory, "both", "random", count))
    assert told["died"] >= count
    survived(told | {"died": count}, count)


if traced.available():

    @pytest.mark.parametrize("keep", ["both"])
    def test_killed_at_each_system_call_that_touches_the_store(memory, long, keep):
        """Between two writes of a file, too, where no hook inside the program can reach."""
        step = 1 if long else 7
        complaints = json.loads(script(TRACE_POINTS, memory, keep, step, "signal=SIGKILL"))
        assert len(complaints) * step > 120
        all_kept("P01", complaints)
