"""How teachers are weighed and at which temperature they are joined, by default and when asked."""

from __future__ import annotations

import math

import pytest

from cache.errors import UsageError
from student.targets import JoinSettings, join_settings
from tests.student.known import Ground, KnownScores


def test_default_weights_are_proportional_to_the_teachers_quality(ground: Ground) -> None:
    _, plan = ground
    readers = [KnownScores(plan, name=n, quality=q) for n, q in (("a", 0.06), ("b", 0.02))]
    settings = join_settings(readers)
    assert settings.weights == pytest.approx((0.75, 0.25))
    assert settings == JoinSettings(
        tau=0.5, weights=settings.weights, consistency="pair", epsilon="0.8q"
    )


@pytest.mark.parametrize("qualities", [(0.06, None), (None, None), (0.0, 0.0)])
def test_default_weights_are_equal_where_a_quality_is_unknown(
    ground: Ground, qualities: tuple[float | None, ...]
) -> None:
    _, plan = ground
    readers = [KnownScores(plan, name=str(k), quality=q) for k, q in enumerate(qualities)]
    assert join_settings(readers).weights == (0.5, 0.5)


def test_a_teacher_known_to_be_worthless_has_no_weight(ground: Ground) -> None:
    _, plan = ground
    readers = [KnownScores(plan, name=n, quality=q) for n, q in (("a", 0.06), ("b", 0.0))]
    assert join_settings(readers).weights == (1.0, 0.0)


def test_weights_that_are_given_are_scaled_to_shares_in_the_readers_order(ground: Ground) -> None:
    _, plan = ground
    readers = [KnownScores(plan, name=n, quality=0.1) for n in ("b", "a")]
    assert join_settings(readers, weights={"a": 1, "b": 3}).weights == (0.75, 0.25)
    assert join_settings(readers, weights={"a": 0, "b": 3}).weights == (1.0, 0.0)


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({"a": 1.0}, r"weights are given for \['a'\], the teachers are \['a', 'b'\]"),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, r"for \['a', 'b', 'c'\], the teachers are \['a', 'b'\]"),
        ({"a": 1.0, "c": 1.0}, r"weights are given for \['a', 'c'\]"),
        ({"a": 2.0, "b": -1.0}, r"weights {'a': 2.0, 'b': -1.0} found"),
        ({"a": 0.0, "b": 0.0}, "not all 0 expected"),
        ({"a": math.inf, "b": 1.0}, "finite numbers from 0"),
        ({"a": math.nan, "b": 1.0}, "finite numbers from 0"),
        ({"a": 1.0, "b": math.nan}, "finite numbers from 0"),
    ],
)
def test_weights_that_are_no_shares_of_these_teachers_are_refused(
    ground: Ground, weights: dict[str, float], told: str
) -> None:
    _, plan = ground
    readers = [KnownScores(plan, name=n, quality=0.1) for n in ("a", "b")]
    with pytest.raises(UsageError, match=told) as refusal:
        join_settings(readers, weights=weights)
    assert refusal.value.code == "fit.bad_weights"


def test_score_sets_of_different_temperatures_need_a_choice(ground: Ground) -> None:
    _, plan = ground
    readers = [KnownScores(plan, name=n, tau=t) for n, t in (("a", 0.5), ("b", 0.07))]
    with pytest.raises(UsageError, match=r"temperatures \[0.07, 0.5\]; choose one") as refusal:
        join_settings(readers)
    assert refusal.value.code == "fit.mixed_tau"
    assert join_settings(readers, tau=0.1).tau == 0.1
    assert join_settings(readers[:1]).tau == 0.5
