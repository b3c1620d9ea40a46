"""The table at the end of `kd-student fit`: every metric of base and distilled student, and whether they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cache.store import Store
from pipeline import console
from pipeline.metrics import CUTOFFS, gains, paired_p_value
from pipeline.runs import Run

__all__ = ["METRICS", "print_runs", "task"]

METRICS = [f"{name}@{k}" for name in ("recall", "ndcg") for k in CUTOFFS]


def task(store: Store, part: str, users: int) -> str:
    """What is ranked among what."""
    return f"{part} items of {users:,} users among all {store.dataset.num_items:,} items"


def print_runs(store: Store, runs: Mapping[str, Sequence[Run]], title: str) -> None:
    """A row a metric: mean and spread over seeds, and with two kinds what the second gained."""
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
    some = next(iter(runs.values()))
    legend = ["p: paired t-test over users"] if both else []
    if len(some) > 1:
        legend.insert(0, f"mean ± standard deviation of {len(some)} seeds")
    console.table(
        f"{store.label}: {task(store, 'test', len(some[0].test_ranks))}",
        ["", *(f"{title} {kind}" for kind in runs), *(["change", "p"] if both else [])],
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
