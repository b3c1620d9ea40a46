"""Teachers side by side: rank correlations by hand, shares of what is dropped, groups of like size."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cache.store import Store
from pipeline.agreement import agreement, rank_correlation, thirds
from pipeline.build import build
from student.consistency import consistency_weights
from student.targets import JoinSettings, join_settings
from tests.fakes import TableTeacher, tiny_store


def rho(first: list[float], second: list[float]) -> float:
    """Spearman's of two rows."""
    return float(rank_correlation(torch.tensor([[first], [second]]))[0, 1, 0])


def test_rank_correlation_by_hand() -> None:
    assert rho([0.1, 0.2, 0.7], [1.0, 5.0, 90.0]) == pytest.approx(1)
    assert rho([0.1, 0.2, 0.7], [3.0, 2.0, 1.0]) == pytest.approx(-1)
    # ranks 1 2 3 4 against 1 3 2 4: 1 - 6 * (0 + 1 + 1 + 0) / (4 * 15)
    assert rho([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0]) == pytest.approx(0.8)
    # ties share their mean rank: 1.5 1.5 3 against 1 2 3, 1.5 / sqrt(1.5 * 2)
    assert rho([2.0, 2.0, 9.0], [1.0, 2.0, 3.0]) == pytest.approx(1.5 / math.sqrt(3))
    # who says nothing agrees with nobody
    assert rho([2.0, 2.0, 2.0], [1.0, 2.0, 3.0]) == 0
    assert rho([2.0], [1.0]) == 0


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_thirds_cover_all_numbers_in_order(values: list[int]) -> None:
    numbers = np.array(values)
    groups = thirds(numbers)
    found = groups.of(numbers)
    assert groups.least == numbers.min()
    assert groups.limits[-1] == numbers.max()
    for group, limit in enumerate(groups.limits):
        inside = numbers[found == group]
        assert len(inside)
        assert inside.max() == limit
        assert group == 0 or inside.min() > groups.limits[group - 1]
    assert len(groups.labels("item")) == len(groups.limits) <= 3


def test_labels_are_ranges() -> None:
    groups = thirds(np.array([1, 1, 2, 3, 4, 2000]))
    assert groups.limits == (1, 3, 2000)
    assert groups.labels("item") == ["1 item", "2 to 3 items", "4 to 2,000 items"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = tiny_store(tmp_path / "store", users=30, items=20, batch_size=8)
    for seed, name in enumerate("abc"):
        build(TableTeacher(name, seed=seed), store)
    return store


@pytest.mark.parametrize("by", ["pair", "user"])
def test_shares_are_those_of_a_count_pair_by_pair(store: Store, by: str) -> None:
    readers = [store.scores(name) for name in "abc"]
    settings = join_settings(readers, consistency=by, epsilon="0.5q")  # type: ignore[arg-type]
    found = agreement(store.dataset, store.plan, readers, settings, most=99)
    assert found.names == ("a", "b", "c")
    assert found.batches == len(store.plan)
    popularity: dict[tuple[int, int], list[int]] = {}
    lengths: dict[tuple[int, int], list[int]] = {}
    for index in range(len(store.plan)):
        batch = store.plan[index]
        scores = torch.stack([torch.from_numpy(one[index].astype(np.float32)) for one in readers])
        weights = consistency_weights(
            torch.log_softmax(scores, -1).exp(),
            torch.tensor(settings.weights),
            epsilon="0.5q",
            by=by,  # type: ignore[arg-type]
        ).expand(scores.shape)
        for k, t, c in product(*map(range, scores.shape)):
            count = store.dataset.train_counts[batch.items[c]]
            item = int(found.popularity.of(np.array([count]))[0])
            length = int(found.lengths.of(np.array([batch.ends[t]]))[0])
            gone = int(weights[k, t, c] == 0)
            popularity.setdefault((item, k), []).append(gone)
            lengths.setdefault((length, k), []).append(gone)
    for (group, k), all_gone in popularity.items():
        assert found.dropped_by_popularity_GK[group, k] == pytest.approx(np.mean(all_gone))
    for (group, k), all_gone in lengths.items():
        assert found.dropped_by_length_GK[group, k] == pytest.approx(np.mean(all_gone))
    whole = [
        np.mean(np.concatenate([gone for (_, of), gone in lengths.items() if of == k]))
        for k in range(3)
    ]
    assert found.dropped_K == pytest.approx(whole)
    # half of all pairs lose one teacher, by the quantile
    assert found.dropped_K.sum() == pytest.approx(0.5, abs=0.05)


def test_a_teacher_agrees_with_itself_and_not_with_a_stranger(store: Store) -> None:
    build(TableTeacher("a", seed=0), store, name="again")
    readers = [store.scores(name) for name in ("a", "again", "b")]
    settings = join_settings(readers, consistency="off")
    found = agreement(store.dataset, store.plan, readers, settings, most=3)
    assert found.batches == 3
    assert found.correlation_KK[0, 1] == pytest.approx(1)
    assert abs(found.correlation_KK[0, 2]) < 0.6
    assert np.allclose(found.correlation_KK, found.correlation_KK.T)
    assert not found.dropped_K.any()


def test_a_teacher_of_no_weight_is_not_counted_as_dropped(store: Store) -> None:
    readers = [store.scores(name) for name in "abc"]
    settings = JoinSettings(tau=readers[0].tau, weights=(0.5, 0.5, 0.0), epsilon=0.0)
    found = agreement(store.dataset, store.plan, readers, settings, most=99)
    assert found.dropped_K[2] == 0
    assert found.dropped_K[:2].min() > 0
