"""Work done ahead of whoever asks for it, on a background thread.

The order and the results do not depend on the thread's timing, and an error surfaces at the thing it belongs to. Whoever
leaves off before the last one closes the generator, which waits for the thread. The end of the program waits too, for what
nobody closed and for a thread whose start Ctrl-C fell into: one that Python's end meets within a tensor aborts the process.
"""

from __future__ import annotations

import atexit
import queue
import threading
import weakref
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

__all__ = ["ahead"]

Asked = TypeVar("Asked")
Made = TypeVar("Made")

_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
_over = threading.Event()  #: the program is


def ahead(
    make: Callable[[Asked], Made], order: Iterable[Asked], most: int
) -> Generator[Made, None, None]:
    """`make` of each in turn, each ready before it is asked for, at most `most` (at least 1) at a time."""
    ready: queue.Queue[tuple[Made] | BaseException | None] = queue.Queue(maxsize=max(1, most))
    abandoned = threading.Event()

    def wanted() -> bool:
        return not (abandoned.is_set() or _over.is_set())

    def hand_over(thing: tuple[Made] | BaseException | None) -> None:
        while wanted():
            try:
                ready.put(thing, timeout=0.1)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            for asked in order:
                if not wanted():
                    return
                hand_over((make(asked),))
            hand_over(None)
        except BaseException as error:
            hand_over(error)

    thread = threading.Thread(target=work, name="prepare-batches", daemon=True)
    _threads.add(thread)
    try:
        thread.start()
        while (thing := ready.get()) is not None:
            if isinstance(thing, BaseException):
                raise thing
            yield thing[0]
    finally:
        abandoned.set()
        _join(thread)


def _join(thread: threading.Thread) -> None:
    # the garbage collector may run anywhere, and a start that was interrupted may not know of its thread yet
    if thread is not threading.current_thread() and thread.is_alive():
        thread.join()


@atexit.register
def _leave() -> None:
    _over.set()
    for thread in list(_threads):
        _join(thread)
