"""Learning rates that change from step to step, as shares of the recipe's."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["warm_up_and_decay"]


def warm_up_and_decay(warm_up: int, steps: int) -> Callable[[int], float]:
    """From 0 to 1 within `warm_up` steps, then in a straight line to 0 at `steps`; the first step is number 0."""

    def share(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return max(0.0, (steps - step) / max(1, steps - warm_up))

    return share
