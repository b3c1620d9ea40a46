"""The promises of docs/promises.md: `make test` runs their short attacks, `make promises` the long ones too (`--long`)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Whether the long attacks were asked for."""
    return bool(request.config.getoption("--long"))


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where the system has that: for attacks that do not ask what fsync really does."""
    if not Path("/dev/shm").is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)
