"""Work done ahead of whoever asks for it, on a background thread.

The order and the results do not depend on the thread's timing, and an error surfaces at the thing it belongs to. Whoever
leaves off before the last one closes the generator, which waits for the thread; the end of the program waits for what nobody
closed. Ctrl-C may come at any instant: see cache/thread.py.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

from cache.thread import Thread, ending

__all__ = ["ahead"]

Asked = TypeVar("Asked")
Made = TypeVar("Made")


def ahead(
    make: Callable[[Asked], Made], order: Iterable[Asked], most: int
) -> Generator[Made, None, None]:
    """`make` of each in turn, each ready before it is asked for, at most `most` (at least 1) at a time."""
    ready: queue.SimpleQueue[tuple[Made] | BaseException | None] = queue.SimpleQueue()
    room: queue.SimpleQueue[None] = queue.SimpleQueue()  #: one for each that may be made
    for _ in range(max(1, most)):
        room.put(None)
    abandoned = False

    def wanted() -> bool:
        """Wait for room; False once nobody will make any."""
        while not (abandoned or ending()):
            with contextlib.suppress(queue.Empty):
                room.get(timeout=0.1)
                return not abandoned
        return False

    def work() -> None:
        try:
            for asked in order:
                if not wanted():
                    return
                ready.put((make(asked),))
            ready.put(None)
        except BaseException as error:
            ready.put(error)

    thread = Thread(work)
    try:
        thread.start()
        while (thing := ready.get()) is not None:
            if isinstance(thing, BaseException):
                raise thing
            room.put(None)
            yield thing[0]
    finally:
        abandoned = True
        room.put(None)  # it need not wait for the tenth of a second to be over
        thread.join()
