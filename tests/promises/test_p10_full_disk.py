"""P10: a disk that refuses ends a build with one line, exit 5 and a path; once it is mended the same command goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cache.errors import DiskError
from cache.verify import verify
from tests.fakes import tiny_dataset, tiny_store, tree
from tests.journeys.shell import environment, words
from tests.promises import traced
from tests.promises.ledger import all_kept
from tests.promises.stores import copied, script, sealed_store, small_build

pytestmark = pytest.mark.timeout(1800)  # of the long attacks

TRACE_POINTS = Path(__file__).with_name("trace_points.py")
ROOT = str(Path(__file__).parents[2])
CAUSES = ("ENOSPC", "EDQUOT", "EIO")


@pytest.fixture
def clean(memory: Path) -> Path:
    return tiny_store(memory / "clean").path


@pytest.fixture(autouse=True)
def _pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.build.HISTORY_BLOCK", 32)
    monkeypatch.setattr("pipeline.build.FACTOR_BLOCKS", 1)


@contextmanager
def refusing(at: int, cause: int) -> Iterator[list[str]]:
    """Of fsync, rename, replace, mkdir and open for writing, call number `at` fails; yields those that were made."""
    seen: list[str] = []

    def watched(name: str, real):
        def call(*arguments, **named):
            if name == "open" and not arguments[1] & os.O_ACCMODE:
                return real(*arguments, **named)
            seen.append(name)
            if len(seen) - 1 == at:
                where = arguments[0] if isinstance(arguments[0], str) else None
                raise OSError(cause, os.strerror(cause), where)
            return real(*arguments, **named)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "rename", "replace", "mkdir", "open"):
            patch.setattr(os, name, watched(name, getattr(os, name)))
        yield seen


def test_every_call_refuses_once(memory, clean, long):
    store = copied(clean, memory / "store")
    with refusing(-1, 0) as calls:
        small_build(store)
    wanted, complaints = tree(store), []
    assert set(calls) == {"fsync", "rename", "replace", "mkdir", "open"}
    for at in range(0, len(calls), 1 if long else 3):
        cause = getattr(errno, CAUSES[at % 3])
        copied(clean, store)
        told = ""
        try:
            with refusing(at, cause):
                small_build(store)
        except DiskError as error:
            told = str(error)
            sound = error.exit == 5 and str(store) in told and os.strerror(cause) in told
            complaints.append("" if sound and "run the same command again" in told else told)
        except Exception as error:
            complaints.append(f"{calls[at]} {at}: {type(error).__name__}: {error}")
        else:
            complaints.append("" if tree(store) == wanted else f"{calls[at]} {at}: went unnoticed")
        complaints += map(str, verify(store))
        small_build(store)
        complaints.append("" if tree(store) == wanted else f"{calls[at]} {at}: differs")
    assert len(complaints) > 60
    all_kept("P10", complaints)


if traced.available():

    def test_every_system_call_refuses_once(memory, long):
        """Writes too, and removals: those of the lock and of what is done with."""
        whats = [f"error={cause}" for cause in CAUSES]
        complaints = json.loads(script(TRACE_POINTS, memory, "both", 1 if long else 8, *whats))
        assert len(complaints) > 15
        all_kept("P10", complaints)

    def test_the_command_says_so_and_goes_on(memory):
        """`kd-cache plan` makes a store, refused at a write, at an fsync and at a rename; then it is made."""
        tiny_dataset(memory / "data/toys")
        line, env = words("kd-cache plan --data data/toys"), environment(PYTHONPATH=ROOT)
        complaints = []
        for cause, call in zip(CAUSES, ("write", "fsync", "rename"), strict=True):
            inject = f"{call}:error={cause}:when={1 if call == 'write' else 3}"
            tracer = [
                "strace",
                "-f",
                "-o",
                os.devnull,
                "-e",
                f"trace={call}",
                "-e",
                f"inject={inject}",
            ]
            done = subprocess.run(
                [*tracer, *line], cwd=memory, env=env, capture_output=True, text=True, check=False
            )
            told = done.stderr.splitlines()
            sound = (
                done.returncode == 5
                and len(told) == 1
                and told[0].startswith("kd-cache: cache/.partial-toys-")
            )
            sound = sound and os.strerror(getattr(errno, cause)) in told[0]
            sound = sound and "disk.refused" in told[0]
            complaints.append("" if sound else f"{cause}: {done}")
            left = [path.name for path in (memory / "cache").iterdir()]
            complaints.append(f"{cause}: {left} is left" if left else "")
        subprocess.run(line, cwd=memory, env=env, capture_output=True, check=True)
        complaints += map(str, verify(memory / "cache/toys"))
        all_kept("P10", complaints)


def test_small_disks(memory, long):
    """Disks of so many kB, each filled by the build; then made larger."""
    if not long or os.geteuid() != 0:
        return
    clean = tiny_store(memory / "clean").path
    disk, complaints, full = memory / "disk", [], 0
    disk.mkdir()
    wanted = tree(sealed_store(memory / "twin"))
    for size in range(24, 200, 4):
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            return  # not permitted here
        try:
            try:
                store = copied(clean, disk / "store")
            except (OSError, shutil.Error):
                continue  # not even room for the dataset
            try:
                small_build(store)
            except DiskError as error:
                full += 1
                sound = "No space left on device" in str(error) and str(disk) in str(error)
                complaints.append("" if sound and not verify(store) else str(error))
            larger = ["mount", "-o", "remount,size=4m", str(disk)]
            subprocess.run(larger, check=True)
            small_build(store)
            complaints.append("" if tree(store) == wanted else f"{size} kB: differs")
        finally:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)  # maps keep it busy
    assert full > 5
    all_kept("P10", complaints)
