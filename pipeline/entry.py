"""Where the console scripts begin and end: Ctrl-C and SIGTERM are heard before the imports, which take a second or more.

Nothing is under way then, so the process ends at once; from `console.run` on, its handlers stop what is. The end does not
take Python apart: after torch was imported that takes a second or two, in which a person waits for the prompt.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

__all__ = ["kd_cache", "kd_student", "kd_teacher"]


def kd_cache() -> None:
    """Run `kd-cache`."""
    _listen("kd-cache")
    from pipeline.cli_cache import main

    _to_the_end(main)


def kd_teacher() -> None:
    """Run `kd-teacher`."""
    _listen("kd-teacher")
    from pipeline.cli_teacher import main

    _to_the_end(main)


def kd_student() -> None:
    """Run `kd-student`."""
    _listen("kd-student")
    from pipeline.cli_student import main

    _to_the_end(main)


def _listen(name: str) -> None:
    def leave(number: int, _frame: FrameType | None) -> None:
        word = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        said = f"{name}: stopped by {word}; the same command goes on from here.\n"
        os.write(2, said.encode())
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, leave)


def _to_the_end(main: Callable[[], object]) -> None:
    """Run `main` to its status, and then what else the end of a program has to do; a traceback takes the usual way."""
    try:
        main()
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        _heard(signal.SIG_DFL)  # a thread that does not end is the person's to end
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        _heard(signal.SIG_IGN)  # all that was asked for is done
        atexit._run_exitfuncs()
        if sys.stdout is not None:
            # the results were flushed where a failure can still be told
            with contextlib.suppress(OSError):
                sys.stdout.flush()
        os._exit(end.code)


def _heard(by: signal.Handlers) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, by)
