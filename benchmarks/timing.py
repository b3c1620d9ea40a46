"""What the benchmarks share: contenders that take turns in one process, and the line that says whether a goal is kept.

Ratios of neighbouring turns, not seconds, are what is compared: whatever else the machine does slows both. The median is
judged; the spread is printed so that a reader sees how far to trust it. Where the machine is busy, processor time says more
than the clock does: `clocks` takes both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

__all__ = ["clocks", "goal", "ratios", "turns"]

#: something to time; told the number of the round, so that contenders can be given the same work
Contender = Callable[[int], object]


def turns(contenders: Sequence[Contender], rounds: int, *, warm: int = 1) -> list[list[float]]:
    """Seconds of each contender in each round; who goes first changes from round to round.

    Args:
        warm: rounds before, which are not counted.
    """
    return clocks(contenders, rounds, warm=warm)[0]


def clocks(
    contenders: Sequence[Contender], rounds: int, *, warm: int = 1
) -> tuple[list[list[float]], list[list[float]]]:
    """As :func:`turns`: seconds of the clock, and of this process on the processor, all its threads together."""
    taken: list[list[float]] = [[] for _ in contenders]
    worked: list[list[float]] = [[] for _ in contenders]
    for number in range(-warm, rounds):
        for place in range(len(contenders)):
            which = (number + place) % len(contenders)
            start, processor = time.perf_counter(), time.process_time()
            contenders[which](number)
            seconds, processor = time.perf_counter() - start, time.process_time() - processor
            if number >= 0:
                taken[which].append(seconds)
                worked[which].append(processor)
    return taken, worked


def ratios(seconds: Sequence[float], of: Sequence[float]) -> list[float]:
    """Round by round, `seconds` over `of`."""
    return [one / other for one, other in zip(seconds, of, strict=True)]


def goal(
    name: str,
    what: str,
    against: str,
    values: Sequence[float],
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    figure: str = "ratio",
    note: str = "",
) -> bool:
    """Print the line of one goal and tell whether its median keeps the bar; without a bar it is only told.

    Args:
        values: one a round.
        figure: what the values are.
    """
    middle = median(values)
    kept = not (
        (at_most is not None and middle > at_most) or (at_least is not None and middle < at_least)
    )
    bar = "no bar  told"
    if at_most is not None:
        least = "" if at_least is None else f"at least {at_least:g}, "
        bar = f"bar {least}at most {at_most:g}  {'kept' if kept else 'short'}"
    elif at_least is not None:
        bar = f"bar at least {at_least:g}  {'kept' if kept else 'short'}"
    measured = f"{figure} {middle:.2f}"
    if len(values) > 1:
        measured = f"median {figure} {middle:.2f} ({min(values):.2f}..{max(values):.2f})"
    print(
        f"{name:<8}  {what} against {against}  {measured}  {bar}{f'  ({note})' if note else ''}",
        flush=True,
    )
    return kept
