"""Section 3.6 of the paper: eqs. 3-5 and 7 by hand, against loops over teachers, users and items, and as laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cache.score_writer import log_softmax
from student.consistency import (
    Consistency,
    consistency_weights,
    disagreement,
    join,
    retemper,
    threshold,
)

# Fig. 2: three teachers (rows) score three items (columns) for one user
FIGURE = torch.tensor([[0.21, 0.23, 0.15], [0.22, 0.04, 0.08], [0.09, 0.05, 0.17]])[
    :, None
].double()
EQUAL = torch.full((3,), 1 / 3, dtype=torch.float64)
UNEQUAL = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)

Nested = list[list[list[float]]]


def by_the_paper(
    scores: Nested, prior: list[float], epsilon: float, by: Consistency
) -> tuple[Nested, list[list[float]]]:
    """(weights, joined scores), written down from 3.6.1, 3.6.2 and eq. 5; teachers, users, items."""
    teachers, users, items = len(scores), len(scores[0]), len(scores[0][0])
    conf = [[[0.0] * items for _ in range(users)] for _ in range(teachers)]
    for k in range(teachers):
        for i in range(users):
            for j in range(items):
                for other in range(teachers):
                    if other != k:
                        gap = items * scores[k][i][j] - items * scores[other][i][j]
                        conf[k][i][j] -= gap**2
    weights = [[[prior[k]] * items for _ in range(users)] for k in range(teachers)]
    for i in range(users):
        for j in range(items):
            if by == "user":
                seen = [sum(conf[k][i]) / items for k in range(teachers)]
            else:
                seen = [conf[k][i][j] for k in range(teachers)]
            least = min(range(teachers), key=seen.__getitem__)
            if by == "off" or teachers < 3 or -seen[least] <= epsilon:
                continue
            for k in range(teachers):
                weights[k][i][j] += prior[least] / (teachers - 1)
            weights[least][i][j] = 0.0
    joined = [
        [sum(weights[k][i][j] * scores[k][i][j] for k in range(teachers)) for j in range(items)]
        for i in range(users)
    ]
    return weights, joined


def softmaxes(seed: int, teachers: int, users: int, items: int) -> Tensor:
    raw = np.random.default_rng(seed).normal(size=(teachers, users, items))
    return torch.softmax(torch.from_numpy(raw), dim=-1)


def shares(seed: int, teachers: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(teachers)))


seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 6)
granularities = st.sampled_from(["pair", "user", "off"])


def test_disagreement_in_figure_2_by_hand() -> None:
    # item 1: teachers say .21 .22 .09; teacher 1 stands .01 and .12 from the others: .0001 + .0144, and so on;
    # relative to uniform every score is times 3, every square times 9
    squares = [[0.0145, 0.0685, 0.0053], [0.0170, 0.0362, 0.0130], [0.0313, 0.0325, 0.0085]]
    expected = 9 * torch.tensor(squares, dtype=torch.float64)[:, None]
    torch.testing.assert_close(disagreement(FIGURE), expected)


def test_figure_2_drops_another_teacher_for_each_item() -> None:
    weights = consistency_weights(FIGURE, EQUAL, epsilon=0.0)
    expected = torch.tensor([[0.5, 0.0, 0.5], [0.5, 0.5, 0.0], [0.0, 0.5, 0.5]])[:, None].double()
    torch.testing.assert_close(weights, expected)


def test_figure_2_with_unequal_weights_down_to_the_target_by_hand() -> None:
    # item 1 drops teacher 3 (.2, a half to each): .6 * .21 + .4 * .22; item 2 drops teacher 1 (.5):
    # .55 * .04 + .45 * .05; item 3 drops teacher 2 (.3): .65 * .15 + .35 * .17
    joined = torch.tensor([[0.214, 0.0445, 0.157]], dtype=torch.float64)
    got = join(FIGURE, UNEQUAL, epsilon=0.0)
    torch.testing.assert_close(got, joined / 0.4155)


def test_up_to_epsilon_the_default_weights_stand() -> None:
    # the largest disagreements are .2817, .6165 and .117: only item 3 lies below .2
    weights = consistency_weights(FIGURE, UNEQUAL, epsilon=0.2)
    expected = torch.tensor([[0.6, 0.0, 0.5], [0.4, 0.55, 0.3], [0.0, 0.45, 0.2]])[:, None].double()
    torch.testing.assert_close(weights, expected)


def test_by_user_one_teacher_is_dropped_for_all_his_items() -> None:
    # means over the items, times 9: .0883 * 3, .0662 * 3, .0723 * 3; teacher 1 with .2649 is the worst
    weights = consistency_weights(FIGURE, UNEQUAL, epsilon=0.26, by="user")
    assert weights.shape == (3, 1, 1)
    torch.testing.assert_close(weights.flatten(), torch.tensor([0.0, 0.55, 0.45]).double())
    kept = consistency_weights(FIGURE, UNEQUAL, epsilon=0.27, by="user")
    torch.testing.assert_close(kept.flatten(), UNEQUAL)


@given(seeds, sizes, sizes, sizes, st.floats(0, 3), granularities)
def test_weights_and_targets_are_those_of_loops_over_teachers_users_and_items(
    seed: int, teachers: int, users: int, items: int, epsilon: float, by: Consistency
) -> None:
    scores, prior = softmaxes(seed, teachers, users, items), shares(seed, teachers)
    weights, joined = by_the_paper(scores.tolist(), prior.tolist(), epsilon, by)
    got = consistency_weights(scores, prior, epsilon=epsilon, by=by).expand(scores.shape)
    torch.testing.assert_close(got, torch.tensor(weights, dtype=torch.float64))
    target = [[value / sum(row) for value in row] for row in joined]  # eq. 7
    got = join(scores, prior, epsilon=epsilon, by=by, floor=0.0)
    torch.testing.assert_close(got, torch.tensor(target, dtype=torch.float64))


@given(seeds, sizes, sizes, sizes, st.one_of(st.floats(0, 3), st.just("0.5q")), granularities)
def test_weights_are_shares(
    seed: int, teachers: int, users: int, items: int, epsilon: float | str, by: Consistency
) -> None:
    scores, prior = softmaxes(seed, teachers, users, items), shares(seed, teachers)
    weights = consistency_weights(scores, prior, epsilon=epsilon, by=by)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(dim=0), torch.ones_like(weights[0]))


@given(seeds, st.permutations(range(4)), granularities)
def test_renaming_the_teachers_only_renames_their_weights(
    seed: int, renamed: list[int], by: Consistency
) -> None:
    scores, prior = softmaxes(seed, 4, 3, 5), shares(seed, 4)
    once = consistency_weights(scores, prior, epsilon=0.5, by=by)
    again = consistency_weights(scores[renamed], prior[renamed], epsilon=0.5, by=by)
    torch.testing.assert_close(again, once[renamed])
    target = join(scores, prior, epsilon=0.5, by=by)
    torch.testing.assert_close(join(scores[renamed], prior[renamed], epsilon=0.5, by=by), target)


@given(seeds, st.integers(1, 2), sizes, sizes, granularities)
def test_one_or_two_teachers_are_never_dropped(
    seed: int, teachers: int, users: int, items: int, by: Consistency
) -> None:
    scores, prior = softmaxes(seed, teachers, users, items), shares(seed, teachers)
    weights = consistency_weights(scores, prior, epsilon=0.0, by=by)
    assert torch.equal(weights, prior[:, None, None])


@given(seeds, st.integers(3, 6), granularities)
def test_teachers_of_one_mind_keep_their_weights(seed: int, teachers: int, by: Consistency) -> None:
    scores, prior = softmaxes(seed, 1, 3, 4).expand(teachers, 3, 4), shares(seed, teachers)
    # not 0: the mean of equal numbers may be off by a last bit
    weights = consistency_weights(scores, prior, epsilon=1e-9, by=by)
    assert torch.equal(weights.expand(scores.shape), prior[:, None, None].expand(scores.shape))
    for epsilon in (0.0, "0.8q"):
        target = join(scores, prior, epsilon=epsilon, by=by, floor=0.0)
        torch.testing.assert_close(target, scores[0])


@given(seeds, st.integers(1, 8), st.integers(3, 12), st.sampled_from([0.5, 0.8, 0.9, 1.0]))
def test_a_quantile_drops_the_rest_of_the_pairs(
    seed: int, users: int, items: int, quantile: float
) -> None:
    # of 20 pairs 0.8q drops the 4 with the largest disagreement; from three items on no two pairs are equal
    scores = softmaxes(seed, 3, users, items)
    weights = consistency_weights(scores, EQUAL, epsilon=f"{quantile}q").expand(scores.shape)
    dropped = (weights == 0).any(dim=0)
    pairs = users * items
    assert int(dropped.sum()) == pairs - max(1, round(quantile * pairs))
    worst = disagreement(scores).amax(dim=0)
    if dropped.any():
        assert worst[dropped].min() > worst[~dropped].max()


def test_thresholds_by_hand() -> None:
    worst = torch.tensor([[3.0, 1.0, 5.0, 2.0, 4.0], [8.0, 6.0, 10.0, 7.0, 9.0]])
    assert threshold(worst, 0.25) == 0.25
    assert threshold(worst, "0.8q") == 8  # eight of ten do not exceed it
    assert threshold(worst, "1q") == 10  # none does
    assert threshold(worst, "0q") == 1


def test_of_two_equally_far_teachers_exactly_one_is_dropped() -> None:
    # .125 .25 .375 are exact in binary: teachers 1 and 3 stand equally far; 2 is between them
    scores = torch.tensor([0.125, 0.25, 0.375])[:, None, None].expand(3, 2, 4)
    weights = consistency_weights(scores, EQUAL, epsilon=0.0)
    assert torch.equal(disagreement(scores)[0], disagreement(scores)[2])
    assert torch.equal((weights == 0).sum(dim=0), torch.ones(2, 4, dtype=torch.int64))
    assert (weights[1] == 0.5).all()
    assert (weights[0] == 0).all()  # always the first, so the same everywhere


def test_teachers_without_weight_can_be_dropped_and_can_inherit() -> None:
    scores = torch.tensor([0.5, 0.1, 0.1]).reshape(3, 1, 1)
    alone = torch.tensor([1.0, 0.0, 0.0])
    weights = consistency_weights(scores, alone, epsilon=0.0)
    assert weights.flatten().tolist() == [0.0, 0.5, 0.5]
    weights = consistency_weights(scores, alone.flip(0), epsilon=0.0)
    assert weights.flatten().tolist() == [0.0, 0.0, 1.0]


@given(seeds, st.integers(1, 4), sizes, st.integers(1, 30), st.floats(1e-8, 1e-3), granularities)
def test_rows_of_the_target_sum_to_one_and_stay_above_the_floor(
    seed: int, teachers: int, users: int, items: int, floor: float, by: Consistency
) -> None:
    raw = np.random.default_rng(seed).normal(size=(teachers, users, items))
    scores = torch.softmax(torch.from_numpy(raw).float() * 50, dim=-1)  # sharp: many are 0
    target = join(scores, shares(seed, teachers).float(), epsilon=0.1, by=by, floor=floor)
    torch.testing.assert_close(target.sum(dim=-1), torch.ones(users))
    # before eq. 7 a row sums to at most K when each pair picks its own teachers, plus the floors
    assert (target >= floor / (teachers + items * floor) * (1 - 1e-5)).all()


def test_the_floor_by_hand() -> None:
    scores = torch.tensor([[[1.0, 0.0]]])
    got = join(scores, torch.ones(1), epsilon=0.0, floor=0.25)
    torch.testing.assert_close(got, torch.tensor([[0.8, 0.2]]))  # (1, 1/4) over 5/4


def test_joining_leaves_the_teachers_scores_as_they_are() -> None:
    for teachers in (1, 3):
        scores = softmaxes(0, teachers, 2, 3)
        before = scores.clone()
        join(scores, shares(0, teachers), epsilon=0.0)
        assert torch.equal(scores, before)


def test_retempering_by_hand() -> None:
    # (4/5, 1/5) at tau 1: half the temperature squares, 16 : 1; twice it takes the root, 2 : 1
    stored = torch.tensor([[0.8, 0.2]]).log()
    assert retemper(stored, 1.0, 0.5).exp()[0].tolist() == pytest.approx([16 / 17, 1 / 17])
    assert retemper(stored, 1.0, 2.0).exp()[0].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert retemper(stored, 0.07, 0.07).exp()[0].tolist() == pytest.approx([0.8, 0.2])


@given(seeds, sizes, sizes, st.floats(0.05, 1), st.floats(0.05, 1))
def test_the_softmax_at_any_temperature_can_be_had_from_the_stored_one(
    seed: int, users: int, items: int, stored_tau: float, tau: float
) -> None:
    raw = torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, size=(users, items)))
    stored = torch.log_softmax(raw / stored_tau, dim=-1)
    expected = torch.softmax(raw / tau, dim=-1)
    got = retemper(stored, stored_tau, tau).double()
    # float32 keeps 7 digits of a logarithm of at most 42, times a ratio of at most 20
    torch.testing.assert_close(got.exp(), expected, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(got.exp().sum(dim=-1), torch.ones(users).double())


@given(seeds, st.floats(0.05, 1))
def test_half_precision_on_disk_moves_a_target_by_a_percent_at_most(seed: int, tau: float) -> None:
    # stored logarithms are below 32, so float16 rounds them by at most 2^-7 of a nat at tau 0.07; a hotter softmax
    # shrinks that, a colder one (0.05) stretches it by 1.4
    raw = np.random.default_rng(seed).uniform(-1, 1, size=(3, 8)).astype(np.float32)
    stored = torch.from_numpy(log_softmax(raw, 0.07))
    expected = torch.log_softmax(torch.from_numpy(raw) / tau, dim=-1)
    worst = (retemper(stored, 0.07, tau) - expected).abs().max().item()
    assert worst <= 2 * 2**-7 * max(1.0, 0.07 / tau)
    assert math.isfinite(worst)
