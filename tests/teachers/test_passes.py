"""Shared passes: every instance is answered once, by exactly the items that it may see."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.dataset import Dataset
from teachers.passes import Passes, plan_passes
from tests.teachers.naive import dataset_of


@st.composite
def asked(draw: st.DrawFn) -> tuple[Dataset, np.ndarray, np.ndarray]:
    """A dataset, and any of its instances in any order, some twice."""
    length = draw(st.integers(1, 6))
    sizes = draw(st.lists(st.integers(2, 20), min_size=1, max_size=5))
    starts = np.cumsum(sizes) - sizes
    # every interaction has an item of its own, so that a window says where it was cut
    sequences = [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    every = [(user, end) for user, size in enumerate(sizes) for end in range(1, size)]
    chosen = draw(st.lists(st.sampled_from(every), min_size=1, max_size=40))
    users, ends = np.array(chosen, np.int32).T
    return dataset_of([list(one) for one in sequences], length), users, ends


def read(passes: Passes, chosen: np.ndarray) -> list[tuple[int, list[int]]]:
    """(instance, the items that its state has seen) for every instance of the chosen passes."""
    laid = passes.pack(chosen)
    ends = np.cumsum(laid.lengths)
    out = []
    for instance, row in zip(laid.instances, laid.rows, strict=True):
        mine = int(np.searchsorted(ends, row, side="right"))
        first = int(ends[mine] - laid.lengths[mine])
        out.append((int(instance), laid.items[first : row + 1].tolist()))
    return out


@given(asked(), st.randoms(use_true_random=False))
def test_an_instance_sees_its_last_items_and_nothing_else(
    case: tuple[Dataset, np.ndarray, np.ndarray], random: object
) -> None:
    dataset, users, ends = case
    passes = plan_passes(dataset, users, ends)
    order = np.arange(len(passes.lengths))
    random.shuffle(order)  # type: ignore[attr-defined]
    seen = dict(read(passes, order))
    for instance, (user, end) in enumerate(zip(users, ends, strict=True)):
        history = dataset.sequence(user)[:end].tolist()
        assert seen[instance] == history[-dataset.max_length :]


@given(asked())
def test_every_instance_is_answered_exactly_once(
    case: tuple[Dataset, np.ndarray, np.ndarray],
) -> None:
    dataset, users, ends = case
    for stride in range(1, dataset.max_length + 1):
        passes = plan_passes(dataset, users, ends, stride=stride)
        answered = Counter(one for one, _ in read(passes, np.arange(len(passes.lengths))))
        assert answered == Counter(range(len(users)))
        assert passes.counts.tolist() == [
            len(read(passes, np.array([number]))) for number in range(len(passes.lengths))
        ]
        assert passes.lengths.max() <= dataset.max_length


@given(asked(), st.integers(1, 6))
def test_with_a_stride_long_histories_lose_less_than_a_stride(
    case: tuple[Dataset, np.ndarray, np.ndarray], stride: int
) -> None:
    dataset, users, ends = case
    length = dataset.max_length
    stride = min(stride, length)
    passes = plan_passes(dataset, users, ends, stride=stride)
    for instance, seen in read(passes, np.arange(len(passes.lengths))):
        end = int(ends[instance])
        assert seen == dataset.sequence(users[instance])[:end].tolist()[-len(seen) :]
        shortest = end if end <= length else length - stride + 1
        assert shortest <= len(seen) <= min(end, length)


@given(asked())
def test_a_user_within_the_length_costs_one_pass(
    case: tuple[Dataset, np.ndarray, np.ndarray],
) -> None:
    dataset, users, ends = case
    length = dataset.max_length
    within = ends <= length
    if within.any():
        passes = plan_passes(dataset, users[within], ends[within])
        assert len(passes.lengths) == len(set(users[within].tolist()))
    # beyond, histories that begin elsewhere can share nothing
    begins = {(u, max(e - length, 0)) for u, e in zip(users.tolist(), ends.tolist(), strict=True)}
    assert len(plan_passes(dataset, users, ends).lengths) == len(begins)


def test_a_stride_spares_tokens() -> None:
    # 60 items, histories of 10, a pass every 5: 10 starts after the first, at most 10 tokens each
    dataset = dataset_of([list(range(60))], 10)
    ends = np.arange(1, 60, dtype=np.int32)
    users = np.zeros_like(ends)
    assert plan_passes(dataset, users, ends, stride=5).lengths.tolist() == [10] * 10 + [9]
    # without: ends 1..10 share a pass, the other 49 have one each
    assert plan_passes(dataset, users, ends).lengths.tolist() == [10] * 50


@given(asked(), st.integers(1, 40), st.randoms(use_true_random=False))
def test_batches_hold_all_passes_in_order_within_the_budget(
    case: tuple[Dataset, np.ndarray, np.ndarray], budget: int, random: object
) -> None:
    dataset, users, ends = case
    passes = plan_passes(dataset, users, ends)
    order = np.arange(len(passes.lengths))
    random.shuffle(order)  # type: ignore[attr-defined]
    for cost in (passes.lengths, passes.counts):
        runs = list(passes.batches(order, budget, cost))
        assert np.concatenate(runs).tolist() == order.tolist()
        for number, run in enumerate(runs):
            assert len(run) == 1 or cost[run].sum() <= budget
            if number + 1 < len(runs):  # and no run is cut early
                assert cost[run].sum() + cost[runs[number + 1][0]] > budget


def test_nothing_asked_costs_nothing() -> None:
    none = np.empty(0, np.int32)
    passes = plan_passes(dataset_of([[0, 1]], 4), none, none)
    assert (len(passes.lengths), len(passes.order)) == (0, 0)
    assert list(passes.batches(np.arange(0), 5, passes.lengths)) == []


@pytest.mark.parametrize("stride", [0, 5])
def test_a_stride_beyond_the_length_is_refused(stride: int) -> None:
    one = np.ones(1, np.int32)
    with pytest.raises(ValueError, match="a stride of 1 to 4 expected"):
        plan_passes(dataset_of([[0, 1, 2]], 4), one - 1, one, stride=stride)
