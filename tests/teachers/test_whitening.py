"""The adaptor against a loop over experts, its gates, its noise, and the official names."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from teachers.whitening import MoEAdaptor
from tests.teachers import naive


def adaptor(experts: int = 3, rate: float = 0.0, seed: int = 0) -> MoEAdaptor:
    model = MoEAdaptor(experts, 5, 7, rate)
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws))
    return model


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 6))
def test_in_evaluation_it_is_the_gated_sum_over_whitening_experts(
    seed: int, experts: int, rows: int
) -> None:
    model = adaptor(experts, rate=0.5, seed=seed).eval()
    x = naive.vectors(rows, 5, seed + 1)
    with torch.no_grad():
        mixed = model(x)
    slow = torch.stack([naive.adapted(model.state_dict(), one, "") for one in x])
    assert mixed.shape == (rows, 7)
    # 2e-5 of the largest number that goes into a sum: float32 against float64
    torch.testing.assert_close(
        mixed.double(), slow, rtol=0, atol=2e-5 * float(slow.abs().max() + 1)
    )


def test_one_expert_by_hand() -> None:
    # one expert has the whole share: W (x - b) = [2 * (3 - 1), 5 * (4 - 2)]
    model = MoEAdaptor(1, 2, 2, 0.0).eval()
    with torch.no_grad():
        model.experts[0].bias.copy_(torch.tensor([1.0, 2.0]))
        model.experts[0].lin.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 5.0]]))
        assert model(torch.tensor([[3.0, 4.0]])).tolist() == [[4.0, 10.0]]


@given(st.integers(0, 2**31), st.booleans())
def test_gates_are_shares(seed: int, training: bool) -> None:
    gates = adaptor(seed=seed).train(training).gates(naive.vectors(4, 5, seed))
    assert gates.min() >= 0
    torch.testing.assert_close(gates.sum(1), torch.ones(4), rtol=0, atol=1e-6)


def test_a_new_adaptor_gives_every_expert_the_same_share() -> None:
    model = MoEAdaptor(4, 5, 7, 0.2).eval()
    assert torch.equal(model.gates(naive.vectors(3, 5)), torch.full((3, 4), 0.25))
    assert all(not expert.bias.any() for expert in model.experts)
    assert 0.01 < float(model.experts[0].lin.weight.detach().std()) < 0.03  # drawn with 0.02


def test_noise_is_drawn_in_training_only_and_as_the_public_code_draws_it() -> None:
    model, x = adaptor(), naive.vectors(4, 5)
    assert torch.equal(model.eval()(x), model(x))
    assert torch.equal(model.gates(x), (x @ model.w_gate).softmax(-1))
    model.train()
    torch.manual_seed(3)
    gates = model.gates(x)
    torch.manual_seed(3)
    spread = torch.log(1 + torch.exp(x @ model.w_noise)) + 0.01  # softplus, and at least a little
    torch.testing.assert_close(
        gates, (x @ model.w_gate + torch.randn(4, 3) * spread).softmax(-1), rtol=0, atol=1e-6
    )
    assert not torch.equal(model(x), model(x))


def test_dropout_zeroes_numbers_of_the_texts_in_training_only() -> None:
    # experts that are all the same, so that it does not matter how the gates mix them
    model, x = adaptor(rate=0.5), naive.vectors(1, 5)
    first = model.experts[0].state_dict()
    for expert in model.experts:
        expert.load_state_dict(first)
    masks = torch.cartesian_prod(*[torch.tensor([0.0, 2.0])] * 5)  # the 32 ways to drop and double
    possible = (masks * x - first["bias"]) @ first["lin.weight"].T
    torch.manual_seed(0)
    with torch.no_grad():
        found = model.train()(x.expand(3200, 5))
    distance, which = torch.cdist(found, possible).min(1)
    assert distance.max() < 1e-2
    # a hundred of each are expected, give or take ten: five times that is allowed
    counts = torch.bincount(which, minlength=32)
    assert counts.min() > 50
    assert counts.max() < 150


def test_names_and_shapes_are_the_official_ones() -> None:
    found = {
        name: tuple(one.shape) for name, one in MoEAdaptor(8, 768, 300, 0.2).state_dict().items()
    }
    expected: dict[str, tuple[int, ...]] = {"w_gate": (768, 8), "w_noise": (768, 8)}
    for k in range(8):
        expected |= {f"experts.{k}.bias": (768,), f"experts.{k}.lin.weight": (300, 768)}
    assert found == expected


def test_every_parameter_learns() -> None:
    model = adaptor().train()
    weigh: Tensor = naive.vectors(4, 7, 9)
    (model(naive.vectors(4, 5)) * weigh).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_gradients_agree_with_finite_differences() -> None:
    model, x = adaptor().double().eval(), naive.vectors(3, 5).double()
    assert torch.autograd.gradcheck(model, (x.requires_grad_(),))
