"""The recurrent layer: torch's numbers and gradients, and its slopes by finite differences."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import PackedSequence

from student.recurrence import recurrence

falling = st.lists(st.integers(1, 7), min_size=1, max_size=6).map(
    lambda counts: sorted(counts, reverse=True)
)


def given_all(alive: list[int], dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(sum(alive))
    sizes = [(sum(alive), 4), (9, 4), (9, 3)]
    return [torch.randn(size, dtype=dtype, requires_grad=True) for size in sizes]


@settings(max_examples=25)
@given(falling)
def test_states_and_gradients_are_those_of_torchs_layer(alive: list[int]) -> None:
    x, into, back = given_all(alive, torch.float64)
    theirs = torch.nn.GRU(4, 3, bias=False, dtype=torch.float64)
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(into)
        theirs.weight_hh_l0.copy_(back)
    states = recurrence(x, into, back, alive)
    other = x.detach().clone().requires_grad_()
    expected = theirs(PackedSequence(other, torch.tensor(alive)))[0].data
    torch.testing.assert_close(states, expected)
    weights = torch.randn_like(states)
    (states * weights).sum().backward()
    (expected * weights).sum().backward()
    for one, known in ((x, other), (into, theirs.weight_ih_l0), (back, theirs.weight_hh_l0)):
        torch.testing.assert_close(one.grad, known.grad)


def test_slopes_are_those_of_finite_differences() -> None:
    inputs = given_all([3, 2, 2, 1], torch.float64)
    assert torch.autograd.gradcheck(lambda *all_of: recurrence(*all_of, [3, 2, 2, 1]), inputs)
