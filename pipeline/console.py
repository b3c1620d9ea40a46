"""What the commands print: results on standard output, progress and errors on standard error. The only file that prints.

A foreseen error is one line and its own exit status; Ctrl-C and SIGTERM leave with 130 and 143 after a safe stop. Live
progress is shown on a terminal only; elsewhere a plain line every ten seconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from cache.errors import CkdError
from pipeline.config import default_map

__all__ = ["Report", "note", "progress", "run", "say", "size", "table"]

Report = Callable[[float, float, str], None]
"""report(done, total, note): how far a long job is."""

_PLAIN_EVERY = 10.0

_err = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """A line of the result."""
    print(text, flush=True)


def note(text: str) -> None:
    """A line about the work, on standard error."""
    _err.print(text, markup=False)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output; the first column to the left, numbers to the right."""
    drawn = Table(title=title, title_justify="left", title_style="bold")
    for place, name in enumerate(columns):
        drawn.add_column(name, justify="right" if place else "left", no_wrap=place > 0)
    for row in rows:
        drawn.add_row(*row)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    console.print(drawn)


def size(count: float) -> str:
    """Bytes for a person: 105.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


@contextlib.contextmanager
def progress(title: str) -> Iterator[Report]:
    """Progress of one job, with time left; yields what the job reports to."""
    if _err.is_terminal:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=_err,
            transient=True,
        ) as live:
            task = live.add_task(title, total=None, note="")

            def report(done: float, total: float, text: str = "") -> None:
                live.update(task, completed=done, total=total, note=text)

            yield report
        return
    started = last = time.monotonic()

    def plain(done: float, total: float, text: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PLAIN_EVERY:
            last = now
            left = (now - started) * (total - done) / done if done else float("nan")
            note(f"{title}: {done:,.0f} of {total:,.0f}, {left:.0f} s left  {text}".rstrip())

    yield plain


def run(app: typer.Typer, name: str) -> None:
    """Run a command line to its exit: 0, or the status of what went wrong, said in one line."""
    # the OpenMP threads of torch spin for work that a two-core machine has better use for
    os.environ.setdefault("KMP_BLOCKTIME", "1")
    signal.signal(signal.SIGTERM, _terminated)
    try:
        command = typer.main.get_command(app)
        defaults = default_map(getattr(command, "commands", {}), name)
        status = command.main(prog_name=name, standalone_mode=False, default_map=defaults)
        sys.exit(status if isinstance(status, int) else 0)
    except CkdError as error:
        _fail(name, f"{error}  [{error.code}]", error.exit)
    except typer.TyperException as error:  # an option that is not there, a value out of range
        where = context.command_path if (context := getattr(error, "ctx", None)) else name
        message = getattr(error, "format_message", error.__str__)()
        _fail(where, f"{message} Try `{where} --help`.", 2)
    except (typer.Abort, KeyboardInterrupt):
        _fail(name, "stopped; the same command goes on from here.", 130)
    except _Terminated:
        _fail(name, "stopped by SIGTERM; the same command goes on from here.", 143)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)


class _Terminated(BaseException):
    """SIGTERM arrived."""


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    raise _Terminated


def _fail(name: str, message: str, status: int) -> None:
    print(f"{name}: {message}", file=sys.stderr, flush=True)
    sys.exit(status)
