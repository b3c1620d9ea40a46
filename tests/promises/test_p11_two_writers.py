"""P11: of writers at once one builds and the others are told; where no lock is honoured all still end in the same bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.fakes import tiny_store
from tests.promises.ledger import all_kept
from tests.promises.stores import script, small_build

pytestmark = pytest.mark.timeout(1800)  # of the long attacks

HARNESS = Path(__file__).with_name("race_points.py")

SEALS = 2  # of a build of both: the log has a line each


@pytest.fixture
def size(long: bool) -> tuple[int, int]:
    """(processes, rounds)."""
    return (8, 50) if long else (3, 5)


def test_one_builds_and_the_others_are_told_who(memory, size):
    complaints = []
    for told in json.loads(script(HARNESS, memory, *size, "locked")):
        # who comes when all is done finds it built: he ends well, and seals nothing
        refusals = [line for line in told["said"] if not line.startswith("store.busy: ")]
        sound = {0} <= set(told["statuses"]) <= {0, 3} and told["lines"] == SEALS and told["same"]
        complaints.append("" if sound and not refusals and not told["complaint"] else told)
    all_kept("P11", complaints)


def test_with_a_lock_that_everybody_gets_nothing_is_sealed_twice_or_torn(memory, size):
    """As on some network disks: losers may find their files gone, and say so; the next command ends in the same bytes."""
    complaints = []
    for told in json.loads(script(HARNESS, memory, *size, "unlocked")):
        sound = set(told["statuses"]) <= {0, 3, 5} and told["lines"] <= SEALS
        sound &= all("run the same" in line for line in told["said"])
        complaints.append("" if sound and not told["complaint"] else told)
    all_kept("P11", complaints)


def test_nothing_half_written_ever_lies_in_a_set(memory, monkeypatch):
    """What one writer has not finished must not be there when another one publishes the set."""
    path, seen, sync = tiny_store(memory / "store").path, [], os.fsync

    def looking(handle: int) -> None:
        seen.extend(path.rglob("set/**/.partial-*"))
        sync(handle)

    monkeypatch.setattr(os, "fsync", looking)
    small_build(path)
    all_kept("P11", [", ".join(map(str, seen))])
