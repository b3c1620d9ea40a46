"""Lists and their losses by hand arithmetic, and the laws that hold for any numbers."""

from __future__ import annotations

from itertools import permutations
from math import exp, log, log2

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from student.permutations import (
    coarse_loss,
    discrepancy,
    ensemble,
    fine_loss,
    list_loss,
    list_size,
    top_columns,
)

LOGITS = torch.tensor([[log(1.0), log(2.0), log(3.0), log(4.0)]])

numbers = st.lists(st.floats(-20, 20, width=32), min_size=6, max_size=6, unique=True).map(
    lambda values: torch.tensor([values], dtype=torch.float64)
)


def test_the_fine_loss_is_the_list_mle_of_the_list_with_the_rest_below() -> None:
    # list 3, 1: exponentials 4, 2; the rest 1 + 3. 4 / (4 + 2 + 4) = 2/5, then 2 / (2 + 4) = 1/3
    found = fine_loss(LOGITS, torch.tensor([[3, 1]]))
    assert found.tolist() == pytest.approx([-(log(2 / 5) + log(1 / 3)) / 2])


def test_the_coarse_loss_sets_each_item_against_the_rest_alone() -> None:
    # 4 / (4 + 4) = 1/2 and 2 / (2 + 4) = 1/3
    found = coarse_loss(LOGITS, torch.tensor([[3, 1]]))
    assert found.tolist() == pytest.approx([-(log(1 / 2) + log(1 / 3)) / 2])


def test_a_slot_is_heard_finely_once_its_teachers_have_come_to_their_end() -> None:
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    lists = top_columns(torch.randn(2, 50, generator=torch.Generator().manual_seed(1)), 20)
    coarse, fine = list_loss(logits[:1], lists[:1], torch.tensor([False])), coarse_loss
    assert coarse == fine(logits[:1], lists[:1])[0]
    # the first half are 10 items, the first tenth 2
    halves, tenths = fine_loss(logits[1:], lists[1:, :10]), fine_loss(logits[1:], lists[1:, :2])
    both = list_loss(logits, lists, torch.tensor([False, True]))
    assert both.item() == pytest.approx(((halves + tenths) / 2 + coarse).item() / 2)


@given(numbers)
def test_no_order_of_the_same_items_has_a_smaller_fine_loss_than_their_own(
    logits: torch.Tensor,
) -> None:
    own = top_columns(logits, 3)[0].tolist()
    orders = torch.tensor(list(permutations(own)))
    losses = fine_loss(logits.expand(len(orders), -1), orders)
    assert losses[0] == losses.min()  # `permutations` begins with the order as it stands


@given(numbers, st.permutations([0, 1, 2]))
def test_the_coarse_loss_does_not_see_the_order_and_is_least_for_the_best_items(
    logits: torch.Tensor, order: list[int]
) -> None:
    own = top_columns(logits, 3)
    torch.testing.assert_close(coarse_loss(logits, own), coarse_loss(logits, own[:, order]))
    others = torch.tensor(list(permutations(range(6), 3)))
    least = coarse_loss(logits.expand(len(others), -1), others).min()
    assert coarse_loss(logits, own)[0] <= least + 1e-9


@given(numbers, st.permutations(range(6)))
def test_the_losses_do_not_know_how_the_columns_are_numbered(
    logits: torch.Tensor, order: list[int]
) -> None:
    listed = torch.tensor([[4, 0, 2]])
    where = torch.tensor(order).argsort()
    for loss in (fine_loss, coarse_loss, discrepancy):
        torch.testing.assert_close(loss(logits, listed), loss(logits[:, order], where[listed]))


@given(numbers, st.floats(-5, 5))
def test_a_constant_leaves_every_loss_as_it_is(logits: torch.Tensor, constant: float) -> None:
    listed = torch.tensor([[4, 0, 2]])
    for loss in (fine_loss, coarse_loss):
        torch.testing.assert_close(loss(logits, listed), loss(logits + constant, listed))


def test_the_discrepancy_is_what_is_missing_from_the_lists_ndcg() -> None:
    logits = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0]])
    assert discrepancy(logits, torch.tensor([[0, 1, 2]])).item() == pytest.approx(0, abs=1e-6)
    assert discrepancy(logits, torch.tensor([[3, 4]])).item() == pytest.approx(1)
    # list 2, 0: gains 2^1 - 1 and 2^exp(-0.1) - 1; of the student's first two (0, 1) only 0 counts, at rank 0
    gains = [1.0, 2 ** exp(-0.1) - 1]
    expected = 1 - gains[1] / (gains[0] + gains[1] / log2(3))
    assert discrepancy(logits, torch.tensor([[2, 0]])).item() == pytest.approx(expected, abs=1e-6)


def test_what_several_teachers_put_high_comes_first() -> None:
    # importances: 7 has exp(-0.1) twice, 5 and 3 have 1 once, 1 has exp(-0.2) once, 2 has exp(-0.2) once
    lists = torch.tensor([[[5, 7, 1]], [[3, 7, 2]]])
    found = ensemble(lists, 9)[0].tolist()
    assert found[0] == 7
    assert set(found[1:]) == {5, 3}
    assert ensemble(lists[:1], 9).tolist() == [[5, 7, 1]]


def test_a_list_leaves_at_least_half_of_the_columns_as_the_rest() -> None:
    assert [list_size(100, columns) for columns in (450, 200, 199, 3, 1)] == [100, 100, 99, 1, 1]


def test_the_losses_stay_finite_where_exponentials_do_not() -> None:
    logits = torch.tensor([[1000.0, -1000.0, 500.0, 0.0]], requires_grad=True)
    loss = (
        fine_loss(logits, torch.tensor([[1, 0]])).sum()
        + coarse_loss(logits, torch.tensor([[1, 0]])).sum()
    )
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
