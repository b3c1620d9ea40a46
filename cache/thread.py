"""A thread that can be waited for whatever a Ctrl-C fell into, its start too.

The start of a `threading.Thread`, `queue.Queue`, `threading.Event` and executors take locks in Python. A Ctrl-C between
taking one and knowing of it leaves it taken, for which the other side waits without end, or releases it twice. All that this
one meets another in is written in C. The end of the program waits for every such thread: one that Python's end meets within
a tensor aborts the process. What the work raises is the work's own to catch and to hand over.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import os
import queue
import weakref
from collections.abc import Callable

__all__ = ["Thread", "ending"]


class Thread:
    """Runs `work` once, beside whoever starts it."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._ticket: queue.SimpleQueue[None] = queue.SimpleQueue()  #: whoever takes it goes first
        self._ticket.put(None)
        self._end: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._number: int | None = None
        self._started = False
        self.ended = False
        _threads.add(self)

    def start(self) -> None:
        """At most once."""
        _thread.start_new_thread(self._run, ())
        self._started = True

    def join(self) -> None:
        """Wait until it has ended; one whose start was interrupted, and that has not begun, never does anything."""
        if self._number == _thread.get_ident():  # the garbage collector may run anywhere
            return
        if not self._started and self._first():
            self.ended = True
        while not self.ended:
            with contextlib.suppress(queue.Empty):
                self._end.get(timeout=0.1)

    def _run(self) -> None:
        if not self._first():
            return
        self._number = _thread.get_ident()
        try:
            self._work()
        finally:
            self.ended = True
            self._end.put(None)

    def _first(self) -> bool:
        try:
            self._ticket.get_nowait()
        except queue.Empty:
            return False
        return True


def ending() -> bool:
    """Whether the program is about to end: work that goes on by itself is to leave off."""
    return _over


_threads: weakref.WeakSet[Thread] = weakref.WeakSet()
_over = False


@atexit.register
def _leave() -> None:
    global _over
    _over = True
    for thread in list(_threads):
        thread.join()


def _forked() -> None:
    for thread in list(_threads):
        thread.ended = True  # a child has none of its parent's threads


os.register_at_fork(after_in_child=_forked)
