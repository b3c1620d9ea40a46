"""Eqs. 6-10 by hand and against loops; the fused loss against the plain composition, its gradient against autograd's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from student import losses
from student.losses import Direction, cross_entropy, distillation_loss, fused_loss

BOTH: tuple[Direction, ...] = ("teacher-student", "student-teacher")
FORWARD, TO_THE_LETTER = BOTH

# softmaxes (1/4, 3/4) and (4/5, 1/5)
LOGITS = torch.tensor([[0.0, math.log(3)], [math.log(4), 0.0]], dtype=torch.float64)
HALVES = torch.full((2, 2), 0.5, dtype=torch.float64)
CE_BY_HAND = (math.log(4 / 3) + math.log(5 / 4)) / 2  # targets: second column, first column
KL_BY_HAND = {
    # 1/2 log(1/2 : 1/4) + 1/2 log(1/2 : 3/4), and 1/2 log(5/8) + 1/2 log(5/2)
    FORWARD: (0.5 * math.log(4 / 3) + 0.5 * math.log(25 / 16)) / 2,
    # 1/4 log(1/4 : 1/2) + 3/4 log(3/4 : 1/2), and 4/5 log(8/5) + 1/5 log(2/5)
    TO_THE_LETTER: (
        0.25 * math.log(0.5) + 0.75 * math.log(1.5) + 0.8 * math.log(1.6) + 0.2 * math.log(0.4)
    )
    / 2,
}

SLOTS, ITEMS, COLUMNS, WIDTH = 5, 11, 4, 3
seeds = st.integers(0, 2**32 - 1)


class Case:
    """Vectors, targets and a distribution over the batch's columns; float64, so that equal means equal."""

    def __init__(self, seed: int = 0, scale: float = 1.0) -> None:
        rng = np.random.default_rng(seed)
        self.users = torch.from_numpy(rng.normal(size=(SLOTS, WIDTH)) * scale).requires_grad_()
        self.table = torch.from_numpy(rng.normal(size=(ITEMS, WIDTH)) * scale).requires_grad_()
        self.items = torch.from_numpy(rng.permutation(ITEMS)[:COLUMNS])
        self.columns = torch.from_numpy(rng.integers(0, COLUMNS, SLOTS))
        self.rows = self.items[self.columns]
        self.target = torch.softmax(torch.from_numpy(rng.normal(size=(SLOTS, COLUMNS))), dim=-1)
        self.entropy = float(torch.special.entr(self.target).sum() / SLOTS)

    def gradients(self, loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, [self.users, self.table])

    def composed(
        self, *, full: bool, weight: float | None, kl: Direction
    ) -> tuple[Tensor, Tensor, Tensor | float]:
        """Eq. 10 from its published parts; `weight` None is the base model."""
        logits_TV = self.users @ self.table.T
        logits_TC = logits_TV[:, self.items]
        ce = cross_entropy(logits_TV, self.rows) if full else cross_entropy(logits_TC, self.columns)
        if weight is None:
            return ce, ce, 0.0
        kd = distillation_loss(logits_TC, self.target, kl)
        return ce + weight * kd, ce, kd

    def fused(
        self,
        *,
        full: bool,
        weight: float | None,
        kl: Direction,
        left_out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        taught = weight is not None
        return fused_loss(
            self.users,
            self.table if full else self.table[self.items],
            self.rows if full else self.columns,
            items_C=self.items if full else None,
            target_TC=self.target if taught else None,
            entropy=self.entropy if taught else 0.0,
            weight=weight or 0.0,
            kl=kl,
            left_out_TV=left_out,
        )


def modes() -> Iterator[tuple[bool, float | None, Direction]]:
    yield from ((full, None, FORWARD) for full in (True, False))
    yield from product((True, False), (0.0, 1.0, 5.0), BOTH)


MODES = pytest.mark.parametrize(("full", "weight", "kl"), list(modes()))


def loops(logits: list[list[float]], target: list[list[float]], kl: Direction) -> float:
    """Eqs. 8 and 9, user by user and item by item; the mean over users."""
    total = 0.0
    for row, q in zip(logits, target, strict=True):
        whole = sum(math.exp(value) for value in row)
        for j in range(len(row)):
            p = math.exp(row[j]) / whole
            total += p * math.log(p / q[j]) if kl == TO_THE_LETTER else q[j] * math.log(q[j] / p)
    return total / len(logits)


def plain(value: Tensor | float) -> float:
    return value.item() if isinstance(value, Tensor) else value


def test_cross_entropy_by_hand() -> None:
    assert cross_entropy(LOGITS, torch.tensor([1, 0])).item() == pytest.approx(CE_BY_HAND)


@pytest.mark.parametrize("kl", BOTH)
def test_divergence_by_hand(kl: Direction) -> None:
    assert distillation_loss(LOGITS, HALVES, kl).item() == pytest.approx(KL_BY_HAND[kl])


def test_the_default_direction_is_from_teacher_to_student() -> None:
    assert distillation_loss(LOGITS, HALVES).item() == pytest.approx(KL_BY_HAND[FORWARD])


@pytest.mark.parametrize("kl", BOTH)
def test_the_fused_loss_by_hand(kl: Direction) -> None:
    # users are unit vectors and the items' are columns of LOGITS, so LOGITS are the scores; a half-half target has log 2
    total, ce, kd = fused_loss(
        torch.eye(2, dtype=torch.float64),
        LOGITS.T,
        torch.tensor([1, 0]),
        target_TC=HALVES,
        entropy=math.log(2),
        weight=3.0,
        kl=kl,
    )
    assert ce.item() == pytest.approx(CE_BY_HAND)
    assert kd.item() == pytest.approx(KL_BY_HAND[kl])
    assert total.item() == pytest.approx(CE_BY_HAND + 3 * KL_BY_HAND[kl])


@given(seeds, st.integers(1, 5), st.integers(1, 6), st.sampled_from(BOTH))
def test_losses_are_those_of_loops_over_users_and_items(
    seed: int, users: int, items: int, kl: Direction
) -> None:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(users, items)) * 3)
    target = torch.from_numpy(rng.dirichlet(np.ones(items), users) + 1e-3)
    target = target / target.sum(dim=-1, keepdim=True)
    columns = torch.from_numpy(rng.integers(0, items, users))
    expected = loops(logits.tolist(), target.tolist(), kl)
    assert distillation_loss(logits, target, kl).item() == pytest.approx(expected, abs=1e-12)
    ce = -sum(
        math.log(math.exp(row[j]) / sum(map(math.exp, row)))
        for row, j in zip(logits.tolist(), columns.tolist(), strict=True)
    )
    assert cross_entropy(logits, columns).item() == pytest.approx(ce / users, abs=1e-12)


@given(seeds, st.sampled_from(BOTH), st.floats(-50, 50))
def test_a_divergence_is_never_negative_and_nothing_for_the_target_itself(
    seed: int, kl: Direction, shift: float
) -> None:
    case = Case(seed)
    logits = (case.users @ case.table.T)[:, case.items]
    assert distillation_loss(logits, case.target, kl).item() > 0
    # a constant added to a row of logits is no change
    assert distillation_loss(case.target.log() + shift, case.target, kl).item() < 1e-12


@MODES
def test_the_fused_loss_is_the_composition_of_its_parts(
    full: bool, weight: float | None, kl: Direction
) -> None:
    for seed, scale in product(range(5), (0.1, 1.0, 3.0)):
        case = Case(seed, scale)
        expected = case.composed(full=full, weight=weight, kl=kl)
        got = case.fused(full=full, weight=weight, kl=kl)
        for one, other in zip(map(plain, got), map(plain, expected), strict=True):
            assert one == pytest.approx(other, rel=1e-10, abs=1e-10)
        for one, other in zip(case.gradients(got[0]), case.gradients(expected[0]), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@MODES
def test_float32_by_other_kernels_is_float64_to_rounding(
    full: bool, weight: float | None, kl: Direction
) -> None:
    case = Case(7)
    expected = case.fused(full=full, weight=weight, kl=kl)
    slopes = case.gradients(expected[0])
    case.users = case.users.detach().float().requires_grad_()
    case.table = case.table.detach().float().requires_grad_()
    got = case.fused(full=full, weight=weight, kl=kl)
    for one, other in zip((*got, *case.gradients(got[0])), (*expected, *slopes), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("left_out", [True, False])
@MODES
def test_slots_that_pass_a_few_at_a_time_change_nothing(
    full: bool,
    weight: float | None,
    kl: Direction,
    left_out: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case(8)

    def found() -> tuple[Tensor, ...]:
        columns = ITEMS if full else COLUMNS
        out = torch.arange(SLOTS * columns).view(SLOTS, columns) % 3 == 0 if left_out else None
        if out is not None:
            out[torch.arange(SLOTS), case.rows if full else case.columns] = False
        three = case.fused(full=full, weight=weight, kl=kl, left_out=out)
        return *three, *case.gradients(three[0])

    whole = found()
    monkeypatch.setattr(losses, "_BLOCK_ENTRIES", 2 * 64)  # 64 columns are the fewest: 2, 2 and 1
    assert len(list(losses._blocks(SLOTS, 64, torch.device("cpu")))) == 3
    for one, other in zip(found(), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@MODES
def test_the_fused_gradient_is_the_slope_of_the_fused_loss(
    full: bool, weight: float | None, kl: Direction
) -> None:
    case = Case(1)

    def total(users: Tensor, table: Tensor) -> Tensor:
        case.users, case.table = users, table
        return case.fused(full=full, weight=weight, kl=kl)[0]

    assert torch.autograd.gradcheck(total, (case.users, case.table))


@pytest.mark.parametrize("kl", BOTH)
@pytest.mark.parametrize("full", [True, False])
def test_what_another_loss_left_in_memory_changes_no_bit(full: bool, kl: Direction) -> None:
    """Whether it was larger, was no number, or came in between the two passes."""
    case, large = Case(2), torch.full((9 * SLOTS, WIDTH), torch.nan, dtype=torch.float64)
    whole = case.fused(full=full, weight=5.0, kl=kl)
    before = case.gradients(whole[0])
    fused_loss(large, case.table, torch.zeros(len(large), dtype=torch.int64))
    again = case.fused(full=full, weight=5.0, kl=kl)
    Case(3).fused(full=not full, weight=1.0, kl=kl)
    after = case.gradients(again[0])
    for one, other in zip((*again, *after), (*whole, *before), strict=True):
        assert torch.equal(one, other)


def test_a_second_backward_pass_gives_the_same_again() -> None:
    case = Case(3)
    total, _, _ = case.fused(full=True, weight=1.0, kl=FORWARD)
    first = torch.autograd.grad(3 * total, [case.users, case.table], retain_graph=True)
    assert all(map(torch.equal, first, case.gradients(3 * total)))


def test_without_gradients_the_numbers_are_the_same() -> None:
    case = Case(4)
    told = case.fused(full=True, weight=1.0, kl=FORWARD)
    for off in (torch.no_grad(), torch.inference_mode()):
        with off:
            found = case.fused(full=True, weight=1.0, kl=FORWARD)
        assert not found[0].requires_grad
        assert all(map(torch.equal, found, told))
    case.gradients(case.fused(full=True, weight=1.0, kl=FORWARD)[0])


def test_a_loss_that_is_scaled_scales_its_gradient() -> None:
    case = Case(5)
    whole = case.gradients(case.fused(full=True, weight=2.0, kl=FORWARD)[0])
    half = case.gradients(0.5 * case.fused(full=True, weight=2.0, kl=FORWARD)[0])
    for one, other in zip(half, whole, strict=True):
        torch.testing.assert_close(one, other / 2)


def test_only_the_total_carries_a_gradient() -> None:
    total, ce, kd = Case(6).fused(full=True, weight=2.0, kl=FORWARD)
    assert [total.requires_grad, ce.requires_grad, kd.requires_grad] == [True, False, False]


def test_a_second_derivative_is_refused_not_wrong() -> None:
    case = Case(7)
    total, _, _ = case.fused(full=True, weight=1.0, kl=FORWARD)
    (slope,) = torch.autograd.grad(total, case.users, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(slope.sum(), case.users)


@MODES
def test_inputs_are_left_as_they_are(full: bool, weight: float | None, kl: Direction) -> None:
    case = Case(8)
    before = [one.detach().clone() for one in (case.users, case.table, case.target, case.rows)]
    case.gradients(case.fused(full=full, weight=weight, kl=kl)[0])
    after = [case.users, case.table, case.target, case.rows]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_the_teachers_entropy_shifts_the_reported_divergence_and_nothing_else() -> None:
    case = Case(9)
    true_total, _, true_kd = case.fused(full=True, weight=2.0, kl=FORWARD)
    slopes = case.gradients(true_total)
    case.entropy = 0.0
    total, _, kd = case.fused(full=True, weight=2.0, kl=FORWARD)
    assert (kd - true_kd).item() == pytest.approx(Case(9).entropy)
    assert all(map(torch.equal, case.gradients(total), slopes))


@pytest.mark.parametrize("kl", BOTH)
def test_logits_of_200_stay_finite_and_their_gradient_right(kl: Direction) -> None:
    # in float32 e^-400 is 0: the target's probability underflows in every second slot
    users = torch.tensor([[1.0], [-1.0]]).requires_grad_()
    table = torch.tensor([[200.0], [-200.0], [0.0], [199.0]]).requires_grad_()
    rows, items = torch.tensor([0, 0]), torch.tensor([0, 1])
    target = torch.tensor([[0.5, 0.5], [1e-8, 1 - 1e-8]])
    entropy = float(torch.special.entr(target.double()).sum() / 2)
    total, ce, kd = fused_loss(
        users,
        table,
        rows,
        items_C=items,
        target_TC=target,
        entropy=entropy,
        weight=5.0,
        kl=kl,
    )
    wide_users, wide_table = (one.detach().double().requires_grad_() for one in (users, table))
    logits = wide_users @ wide_table.T
    true_ce = cross_entropy(logits, rows)
    true_kd = distillation_loss(logits[:, items], target.double(), kl)
    assert kd.item() == pytest.approx(true_kd.item(), rel=1e-6)
    # slot 1: log(1 + e^-1); slot 2: 400 nats, of which float32 can tell 87.3
    assert true_ce.item() == pytest.approx((math.log1p(math.exp(-1)) + 400) / 2)
    least = math.log(torch.finfo(torch.float32).tiny)
    assert ce.item() == pytest.approx((math.log1p(math.exp(-1)) - least) / 2, rel=1e-6)
    assert total.item() == pytest.approx(ce.item() + 5 * kd.item())
    got = torch.autograd.grad(total, [users, table])
    expected = torch.autograd.grad(true_ce + 5 * true_kd, [wide_users, wide_table])
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("weight", [None, 1.0])
def test_a_student_that_is_no_number_is_reported_so(bad: float, weight: float | None) -> None:
    case = Case(10)
    with torch.no_grad():
        case.table[3, 1] = bad
    total, ce, _ = case.fused(full=True, weight=weight, kl=FORWARD)
    assert not math.isfinite(total.item())
    assert not math.isfinite(ce.item())


@pytest.mark.parametrize("kl", BOTH)
@pytest.mark.parametrize("full", [True, False])
def test_under_bfloat16_autocast_only_the_students_own_products_are_rounded(
    full: bool, kl: Direction
) -> None:
    case = Case(11)
    layer = torch.nn.Linear(WIDTH, WIDTH).requires_grad_(False)
    narrow = [one.detach().float().requires_grad_() for one in (case.users, case.table)]
    with torch.autocast("cpu", torch.bfloat16):
        case.users, case.table = layer(narrow[0]), narrow[1]
        assert case.users.dtype == torch.bfloat16
        got = case.fused(full=full, weight=5.0, kl=kl)
        slopes = torch.autograd.grad(got[0], narrow, retain_graph=True)  # within
    assert all(map(torch.equal, torch.autograd.grad(got[0], narrow), slopes))  # and outside
    assert {one.dtype for one in (*got, *slopes)} == {torch.float32}
    # the users as the rounded layer gave them, everything after it in float64
    case.users, case.table = (
        one.detach().double().requires_grad_() for one in (case.users, case.table)
    )
    expected = case.composed(full=full, weight=5.0, kl=kl)
    for one, other in zip(got, expected, strict=True):
        assert one.item() == pytest.approx(plain(other), rel=1e-5)
    torch.testing.assert_close(
        slopes[1].double(), case.gradients(expected[0])[1], rtol=1e-4, atol=1e-5
    )


def test_a_float64_student_learns_from_float32_targets() -> None:
    case = Case(12)
    expected = case.fused(full=True, weight=5.0, kl=FORWARD)[0]
    case.target = case.target.float()
    got = case.fused(full=True, weight=5.0, kl=FORWARD)[0]
    assert got.dtype == torch.float64
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)
