"""The whole road, once a session, on a shop of 120 shoppers: what every journey starts from."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.journeys.shell import Done, typed

#: what a newcomer types, in this order, with sizes that a test can afford
ROAD = {
    "sample": "kd-cache sample --out rows --users 120 --items 96",
    "ingest": "kd-cache ingest rows --out data/toys",
    "plan": "kd-cache plan --data data/toys --batch-size 128",
    "tune": "kd-teacher tune unisrec --data data/toys --epochs 1 --batch-size 256 --threads 1",
    "build": "kd-cache build --teacher unisrec",
    "fit": "kd-student fit --cache cache/toys --epochs 2 --threads 1",
}


class Road:
    """A folder with rows, data, tuned, cache and runs; and what each command said on the way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.said: dict[str, Done] = {}
        for name, line in ROAD.items():
            self.said[name] = typed(path, line)

    @property
    def store(self) -> Path:
        return self.path / "cache" / "toys"

    @property
    def run(self) -> Path:
        return self.path / "runs" / "toys" / "sasrec-distilled" / "seed-0"


@pytest.fixture(scope="session", autouse=True)
def _heard() -> Iterator[None]:
    """Ctrl-C reaches the commands even where the suite runs in the background and was told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def road(tmp_path_factory: pytest.TempPathFactory) -> Road:
    """To be read only."""
    folder = tmp_path_factory.mktemp("road") / "home"
    folder.mkdir()
    return Road(folder)


@pytest.fixture
def home(road: Road, tmp_path: Path) -> Path:
    """A copy of the road's folder, to do harm to."""
    folder = tmp_path / "home"
    shutil.copytree(road.path, folder)
    return folder
