"""Recall and NDCG from ranks, and the t-test between two models: pure, checkable by hand.

One item is relevant for each user, so Recall@k is the share of ranks <= k and NDCG@k the mean of 1 / log2(rank + 1)
over ranks <= k (0 beyond). Ranks begin at 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CUTOFFS", "Metrics", "gains", "metrics_of_ranks", "paired_p_value"]

CUTOFFS = (5, 10, 20)

Metrics = dict[str, float]
"""Metric name, such as ``ndcg@10``, to its mean over users."""


def gains(ranks: NDArray[np.integer[Any]], metric: str) -> NDArray[np.float64]:
    """What each user contributes to `metric` (``recall@k`` or ``ndcg@k``)."""
    name, _, cutoff = metric.partition("@")
    hit = ranks <= int(cutoff)
    return np.where(hit, 1.0 if name == "recall" else 1 / np.log2(ranks + 1.0), 0.0)


def metrics_of_ranks(ranks: NDArray[np.integer[Any]], cutoffs: Sequence[int] = CUTOFFS) -> Metrics:
    """Recall and NDCG at every cutoff; NaN where nobody is ranked."""
    names = [f"{name}@{k}" for name in ("recall", "ndcg") for k in cutoffs]
    return {n: float(gains(ranks, n).mean()) if len(ranks) else float("nan") for n in names}


def paired_p_value(ours: NDArray[np.float64], base: NDArray[np.float64]) -> float:
    """Two-sided p of the paired t-test that two models' gains, user by user, have the same mean.

    1 where the two never differ: there is nothing to tell them apart by.
    """
    # here, for most commands print no p; scipy.stats would take a second more
    from scipy.special import stdtr

    difference = ours - base
    if len(difference) < 2 or not difference.any():
        return 1.0
    if np.ptp(difference) == 0:
        return 0.0
    count = len(difference)
    t = difference.mean() / (difference.std(ddof=1) / np.sqrt(count))
    return float(2 * stdtr(count - 1, -abs(t)))
