"""A build may be killed at any instant; the same command then ends in the byte-identical store."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache.store import Store
from pipeline.build import build
from tests.fakes import TableTeacher, tiny_store, tree

HARNESS = Path(__file__).with_name("kill_points.py")
SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where the system has that: SIGKILL does not ask what fsync really does."""
    if not SHARED_MEMORY.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as name:
        yield Path(name)


def kill(folder: Path, *how: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, str(HARNESS), str(folder), *how],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, object] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize(
    ("keep", "step", "least"),
    # both is made of the two others: of its 130 changes every fifth, a file being some six of them
    [("scores", 1, 50), ("factors", 1, 50), ("both", 5, 20), ("u8", 12, 5)],
)
def test_killed_before_each_change_to_the_disk(folder, keep, step, least):
    told = kill(folder, keep, "every", str(step))
    assert told["points"] >= least
    assert told["died"] == told["points"]
    assert told["different"] == []


def test_killed_at_random_times(folder):
    told = kill(folder, "both", "random", "15")
    assert told["died"] >= 15
    assert told["different"] == []


def test_many_writers_at_once(tmp_path):
    """One builds, the others are told; or they follow each other and find it built."""
    store = tiny_store(tmp_path / "store")
    script = (
        "import sys; from pathlib import Path;"
        f"sys.path.insert(0, {str(HARNESS.parents[2])!r});"
        "from cache.errors import StoreError; from cache.store import Store;"
        "from pipeline.build import build; from tests.fakes import TableTeacher\n"
        "store = Store.open(Path(sys.argv[1])); print('ready', flush=True); input()\n"
        "try: build(TableTeacher(), store, shard_bytes=400)\n"
        "except StoreError as error: sys.exit(0 if error.code == 'store.busy' else 1)\n"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(store.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for racer in racers:
        assert racer.stdout is not None
        racer.stdout.readline()
    for racer in racers:
        racer.communicate("\n", timeout=60)
    assert [racer.returncode for racer in racers] == [0] * 4
    twin = tiny_store(tmp_path / "twin")
    build(TableTeacher(), twin, shard_bytes=400)
    assert tree(store.path) == tree(twin.path)
    assert Store.open(store.path).names == ["table"]
    assert len(store.log.read_text().splitlines()) == 1
