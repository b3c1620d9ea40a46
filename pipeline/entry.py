"""Where the console scripts begin: Ctrl-C and SIGTERM are heard before the imports, which take a second or more.

Nothing is under way then, so the process ends at once; from `console.run` on, its handlers stop what is.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

__all__ = ["kd_cache", "kd_student", "kd_teacher"]


def kd_cache() -> None:
    """Run `kd-cache`."""
    _listen("kd-cache")
    from pipeline.cli_cache import main

    main()


def kd_teacher() -> None:
    """Run `kd-teacher`."""
    _listen("kd-teacher")
    from pipeline.cli_teacher import main

    main()


def kd_student() -> None:
    """Run `kd-student`."""
    _listen("kd-student")
    from pipeline.cli_student import main

    main()


def _listen(name: str) -> None:
    def leave(number: int, _frame: FrameType | None) -> None:
        word = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        said = f"{name}: stopped by {word}; the same command goes on from here.\n"
        os.write(2, said.encode())
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, leave)
