"""Ranges that a student's settings must lie in. Refuses a number outside of them, and one that is none."""

from __future__ import annotations

from typing import Any

__all__ = ["check_range"]


def check_range(config: Any, low: float, high: float, *names: str) -> None:
    """Hold these fields of `config` to low..high, both allowed.

    Raises:
        ValueError: where one lies outside.
    """
    for name in names:
        value = getattr(config, name)
        if not low <= value <= high:
            until = f"from {low} to {high}" if high < float("inf") else f"of at least {low}"
            raise ValueError(f"{name} is {value}, a number {until} was expected")
