"""A push or pull may be killed before any change to the disk; the same command then ends as if it had not been."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("kill_share.py")


@pytest.mark.parametrize("verb", ["push", "pull"])
def test_killed_before_each_change_to_the_disk(tmp_path, verb):
    survived(tmp_path, verb, least=30)


@pytest.mark.parametrize("verb", ["push", "pull"])
def test_killed_while_factors_and_their_signature_join_a_store_that_is_there(tmp_path, verb):
    """And at every instant what can be seen of it is whole and signed."""
    survived(tmp_path, verb, "growing", least=15)


def survived(folder: Path, *how: str, least: int) -> None:
    done = subprocess.run(
        [sys.executable, str(HARNESS), str(folder), *how],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["points"] >= least
    assert told["died"] == told["points"]
    assert told["different"] == []
