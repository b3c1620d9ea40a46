"""Codec `u8` by itself: its bytes by hand, its laws, and how far the softmax moves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cache.codec import ABSENT, AFFINE_BYTES, decode, encode_into, half_steps
from cache.score_writer import log_softmax_32


def coded(log_TC: np.ndarray, slots: int | None = None, columns: int | None = None) -> np.ndarray:
    rows, width = log_TC.shape
    codes = np.zeros((slots or rows, (columns or width) + AFFINE_BYTES), np.uint8)
    encode_into(codes, log_TC)
    return codes


def back(codes: np.ndarray, rows: int, width: int, dtype: type = np.float32) -> np.ndarray:
    out = np.empty((rows, width), dtype)
    decode(codes, out)
    return out


def test_a_batch_by_hand():
    # row 0 spans -0.5 to -127.5: step 127 / 254 = 0.5 (0x3800), offset -0.5 (0xb800); -1.1 is 1.2 steps down, so 1
    # row 1 has one value twice: offset -2 (0xc000), no step
    log = np.array([[-0.5, -1.1, -127.5], [-2, -2, -2]], np.float32)
    assert coded(log, slots=3, columns=4).tolist() == [
        [0, 1, 254, 255, 0x00, 0xB8, 0x00, 0x38],
        [0, 0, 0, 255, 0x00, 0xC0, 0x00, 0x00],
        [255] * 8,
    ]
    assert back(coded(log), 2, 3).tolist() == [[-0.5, -1, -127.5], [-2, -2, -2]]


rows = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=8),
    elements=st.one_of(
        st.floats(-30, 0, width=32), st.floats(-60_000, 0, width=32), st.just(np.float32(-6.1))
    ),
)


@given(log=rows)
def test_a_value_comes_back_within_half_a_step(log):
    codes = coded(log)
    half = half_steps(codes)
    # the last bits are float32's own at the size of the row's numbers
    last = np.spacing(np.abs(log).max(axis=1, keepdims=True)) * 4
    assert (np.abs(back(codes, *log.shape) - log) <= half + last).all()
    # a step is no wider than the row asks for: float16 is coarse by 2^-10, offset and step are each rounded up once,
    # and no step is below float16's smallest number
    spread = log.max(axis=1, keepdims=True) - log.min(axis=1, keepdims=True)
    coarse = np.spacing(np.abs(log).max(axis=1, keepdims=True).astype(np.float16))
    assert (2 * half <= (spread + coarse) / 254 * (1 + 2**-9) + 2**-23).all()


@given(log=rows)
def test_order_is_kept(log):
    there = np.take_along_axis(back(coded(log), *log.shape), np.argsort(log, axis=1), axis=1)
    assert (np.diff(there, axis=1) >= 0).all()


@given(log=rows, more=st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_what_a_batch_does_not_have_is_marked_and_nothing_else(log, more):
    slots, columns = log.shape[0] + more[0], log.shape[1] + more[1]
    codes = coded(log, slots, columns)
    here = codes[: log.shape[0], : log.shape[1]]
    assert (here != ABSENT).all()
    assert (codes[log.shape[0] :] == ABSENT).all()
    assert (codes[: log.shape[0], log.shape[1] : columns] == ABSENT).all()
    assert np.isnan(half_steps(codes[log.shape[0] :])).all()
    assert np.array_equal(back(codes, *log.shape), back(coded(log), *log.shape))


@given(log=rows)
def test_float16_is_the_same_rounded_once(log):
    codes = coded(log)
    wanted = back(codes, *log.shape).astype(np.float16)
    assert np.array_equal(back(codes, *log.shape, np.float16), wanted)


@pytest.mark.parametrize("value", [0.0, -1e-7, -6.1, -65_504.0])
def test_a_single_column_and_rows_of_equal_values_are_exact_to_float16(value):
    for width in (1, 5):
        log = np.full((3, width), value, np.float32)
        found = back(coded(log), 3, width)
        assert len(np.unique(found)) == 1
        assert np.abs(found - log).max() <= half_steps(coded(log)).max() <= 2**-13


@pytest.mark.parametrize("tau", [0.2, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("scale", [0.1, 0.2])
def test_the_softmax_hardly_moves(tau, scale):
    """Cosines with the spread that teachers' have, and a clear favourite in each row; bar 1e-4 nats in every row."""
    rng = np.random.default_rng(0)
    raw = np.clip(rng.normal(scale=scale, size=(512, 450)), -1, 1).astype(np.float32)
    raw[np.arange(512), rng.integers(0, 450, 512)] += np.float32(0.3)
    log = log_softmax_32(raw, 0.07)
    p, q = (
        log_softmax_32(some * np.float32(0.07), tau).astype(np.float64)
        for some in (log, back(coded(log), *log.shape))
    )
    divergence = (np.exp(p) * (p - q)).sum(axis=1)
    assert divergence.max() <= 1e-4
    assert divergence.max() > 0  # it did go through bytes
