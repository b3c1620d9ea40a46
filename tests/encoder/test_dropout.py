"""Dropout: its rate, its expectation, its reproducibility; and the seeds of steps."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from encoder.dropout import Dropout, Rate, dropout, seed_step

COUNT = 200_000
RATES = pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.9])


def share(rate: float) -> float:
    """The rate in 256ths, as the module says."""
    return round(rate * 256) / 256


def five_sigma(p: float, count: int) -> float:
    return 5 * math.sqrt(p * (1 - p) / count)


@RATES
def test_the_rate_is_honoured(rate: float) -> None:
    torch.manual_seed(0)
    zeroed = (dropout(torch.ones(COUNT), rate) == 0).double()
    assert zeroed.mean().item() == pytest.approx(share(rate), abs=five_sigma(rate, COUNT))
    # eight numbers share a draw: each of the eight places must have the rate, and none may know of its neighbour
    places = zeroed.view(-1, 8)
    bound = five_sigma(rate, COUNT // 8)
    assert (places.mean(dim=0) - share(rate)).abs().max().item() < bound
    together = torch.corrcoef(places.T) - torch.eye(8, dtype=torch.float64)
    assert together.abs().max().item() < 5 / math.sqrt(COUNT // 8)


@RATES
def test_the_expectation_is_kept(rate: float) -> None:
    torch.manual_seed(1)
    out = dropout(torch.full((COUNT,), 3.0), rate)
    kept = out[out != 0].unique()
    assert kept.tolist() == pytest.approx([3 / (1 - share(rate))])  # one value, scaled up
    spread = 3 * math.sqrt(share(rate) / (1 - share(rate)))
    assert out.double().mean().item() == pytest.approx(3, abs=5 * spread / math.sqrt(COUNT))


@given(st.integers(0, 2**32 - 1), st.integers(0, 10**6), st.integers(1, 33))
def test_a_seeded_step_draws_the_same_again(seed: int, step: int, count: int) -> None:
    x = torch.ones(count)
    seed_step(seed, step)
    once = dropout(x, 0.5)
    torch.rand(3)
    seed_step(seed, step)
    assert torch.equal(dropout(x, 0.5), once)


def test_other_steps_and_other_seeds_draw_otherwise() -> None:
    drawn = set()
    for seed in range(20):
        for step in range(20):
            seed_step(seed, step)
            drawn.add(tuple(dropout(torch.ones(64), 0.5).tolist()))
    assert len(drawn) == 400


def test_a_thousand_seeds_share_no_draw_within_a_million_steps() -> None:
    def first(seed: int) -> int:
        seed_step(seed, 0)
        return torch.initial_seed()

    firsts = sorted(map(first, range(1000)))
    assert firsts[-1] < 2**32  # the processor's generator looks no higher
    gaps = [b - a for a, b in zip(firsts, [*firsts[1:], firsts[0] + 2**32], strict=True)]
    assert min(gaps) > 1_000_000
    seed_step(7, 5)
    assert torch.initial_seed() == (first(7) + 5) % 2**32  # steps follow one another


@pytest.mark.parametrize("rate", [0.0, 0.001])
def test_a_rate_that_rounds_to_nothing_costs_nothing(rate: float) -> None:
    x = torch.ones(10)
    before = torch.get_rng_state()
    assert dropout(x, rate) is x
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("rate", [0.999, 1.0])
def test_a_rate_that_rounds_to_all_leaves_nothing(rate: float) -> None:
    x = torch.ones(10).requires_grad_()
    out = dropout(x, rate)
    assert torch.equal(out, torch.zeros(10))
    out.sum().backward()
    assert torch.equal(x.grad, torch.zeros(10))


@given(st.integers(1, 256), st.integers(0, 2**31))
def test_a_number_is_kept_where_its_byte_reaches_the_level(zeroed: int, seed: int) -> None:
    drawn = torch.empty(6, dtype=torch.int64)
    drawn.random_(-(1 << 63), None, generator=torch.Generator().manual_seed(seed))
    levels = drawn.view(torch.uint8)[:43]
    kept = Rate(zeroed / 256).kept(torch.empty(43), torch.Generator().manual_seed(seed))
    assert kept.tolist() == [float(level >= zeroed) for level in levels.tolist()]


def test_evaluation_drops_nothing() -> None:
    layer, x = Dropout(0.5), torch.ones(64)
    assert layer.eval()(x) is x
    assert (layer.train()(x) == 0).any()


@given(st.lists(st.integers(0, 5), min_size=0, max_size=4))
def test_any_shape_and_layout(shape: list[int]) -> None:
    torch.manual_seed(0)
    x = torch.ones(shape, dtype=torch.float64)
    assert dropout(x, 0.5).shape == x.shape
    assert set(dropout(x, 0.5).flatten().tolist()) <= {0.0, 2.0}
    across = x.permute(tuple(reversed(range(x.dim()))))
    assert dropout(across, 0.5).shape == across.shape


def test_the_gradient_passes_where_the_value_did() -> None:
    torch.manual_seed(0)
    x = torch.randn(100).requires_grad_()
    out = dropout(x, 0.25)
    out.sum().backward()
    assert torch.equal(x.grad, torch.where(out == 0, 0.0, 1 / 0.75))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_type_is_kept(dtype: torch.dtype) -> None:
    assert dropout(torch.ones(9, dtype=dtype), 0.5).dtype == dtype
