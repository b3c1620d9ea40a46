"""Recall, NDCG and the paired t-test by hand."""

from __future__ import annotations

from math import log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.metrics import metrics_of_ranks, paired_p_value


def test_by_hand() -> None:
    metrics = metrics_of_ranks(np.array([1, 3, 6, 11]))
    assert metrics["recall@5"] == 2 / 4
    assert metrics["recall@10"] == 3 / 4
    assert metrics["ndcg@5"] == pytest.approx((1 + 1 / log2(4)) / 4)
    assert metrics["ndcg@20"] == pytest.approx((1 + 1 / 2 + 1 / log2(7) + 1 / log2(12)) / 4)


@given(st.lists(st.integers(1, 40), min_size=1))
def test_ndcg_lies_between_what_recall_allows(ranks: list[int]) -> None:
    # one relevant item: a hit between rank 6 and 10 is worth 1/log2(11) to 1/log2(7)
    m = metrics_of_ranks(np.array(ranks))
    hits, worth = m["recall@10"] - m["recall@5"], m["ndcg@10"] - m["ndcg@5"]
    assert hits / log2(11) - 1e-9 <= worth <= hits / log2(7) + 1e-9


def test_paired_t_by_hand() -> None:
    # differences 1, 0, 1, 0: mean 1/2, sd 1/sqrt(3), t = sqrt(3) with 3 degrees of freedom
    p = paired_p_value(np.array([1.0, 1, 1, 0]), np.array([0.0, 1, 0, 0]))
    assert p == pytest.approx(0.1816901138162)


def test_models_that_never_differ_cannot_be_told_apart() -> None:
    assert paired_p_value(np.ones(3), np.ones(3)) == 1.0
