"""The table of `kd-student fit` and `compare`: every metric of one or two sets of runs, and whether they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline import console
from pipeline.metrics import CUTOFFS, gains, paired_p_value
from pipeline.runs import Run

__all__ = ["METRICS", "print_runs", "task"]

METRICS = [f"{name}@{k}" for name in ("recall", "ndcg") for k in CUTOFFS]


def task(part: str, users: int, items: int) -> str:
    """What is ranked among what."""
    return f"{part} items of {users:,} users among all {items:,} items"


def print_runs(label: str, runs: Mapping[str, Sequence[Run]]) -> None:
    """A row a metric: mean and spread over seeds, and with two sets what the second gained.

    Args:
        label: of what they were judged on, before its numbers.
        runs: one or two sets by the heads of their columns.
    """
    both = len(runs) == 2
    picked = [np.array([run.record["validation"]["ndcg@10"] for run in r]) for r in runs.values()]
    rows = []
    for name in METRICS:
        values = [np.array([run.test[name] for run in some]) for some in runs.values()]
        row = [name, *map(_spread, values)]
        if both:
            before, after = (one.mean() for one in values)
            base, ours = (_mean_gains(some, name) for some in runs.values())
            change = f"{after / before - 1:+.1%}" if before else "n/a"
            row += [change, _p_value(paired_p_value(ours, base))]
        rows.append(row)
    # what settings are chosen by
    rows.append(["validation ndcg@10", *map(_spread, picked), *(["", ""] if both else [])])
    counts = next(iter(runs.values()))[0].record["counts"]
    seeds = sorted({len(some) for some in runs.values()})
    legend = ["p: paired t-test over users"] if both else []
    if seeds[-1] > 1:
        legend.insert(0, f"mean ± standard deviation of {' or '.join(map(str, seeds))} seeds")
    console.table(
        f"{label}: {task('test', counts['evaluated users'], counts['items'])}",
        ["", *runs, *(["change", "p"] if both else [])],
        rows,
        caption="; ".join(legend),
    )


def _p_value(p: float) -> str:
    return f"{p:.3f}" if p >= 0.0005 else f"{p:.0e}"


def _mean_gains(runs: Sequence[Run], metric: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """[users] each user's gain, averaged over seeds."""
    mean: np.ndarray[tuple[int], np.dtype[np.float64]] = np.mean(
        [gains(run.test_ranks, metric) for run in runs], axis=0
    )
    return mean


def _spread(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> str:
    return f"{values.mean():.4f}" + (f" ±{values.std(ddof=1):.4f}" if len(values) > 1 else "")
