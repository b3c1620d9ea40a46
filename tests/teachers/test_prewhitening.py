"""Whitened text vectors: centred, decorrelated, of one scale, and finite whatever comes in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from teachers import prewhitening
from teachers.prewhitening import whitened


def draws(rows: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    """Vectors in a narrow cone, with correlated numbers of very different scales."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(width, width)) * np.geomspace(0.5, 2, width)
    return (rng.normal(size=(rows, width)) @ mix + 30).astype(np.float32)


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 8))
def test_the_mean_is_zero_and_the_scale_a_half(seed: int, rows: int, width: int) -> None:
    out = whitened(draws(rows, width, seed))
    assert (out.shape, out.dtype) == ((rows, width), np.float32)
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-5)
    if rows > 1:
        assert np.sqrt(np.mean(out.astype(np.float64) ** 2)) == pytest.approx(0.5, abs=1e-4)


def test_the_covariance_is_what_the_floor_leaves_of_the_identity() -> None:
    vectors = draws(4000, 6)
    out = whitened(vectors).astype(np.float64)
    covariance = out.T @ out / len(out)
    values, axes = np.linalg.eigh(np.cov(vectors.T.astype(np.float64), bias=True))
    # a direction of variance v keeps v / (v + a tenth of the mean); its axis stays (ZCA); then one scale for all
    kept = values / (values + 0.1 * values.mean())
    expected = (axes * kept) @ axes.T
    np.testing.assert_allclose(covariance, expected * 0.25 / kept.mean(), atol=1e-5)
    # far closer to the identity: the widest direction had over a hundred times the variance of the narrowest
    after = np.linalg.eigvalsh(covariance)
    assert values.max() > 100 * values.min()
    assert after.max() < 6 * after.min()


def test_white_vectors_stay_as_they_are_but_for_scale() -> None:
    rng = np.random.default_rng(0)
    square, _ = np.linalg.qr(rng.normal(size=(60, 5)))
    white = square - square.mean(0)
    white = white @ np.linalg.inv(np.linalg.cholesky(white.T @ white).T)
    out = whitened(white.astype(np.float32))
    # orthogonal columns of length one over 60 rows: root mean square 1 / sqrt(60), now 1/2
    np.testing.assert_allclose(out, white * np.sqrt(60) / 2, atol=1e-5)


def test_signs_and_order_of_eigenvectors_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = draws(50, 6)
    expected = whitened(vectors)
    real = np.linalg.eigh

    def turned(matrix: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        values, axes = real(matrix)
        return values[::-1], -axes[:, ::-1]

    monkeypatch.setattr(prewhitening.np.linalg, "eigh", turned)
    np.testing.assert_allclose(whitened(vectors), expected, atol=1e-6)


@given(st.integers(0, 2**31))
def test_neither_shift_nor_order_of_items_matters(seed: int) -> None:
    vectors = draws(30, 4, seed)
    order = np.random.default_rng(seed).permutation(30)
    np.testing.assert_allclose(whitened(vectors[order]), whitened(vectors)[order], atol=1e-4)
    np.testing.assert_allclose(whitened(vectors + 5), whitened(vectors), atol=1e-3)


def test_cosines_tell_items_apart_that_lay_in_a_cone() -> None:
    def spread(table: NDArray[np.float32]) -> float:
        unit = table / np.linalg.norm(table, axis=1, keepdims=True)
        return float((unit @ unit.T).std())

    vectors = draws(200, 6)
    assert spread(vectors) < 0.05
    assert spread(whitened(vectors)) > 0.3


@pytest.mark.parametrize(
    "vectors",
    [
        np.zeros((5, 3)),
        np.full((5, 3), 0.1),
        np.ones((1, 4)),
        np.concatenate([draws(9, 3), np.full((9, 1), 7)], axis=1),  # a constant column
        np.concatenate([draws(9, 3), draws(9, 3)], axis=1),  # of half the rank
        draws(3, 20),  # fewer items than numbers
        np.array([[1, 2], [1, 2], [1, 2.0001]]),
        np.array([[1e-30, 0], [0, 1e-30]]),
        np.array([[1e18, 0], [0, -1e18]]),
    ],
)
def test_degenerate_vectors_stay_finite(vectors: NDArray[np.float64]) -> None:
    out = whitened(vectors.astype(np.float32))
    assert np.isfinite(out).all()
    assert np.abs(out).max() < 10


def test_what_comes_in_is_not_changed() -> None:
    vectors = draws(9, 3)
    kept = vectors.copy()
    vectors.setflags(write=False)
    whitened(vectors)
    assert np.array_equal(vectors, kept)
