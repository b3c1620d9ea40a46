"""A thread that takes its time to begin is waited for, and what is hashed beside the writing is always there."""

from __future__ import annotations

import _thread
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cache.digest import sha256_bytes
from cache.journal import Journal
from cache.thread import Thread


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


def test_a_large_file_is_journalled_with_its_digest(tmp_path: Path) -> None:
    journal, data = Journal(tmp_path), b"x" * (1 << 21)
    journal.put("file", data)
    assert journal.digest("file") == sha256_bytes(data)
    assert journal.whole("file")
