"""How training is going: on a terminal a table with a row a run, that moves; elsewhere a line an epoch, as in a log.

The table has the stage, the parts of the loss, validation as a curve over all epochs, speed and the time left, which early
stopping can only shorten. It fits 80 columns. Redrawn four times a second, by what was told last.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline import console
from student.state import RunState

__all__ = ["Board", "board", "sparkline"]

_LEVELS = "▁▂▃▄▅▆▇█"
_PLAIN_LEVELS = "_.-=+*#@"  # where the terminal knows no other letters
_CURVE = 12  # letters
_HEADS = (
    "run",
    "stage",
    "epoch",
    "ce\nnats",
    "kd\nnats",
    "validation\nNDCG@10",
    "best",
    "speed\ninst./s",
    "time left\nat most",
)
_LEFT = {0, 1, 5}  # columns of words and of the curve


class Board(Protocol):
    """What is told about the runs of one command, one after the other."""

    def begin(self, label: str) -> None:
        """A run begins, or goes on."""

    def step(self, done: float, total: float) -> None:
        """So many epochs of at most so many are done; parts of one count."""

    def epoch(self, state: RunState, rate: float) -> None:
        """An epoch is over; `rate` instances a second."""

    def end(self) -> None:
        """The run is over."""


@contextlib.contextmanager
def board(labels: Sequence[str], *, taught: Sequence[bool]) -> Iterator[Board]:
    """Shows these runs.

    Args:
        labels: what they are called.
        taught: which of them have teachers, and so a divergence.
    """
    terminal = console.terminal()
    if terminal is None:
        with contextlib.ExitStack() as stack:
            yield _Lines(dict(zip(labels, taught, strict=True)), stack)
        return
    levels = _LEVELS if terminal.encoding.lower().startswith("utf") else _PLAIN_LEVELS
    shown = _Moving(labels, dict(zip(labels, taught, strict=True)), levels)
    with Live(console=terminal, get_renderable=shown.table, refresh_per_second=4):
        yield shown


def sparkline(values: Sequence[float], width: int = _CURVE, levels: str = _LEVELS) -> str:
    """Values as a curve of at most `width` letters, the lowest and the highest from least to most ink.

    More values than letters are averaged in groups; where all are the same the curve lies at the bottom.
    """
    if not values:
        return ""
    groups = np.array_split(np.asarray(values, np.float64), min(width, len(values)))
    means = np.array([one.mean() for one in groups])
    span = np.ptp(means)
    scaled = (means - means.min()) / span if span > 0 else np.zeros(len(means))
    places = np.minimum((scaled * len(levels)).astype(int), len(levels) - 1)
    return "".join(levels[place] for place in places)


@dataclass(slots=True)
class _Row:
    """What is known of one run."""

    stage: str = ""
    epoch: int = 0
    ce: float | None = None
    kd: float | None = None
    curve: list[float] = field(default_factory=list)
    best: float | None = None
    rate: float | None = None
    began: float = 0.0
    first: float | None = None  # epochs done when it began
    done: float = 0.0
    total: float = 0.0
    over: bool = False

    @property
    def left(self) -> str:
        spent = time.monotonic() - self.began
        if self.over or self.first is None or self.done <= self.first:
            return ""
        return console.duration(spent * (self.total - self.done) / (self.done - self.first))


class _Moving:
    """The table of a terminal."""

    def __init__(self, labels: Sequence[str], taught: dict[str, bool], levels: str) -> None:
        self._rows = {label: _Row() for label in labels}
        self._taught = taught
        self._levels = levels
        self._now = labels[0]

    def begin(self, label: str) -> None:
        self._now = label
        self._rows[label] = _Row(stage="begins", began=time.monotonic())

    def step(self, done: float, total: float) -> None:
        row = self._rows[self._now]
        if row.first is None:
            row.first, row.began = done, time.monotonic()
        row.done, row.total = done, total

    def epoch(self, state: RunState, rate: float) -> None:
        row, last = self._rows[self._now], state.history[-1]
        row.stage, row.epoch, row.rate = last.stage, last.epoch + 1, rate
        row.ce, row.kd = last.ce, last.kd if self._taught[self._now] else None
        row.curve = [one.validation for one in state.history if one.validation is not None]
        row.best = state.best if row.curve else None

    def end(self) -> None:
        row = self._rows[self._now]
        row.stage, row.over = "done", True

    def table(self) -> Table:
        """As things stand."""
        drawn = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        for place, head in enumerate(_HEADS):
            drawn.add_column(
                head, justify="left" if place in _LEFT else "right", no_wrap=True, overflow="crop"
            )
        for label, row in self._rows.items():
            drawn.add_row(
                Text(label.replace(" seed ", " ")),
                Text(row.stage),
                f"{row.epoch:,}" if row.epoch else "",
                _number(row.ce, 3),
                _number(row.kd, 3),
                Text(sparkline(row.curve, levels=self._levels)),
                _number(row.best, 4),
                "" if row.rate is None else f"{row.rate:,.0f}",
                row.left,
            )
        return drawn


class _Lines:
    """A line an epoch, and one every ten seconds."""

    def __init__(self, taught: dict[str, bool], stack: contextlib.ExitStack) -> None:
        self._taught = taught
        self._stack = stack
        self._label = ""
        self._said = ""
        self._report: console.Report = lambda done, total, text: None

    def begin(self, label: str) -> None:
        self._stack.close()
        self._label, self._said = label, ""
        self._report = self._stack.enter_context(console.progress(label))

    def step(self, done: float, total: float) -> None:
        self._report(done, total, self._said)

    def epoch(self, state: RunState, rate: float) -> None:
        now = state.history[-1]
        losses = f"ce {now.ce:.3f}, " + (f"kd {now.kd:.3f}, " if self._taught[self._label] else "")
        found = _found(state)
        console.note(f"{self._label}: epoch {now.epoch + 1}, {now.stage}, {losses}{found}")
        self._said = f"{now.stage}, {found}, {rate:,.0f}/s"

    def end(self) -> None:
        self._stack.close()


def _found(state: RunState) -> str:
    """What validation says by now."""
    now = state.history[-1]
    if state.best_epoch < 0:
        return "not validated yet"
    best = "the best" if state.best_epoch == now.epoch else f"best {state.best:.4f}"
    return best if now.validation is None else f"ndcg@10 {now.validation:.4f}, {best}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
