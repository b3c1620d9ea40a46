"""A thread that takes its time to begin is waited for, and what is hashed beside the writing is always there."""

from __future__ import annotations

import _thread
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cache.digest import sha256_bytes
from cache.journal import Journal
from cache.thread import Thread

#: a child that ends as programs do, while its parent's thread is at work; a hang is ended by the alarm
FORKED = """
import os, signal, sys, time
from cache.thread import Thread

thread = Thread(lambda: time.sleep(1))
thread.start()
child = os.fork()
if child == 0:
    signal.alarm(20)
    thread.join()
    print("child", flush=True)
    sys.exit(0)
status = os.waitpid(child, 0)[1]
thread.join()
print("parent", status)
"""


@pytest.fixture(autouse=True)
def slow_to_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    start = _thread.start_new_thread

    def later(work: Callable[[], None], given: tuple[()]) -> int:
        def wait() -> None:
            time.sleep(0.05)
            work()

        return start(wait, given)

    monkeypatch.setattr(_thread, "start_new_thread", later)


def test_a_thread_that_was_started_does_its_work_before_it_is_joined() -> None:
    done: list[int] = []
    thread = Thread(lambda: done.append(1))
    thread.start()
    thread.join()
    assert (done, thread.ended) == ([1], True)
    thread.join()  # as often as one likes


def test_a_thread_that_never_started_is_not_waited_for() -> None:
    thread = Thread(lambda: None)
    thread.join()
    assert thread.ended


def test_a_fork_does_not_wait_for_a_thread_that_it_does_not_have() -> None:
    said = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60, check=False
    )
    assert (said.returncode, said.stdout, said.stderr) == (0, "child\nparent 0\n", "")


def test_a_large_file_is_journalled_with_its_digest(tmp_path: Path) -> None:
    journal, data = Journal(tmp_path), b"x" * (1 << 21)
    journal.put("file", data)
    assert journal.digest("file") == sha256_bytes(data)
    assert journal.whole("file")
