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
    done = subprocess.run(
        [sys.executable, str(HARNESS), str(tmp_path), verb],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["points"] >= 30
    assert told["died"] == told["points"]
    assert told["different"] == []
