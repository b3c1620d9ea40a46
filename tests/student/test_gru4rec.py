"""GRU4Rec: the numbers of a plain recurrence written from its public description; its size, its start."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from student.gru4rec import GRU4Rec, GRU4RecConfig
from tests.student.small import packed

ITEMS = 20

histories_of = st.lists(
    st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=12), min_size=1, max_size=9
)


def model(*, spread: float = 0.3, **sizes: float) -> GRU4Rec:
    torch.manual_seed(0)
    config = GRU4RecConfig(**{"hidden": 6, "inner": 10, "layers": 1, **sizes})
    made = GRU4Rec(config, ITEMS).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * spread)
    return made


def plain_gru4rec(made: GRU4Rec, history: list[int]) -> Tensor:
    """One history, one item at a time: reset and update gates, the candidate, no bias anywhere but in the last layer.

    torch keeps the gates' weights below each other: reset, update, candidate.
    """
    w = made.state_dict()
    inputs = [w["item_embedding.weight"][item] for item in history]
    for layer in range(made.config.layers):
        into = w[f"gru_layers.weight_ih_l{layer}"].chunk(3)
        back = w[f"gru_layers.weight_hh_l{layer}"].chunk(3)
        state = torch.zeros(made.config.inner)
        states = []
        for x in inputs:
            reset, update = (
                1 / (1 + torch.exp(-(into[gate] @ x + back[gate] @ state))) for gate in (0, 1)
            )
            candidate = torch.tanh(into[2] @ x + reset * (back[2] @ state))
            state = (1 - update) * candidate + update * state
            states.append(state)
        inputs = states
    return w["dense.weight"] @ inputs[-1] + w["dense.bias"]


@settings(max_examples=20)
@given(histories_of, st.sampled_from([1, 2]))
@torch.no_grad()
def test_scores_are_those_of_a_plain_recurrence(histories: list[list[int]], layers: int) -> None:
    made = model(layers=layers)
    got = made.encode(packed(histories)) @ made.item_table().T
    table = made.state_dict()["item_embedding.weight"]
    for scores, history in zip(got, histories, strict=True):
        expected = table @ plain_gru4rec(made, history)
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_at_the_default_sizes_and_every_length_too() -> None:
    made = model(hidden=64, inner=128, spread=0.05)
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, ITEMS, length).tolist() for length in (50, 1, 17, 16, 33, 2)]
    got = made.encode(packed(histories))
    expected = torch.stack([plain_gru4rec(made, history) for history in histories])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_the_defaults_are_those_of_recbole() -> None:
    # github.com/RUCAIBox/RecBole, recbole/properties/model/GRU4Rec.yaml
    config = GRU4RecConfig()
    assert [config.hidden, config.inner, config.layers, config.dropout] == [64, 128, 1, 0.3]


def test_the_number_of_parameters_by_hand() -> None:
    made = GRU4Rec(GRU4RecConfig(), 100)
    # item rows; three gates of 128 from 64 inputs and 128 states; the way back with its bias
    expected = 100 * 64 + 3 * 128 * (64 + 128) + 128 * 64 + 64
    assert sum(p.numel() for p in made.parameters()) == expected


def test_a_new_model_starts_as_recbole_starts() -> None:
    # xavier: variance 2 / (fan in + fan out), normal for items, uniform for gates
    torch.manual_seed(0)
    made = GRU4Rec(GRU4RecConfig(), 2000)
    items = made.item_embedding.weight
    assert items.std().item() == pytest.approx((2 / 2064) ** 0.5, rel=0.02)
    assert items.abs().max() > 3 * items.std()  # a normal law has tails
    for name, fans in (("weight_ih_l0", 384 + 64), ("weight_hh_l0", 384 + 128)):
        weight = getattr(made.gru_layers, name)
        assert weight.abs().max().item() == pytest.approx((6 / fans) ** 0.5, rel=0.01)
        assert weight.std().item() == pytest.approx((2 / fans) ** 0.5, rel=0.02)


def test_dropout_is_on_the_vectors_that_go_in() -> None:
    made, layout = model(dropout=0.5), packed([[1, 2, 3], [4]])
    with torch.no_grad():
        still = made.encode(layout)
        made.train()
        torch.manual_seed(0)
        assert not torch.allclose(made.encode(layout), still)
        made.dropout.rate = 1.0  # nothing goes in: the state stays zero
        assert torch.equal(made.encode(layout), made.dense.bias.expand(2, -1))
