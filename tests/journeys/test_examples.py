"""The examples of docs/examples, run as they stand on a store that a command made."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cache.store import Store
from pipeline.build import build
from tests.fakes import TableTeacher
from tests.student.small import shop

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = shop(tmp_path_factory.mktemp("shop") / "store", users=200, items=60)
    build(TableTeacher(), store)
    return store


@pytest.mark.parametrize("name", ["plain", "with_lightning"])
def test_an_example_learns_more_than_chance(store: Store, tmp_path: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", store.path, "6"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"^test (\S+) (\S+)$", done.stdout, re.MULTILINE))
    # of 60 items ten at random hold the right one in a sixth of the cases
    assert float(found["recall@10"]) > 1.5 * 10 / 60
