"""The one door for bytes."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest

from cache.atomic import DEBRIS, append_line, put, scratch, staging, sweep, sweep_dead
from cache.errors import DiskError, StoreError


def test_put_writes_all_pieces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    put(tmp_path / "new" / "file", b"ab", memoryview(b"cd"))
    assert (tmp_path / "new" / "file").read_bytes() == b"abcd"
    assert os.listdir(tmp_path / "new") == ["file"]


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        put(tmp_path / "file", b"")
        with staging(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_a_refusing_disk_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskError, match="run the same command again"):
        put(tmp_path / "file" / "below", b"")


def test_a_failing_write_leaves_the_old_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "file", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match="No space left on device; free some space"):
        put(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_staging_publishes_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), staging(tmp_path / "out") as folder:
        (folder / "half").write_bytes(b"x")
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with staging(tmp_path / "out") as folder:
        (folder / "whole").write_bytes(b"x")
        assert not (tmp_path / "out").exists()
    assert os.listdir(tmp_path / "out") == ["whole"]
    with pytest.raises(StoreError, match="never overwritten"), staging(tmp_path / "out"):
        pass


def test_sweep_takes_debris_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a" / f"{DEBRIS}x").mkdir(parents=True)
    (tmp_path / "a" / f"{DEBRIS}y").write_bytes(b"")
    (tmp_path / "a" / "kept").write_bytes(b"")
    sweep(tmp_path)
    assert os.listdir(tmp_path / "a") == ["kept"]


def test_journal_lines(tmp_path: Path) -> None:
    append_line(tmp_path / "j", b"one")
    append_line(tmp_path / "j", b"two\n")
    assert (tmp_path / "j").read_bytes() == b"one\ntwo\n"


def test_a_journal_that_finds_no_room_is_as_it_was(tmp_path: Path) -> None:
    """Room for two bytes of four: a line that was half taken would spoil the next one."""
    append_line(tmp_path / "j", b"one")
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(b"one\n") + 2, most))
        with pytest.raises(DiskError, match="j: File too large"):
            append_line(tmp_path / "j", b"two")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        signal.signal(signal.SIGXFSZ, before)
    assert (tmp_path / "j").read_bytes() == b"one\n"
    append_line(tmp_path / "j", b"two")
    assert (tmp_path / "j").read_bytes() == b"one\ntwo\n"


def killed_while_writing(folder: Path) -> None:
    """A process that dies inside `staging` and inside `put`, as kill -9 has it."""
    pid = os.fork()
    if not pid:
        with staging(folder / "out") as aside:
            (aside / "half").write_bytes(b"x")
            os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
            put(folder / "file", b"x")
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL


def test_what_the_killed_left_goes_and_what_the_living_hold_stays(tmp_path: Path) -> None:
    killed_while_writing(tmp_path)
    assert len(os.listdir(tmp_path)) == 2
    with scratch(tmp_path, name="mine") as mine, staging(tmp_path / "other") as other:
        sweep_dead(tmp_path)
        assert sorted(os.listdir(tmp_path)) == sorted([mine.name, other.name])
    assert os.listdir(tmp_path) == ["other"]


def test_staging_takes_away_what_a_killed_one_left_for_that_name(tmp_path: Path) -> None:
    killed_while_writing(tmp_path)
    (left,) = tmp_path.glob(f"{DEBRIS}out-*")
    with staging(tmp_path / "out"):
        assert not left.exists()


@pytest.mark.parametrize("maker", ["mkdtemp", "mkstemp"])
def test_a_fresh_name_that_a_sweeper_is_just_at_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, maker: str
) -> None:
    """Another thread or process may sweep between the making of a name and the lock on it."""
    make = getattr(tempfile, maker)
    swept: list[str] = []
    sweeper: list[int] = []

    def met(**how: Any) -> Any:
        made = make(**how)
        name = made[1] if maker == "mkstemp" else made
        if not swept:
            swept.append(name)
            sweeper.append(os.open(name, os.O_RDONLY))
            fcntl.flock(sweeper[0], fcntl.LOCK_EX | fcntl.LOCK_NB)  # what it does before it removes
        return made

    monkeypatch.setattr(tempfile, maker, met)
    if maker == "mkdtemp":
        with scratch(tmp_path, name="mine") as folder:
            assert str(folder) != swept[0]
    else:
        put(tmp_path / "file", b"x")
        assert (tmp_path / "file").read_bytes() == b"x"
    assert Path(swept[0]).exists()  # it was left alone, and would be gone soon
    os.close(sweeper[0])
