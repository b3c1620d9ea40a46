"""What the commands print: results on standard output, progress and errors on standard error. The only file that prints.

A foreseen error is one line and its own exit status; Ctrl-C and SIGTERM leave with 130 and 143 after a safe stop. Live
progress is shown on a terminal only; elsewhere, as in a log, a line for each epoch and one every ten seconds. Tables and
lines are made for 80 columns.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Literal, NoReturn

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from cache.errors import CkdError, DiskError
from pipeline.config import default_map
from pipeline.memory import short_of

__all__ = [
    "Report",
    "count",
    "duration",
    "hint",
    "log",
    "note",
    "progress",
    "run",
    "say",
    "size",
    "table",
    "terminal",
]

Report = Callable[[float, float, str], None]
"""report(done, total, note): how far a long job is."""

_PLAIN_EVERY = 10.0
_PIPED_WIDTH = 100
_ENDLESS = 1 << 20
_BAD_OPTION, _REFUSED = "config.bad_option", "disk.refused"
_SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}

_err = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """A line of the result."""
    print(text, flush=True)


def note(text: str) -> None:
    """A line about the work, on standard error."""
    _err.print(text, markup=False)


def hint(command: str) -> None:
    """What a newcomer would type next, on standard error."""
    note(f"next: {command}")


def log(text: str) -> None:
    """A line about the work where no live progress says it: in a log."""
    if not _err.is_terminal:
        note(text)


def terminal() -> Console | None:
    """Where a person watches, for what moves; None in a log."""
    return _err if _err.is_terminal else None


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    caption: str = "",
    prose: str | None = None,
) -> None:
    """A table on standard output; the first column to the left, numbers to the right. Too wide a one runs over: nothing is cut.

    Args:
        prose: the column that is wrapped where the terminal is too narrow, to the left too; by default the first.
    """
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPED_WIDTH)
    console.print(title, style="bold", markup=False, soft_wrap=True)
    drawn = Table()
    for place, name in enumerate(columns):
        wrapped = name == (columns[0] if prose is None else prose)
        side: Literal["left", "right"] = "right" if place and not wrapped else "left"
        # rich takes what is not to be wrapped to need no more than its longest word
        least = None if wrapped else max(map(cell_len, [name, *(row[place] for row in rows)]))
        drawn.add_column(Text(name), justify=side, no_wrap=not wrapped, min_width=least)
    for row in rows:
        drawn.add_row(*map(Text, row))  # as it stands: a bracket is no markup
    needed = Measurement.get(console, console.options.update(width=_ENDLESS), drawn).minimum
    console.width = max(console.width, needed)  # else rich shortens numbers
    console.print(drawn)
    if caption:
        console.print(caption, markup=False, soft_wrap=True)


def count(number: int, noun: str, nouns: str = "") -> str:
    """A number of things for a person: 1 batch, 1,250 batches."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def size(length: float) -> str:
    """Bytes for a person: 105.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if length < 1000:
            return f"{length:.0f} {unit}" if unit == "B" else f"{length:.1f} {unit}"
        length /= 1000
    return f"{length:.1f} TB"


def duration(seconds: float) -> str:
    """A span of time for a person: 48 s, 3 min 20 s, 2 h 05 min."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


@contextlib.contextmanager
def progress(title: str, *, unit: Literal["", "bytes"] = "") -> Iterator[Report]:
    """Progress of one job, with time left; yields what the job reports to.

    Args:
        unit: of the numbers that are reported: things, or bytes, which are shown as such.
    """
    column = DownloadColumn if unit else MofNCompleteColumn
    if _err.is_terminal:
        with Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=6),
            column(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            TextColumn(
                "left {task.fields[note]}",
                table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
            ),
            console=_err,
            transient=True,
            expand=True,
        ) as live:
            task = live.add_task(title, total=None, note="")

            def report(done: float, total: float, text: str = "") -> None:
                live.update(task, completed=done, total=total, note=text)

            yield report
        return
    last = began = time.monotonic()
    before, whole = 0.0, None  # where this stage of the job began, and its total

    def plain(done: float, total: float, text: str = "") -> None:
        nonlocal last, began, before, whole
        now = time.monotonic()
        if total != whole:  # another stage, with a pace of its own
            began, before, whole = now, done, total
        if now - last >= _PLAIN_EVERY and done > before:
            last = now
            left = duration((now - began) * (total - done) / (done - before))
            shown = ", ".join(part for part in (f"{left} left", text) if part)
            digits = 0 if float(done).is_integer() else 1  # epochs come in parts, items do not
            at, whole_job = (
                (size(done), size(total)) if unit else (f"{done:,.{digits}f}", f"{total:,.0f}")
            )
            note(f"{title}: {at} of {whole_job}, {shown}")

    yield plain


def run(app: typer.Typer, name: str) -> NoReturn:
    """Run a command line to its exit: 0, or the status of what went wrong, said in one line."""
    if sys.stdout is None:  # the next file that is opened would get its number
        closed = "standard output: is closed; direct it to a file or to /dev/null"
        _fail(name, f"{closed}.  [{_REFUSED}]", DiskError.exit)
    # the OpenMP threads of torch spin for work that a two-core machine has better use for
    os.environ.setdefault("KMP_BLOCKTIME", "1")
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _stop)
    try:
        command = typer.main.get_command(app)
        status = command.main(
            args=sys.argv[1:] or ["--help"],
            prog_name=name,
            standalone_mode=False,
            default_map=default_map(getattr(command, "commands", {}), name),
        )
        sys.stdout.flush()
        sys.exit(status if isinstance(status, int) else 0)
    except CkdError as error:
        _told(name, error)
    except (MemoryError, RuntimeError) as error:
        if (short := short_of(error)) is None:
            raise
        _told(name, short)
    except typer.TyperException as error:  # an option that is not there, a value out of range
        where = context.command_path if (context := getattr(error, "ctx", None)) else name
        message = getattr(error, "format_message", error.__str__)().removesuffix(".")
        message = message.replace("Value error, ", "")  # of the library that checks values
        _fail(where, f"{message}; try `{where} --help`.  [{_BAD_OPTION}]", 2)
    except OSError as error:  # of standard output, or of a file that nobody thought of
        if error.errno is None:
            raise
        what = f"{error.filename or 'standard output or a file'}: {error.strerror}"
        _fail(name, f"{what}; mend that and try again.  [{_REFUSED}]", DiskError.exit)
    except _StoppedError as stopped:
        _fail(
            name,
            f"stopped by {_SIGNALS[stopped.number]}; the same command goes on from here.",
            128 + stopped.number,
        )


class _StoppedError(BaseException):
    """A signal asked for the end."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number)
        self.number = number


def _stop(number: int, _frame: FrameType | None) -> None:
    raise _StoppedError(signal.Signals(number))


def _told(name: str, error: CkdError) -> NoReturn:
    _fail(name, f"{error}  [{error.code}]", error.exit)


def _fail(name: str, message: str, status: int) -> NoReturn:
    for number in _SIGNALS:  # it is over already
        signal.signal(number, signal.SIG_IGN)
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:  # it is what went wrong; Python would complain of it once more
            sys.stdout = io.StringIO()
    line = re.sub(r"\s*\n\s*", " ", message)
    print(f"{name}: {line}", file=sys.stderr, flush=True)
    sys.exit(status)
