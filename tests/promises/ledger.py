"""What each promise was attacked with in this run, and how often it was kept.

A promise test calls `kept` once per attack family; the last lines of the run print a sum per promise, which is what
`docs/promises.md` quotes. A promise that was not kept also fails its test: the ledger counts, it does not judge. Where the
suite runs in several processes, each ends by handing over its `counts`, and the one that prints `add`s them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

_COUNTS: dict[str, list[int]] = defaultdict(lambda: [0, 0])


def kept(promise: str, number: int, of: int) -> None:
    """Note that of `of` attacks on `promise` (P01 to P28), `number` were refused or survived as promised."""
    _COUNTS[promise][0] += number
    _COUNTS[promise][1] += of


def all_kept(promise: str, outcomes: Iterable[object]) -> None:
    """Note and require: an outcome that is empty (None, "", 0 complaints) is one kept, any other is a complaint."""
    complaints = list(outcomes)
    broken = [complaint for complaint in complaints if complaint]
    kept(promise, len(complaints) - len(broken), len(complaints))
    assert complaints, f"{promise}: no attack was made"
    assert not broken, f"{promise}: {len(broken)} of {len(complaints)} broken, first {broken[:3]}"


def counts() -> dict[str, list[int]]:
    """Promise -> how often kept, of how many attacks, in this process."""
    return dict(_COUNTS)


def add(counted: Mapping[str, list[int]]) -> None:
    """Take in another process's `counts`."""
    for promise, (number, of) in counted.items():
        kept(promise, number, of)


def lines() -> list[str]:
    """A line a promise that was attacked in this run."""
    return [f"{name} kept {count} of {of}" for name, (count, of) in sorted(_COUNTS.items())]
