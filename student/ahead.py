"""Work done ahead of whoever asks for it, on a background thread.

The order and the results do not depend on the thread's timing, and an error surfaces at the thing it belongs to. Whoever
leaves off before the last one closes the generator, which waits for the thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

__all__ = ["ahead"]

Asked = TypeVar("Asked")
Made = TypeVar("Made")


def ahead(
    make: Callable[[Asked], Made], order: Iterable[Asked], most: int
) -> Generator[Made, None, None]:
    """`make` of each in turn, each ready before it is asked for, at most `most` (at least 1) at a time."""
    ready: queue.Queue[tuple[Made] | BaseException | None] = queue.Queue(maxsize=max(1, most))
    abandoned = threading.Event()

    def hand_over(thing: tuple[Made] | BaseException | None) -> bool:
        while not abandoned.is_set():
            try:
                ready.put(thing, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for asked in order:
                if not hand_over((make(asked),)):
                    return
            hand_over(None)
        except BaseException as error:
            hand_over(error)

    thread = threading.Thread(target=work, name="prepare-batches", daemon=True)
    thread.start()
    try:
        while (thing := ready.get()) is not None:
            if isinstance(thing, BaseException):
                raise thing
            yield thing[0]
    finally:
        abandoned.set()
        if thread is not threading.current_thread():  # the garbage collector may run anywhere
            thread.join()
