"""Moving files: several at once, each continued where it broke off, none counted before its sha256 is right.

A file on its way is `<stage>/.partial-<key>`; it gets its name by one rename once every byte is hashed. What an earlier run
left there is hashed again and continued; if the whole is wrong then, it is fetched once more from the beginning, as the
part may be torn. Threads are daemons: Ctrl-C does not wait for a slow server.
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import hashlib
import os
import queue
import shutil
import stat
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from cache.atomic import DEBRIS, disk_errors
from cache.digest import sha256_bytes, sha256_file
from cache.errors import DiskError, RemoteError
from cache.manifest import Entry
from cache.remote import BLOCK, Heard, Remote, changed

__all__ = ["WORKERS", "Job", "Report", "download", "fetch", "is_whole", "partial", "run_jobs"]

WORKERS = 4
ATTEMPTS = 3

Job = Callable[[Heard], None]
Report = Callable[[int, int], None]
"""report(bytes moved, bytes in all)."""


def download(
    remote: Remote, files: Sequence[tuple[str, Entry]], stage: Path, report: Report
) -> list[Entry]:
    """Bring files into `stage` by their names in the store; returns those that were moved, the others were whole.

    Raises:
        DiskError: ``disk.too_small``, before anything is moved.
    """
    _clear(stage, files)
    need = sum(
        entry.size - _size(partial(stage, name, entry))
        for name, entry in files
        if not (stage / name).exists()
    )
    free = shutil.disk_usage(stage).free
    if need > free:
        raise DiskError(
            f"{stage.parent}: {need:,} bytes are needed and {free:,} are free; "
            "free some space and run the same command again.",
            code="disk.too_small",
        )
    moved: list[Entry] = []

    def bring(name: str, entry: Entry, heard: Heard) -> None:
        target = stage / name
        if target.exists():
            if is_whole(target, entry, heard):
                return
            heard(-entry.size)
            target.unlink()
        fetch(remote, name, entry, target, stage, heard)
        moved.append(entry)

    jobs: list[Job] = [functools.partial(bring, name, entry) for name, entry in files]
    run_jobs(jobs, sum(entry.size for _, entry in files), report)
    return moved


def fetch(remote: Remote, name: str, entry: Entry, target: Path, stage: Path, heard: Heard) -> None:
    """Bring one file to `target`, or raise and leave at most a part in `stage`.

    Raises:
        StoreError: missing, of another size, or of other bytes than `entry` says.
        RemoteError: the place failed, again and again.
        DiskError: the disk refused.
    """
    aside = partial(stage, name, entry)
    failed = counted = 0

    def count(more: int) -> None:
        nonlocal counted
        counted += more
        heard(more)

    while True:
        count(-counted)  # of an attempt before this one
        continued, state = _hash_part(aside, entry, count)
        try:
            if continued < entry.size or not entry.size:
                with disk_errors(aside), aside.open("ab", buffering=0) as file:
                    for block in remote.read(name, entry.size, start=continued):
                        file.write(block)
                        state.update(block)
                        count(len(block))
                    os.fsync(file.fileno())
        except RemoteError:
            failed += 1
            if failed == ATTEMPTS:
                raise
            continue
        if f"sha256:{state.hexdigest()}" == entry.sha256:
            break
        aside.unlink()
        if not continued:
            changed(f"{remote.label}/{name}")
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        aside.replace(target)


def partial(stage: Path, name: str, entry: Entry) -> Path:
    """Where a file lies while it is on its way."""
    key = sha256_bytes(f"{name} {entry.sha256}".encode()).removeprefix("sha256:")
    return stage / f"{DEBRIS}{key}"


def _size(part: Path) -> int:
    """Bytes that an earlier run left of a file."""
    return part.stat().st_size if part.is_file() else 0


def _hash_part(aside: Path, entry: Entry, heard: Heard) -> tuple[int, hashlib._Hash]:
    """(bytes that an earlier run left, their running sha256)."""
    state, length = hashlib.sha256(), 0
    with disk_errors(aside):
        if aside.is_file() and aside.stat().st_size > entry.size:
            aside.unlink()
        if aside.is_file():
            with aside.open("rb", buffering=0) as file:
                while block := file.read(BLOCK):
                    state.update(block)
                    length += len(block)
                    heard(len(block))
    return length, state


def is_whole(path: Path, entry: Entry, heard: Heard) -> bool:
    """Whether a file is there with exactly those bytes; reads it. One that goes meanwhile is not there."""
    with disk_errors(path), contextlib.suppress(FileNotFoundError):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_size == entry.size:
            return sha256_file(path, progress=heard) == entry.sha256
    return False


def run_jobs(jobs: Iterable[Job], total: int, report: Report, *, workers: int = WORKERS) -> None:
    """Run every job on a few threads; the first failure stops the others and is raised here.

    Args:
        total: bytes that the jobs move together.
    """
    messages: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
    stop, lock, todo = threading.Event(), threading.Lock(), iter(jobs)

    def heard(count: int) -> None:
        if stop.is_set():
            raise _StoppedError
        messages.put(count)

    def work() -> None:
        try:
            while not stop.is_set():
                with lock:
                    job = next(todo, None)
                if job is None:
                    break
                job(heard)
        except BaseException as error:
            messages.put(error)
        messages.put(None)

    running, done, failure = workers, 0, None
    try:
        for _ in range(workers):
            # written in C: see cache/thread.py; nobody waits for one that waits for a network
            _thread.start_new_thread(work, ())
        while running:
            message = messages.get()
            if message is None:
                running -= 1
            elif isinstance(message, int):
                done += message
                report(done, total)
            elif failure is None:
                failure = message
                stop.set()
    finally:
        stop.set()
    if failure is not None:
        raise failure


def _clear(stage: Path, files: Sequence[tuple[str, Entry]]) -> None:
    """Remove what an earlier pull left in `stage` and this one has no use for."""
    wanted = {stage / name for name, _ in files}
    wanted |= {partial(stage, name, entry) for name, entry in files}
    with disk_errors(stage):
        stage.mkdir(parents=True, exist_ok=True)
        for path in sorted(stage.rglob("*"), reverse=True):
            if path.is_symlink() or (path.is_file() and path not in wanted):
                path.unlink()
            elif path.is_dir() and (path in wanted or not any(path.iterdir())):
                shutil.rmtree(path)


class _StoppedError(Exception):
    """Another job has failed, or the command was stopped."""
