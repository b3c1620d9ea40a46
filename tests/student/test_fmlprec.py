"""FMLP-Rec: the numbers of a plain one written from its paper, its transform summed term by term."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from student.fmlprec import FMLPRec, FMLPRecConfig
from tests.student.small import packed

ITEMS = 20


def model(*, spread: float = 0.3, **sizes: float) -> FMLPRec:
    torch.manual_seed(0)
    config = FMLPRecConfig(**{"hidden": 6, "max_length": 7, **sizes})
    made = FMLPRec(config, ITEMS).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * spread)
    return made


def naive_filter(x_LD: Tensor, weight: Tensor) -> Tensor:
    """Discrete Fourier transform with 1 / sqrt(L), frequencies 0..L/2 weighted, and back with 1 / sqrt(L).

    A real sequence has conjugate frequencies above L/2; what is weighted below is mirrored above. The imaginary part that a
    weight gives to frequency 0 (and to L/2 of an even L) has no place in a real sequence and is left out.
    """
    length = len(x_LD)
    turns = torch.tensor(
        [
            [cmath.exp(-2j * cmath.pi * k * n / length) / math.sqrt(length) for n in range(length)]
            for k in range(length)
        ],
        dtype=torch.complex128,
    )
    spectrum = turns @ x_LD.to(torch.complex128)
    weighted = torch.zeros_like(spectrum)
    for k in range(length // 2 + 1):
        value = spectrum[k] * torch.complex(
            weight[0, k, :, 0].double(), weight[0, k, :, 1].double()
        )
        if k == 0 or 2 * k == length:
            weighted[k] = value.real
        else:
            weighted[k], weighted[length - k] = value, value.conj()
    back = turns.conj().T @ weighted
    assert back.imag.abs().max() < 1e-9
    return back.real.float()


def plain_fmlprec(made: FMLPRec, history: list[int]) -> Tensor:
    """[D] of one history, everything computed at every place, the last one read."""
    w, config = made.state_dict(), made.config

    def norm(x: Tensor, name: str) -> Tensor:
        gap = x - x.mean(dim=-1, keepdim=True)
        spread = ((gap**2).mean(dim=-1, keepdim=True) + 1e-12).sqrt()
        return gap / spread * w[f"{name}.weight"] + w[f"{name}.bias"]

    def dense(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = torch.zeros(config.max_length, config.hidden)
    for place, item in enumerate(reversed(history)):  # padded on the left
        x[-1 - place] = w["item_embeddings.weight"][item]
    x = norm(x + w["position_embeddings.weight"], "LayerNorm")
    for number in range(config.layers):
        at = f"item_encoder.layer.{number}"
        mixed = naive_filter(x, w[f"{at}.filterlayer.complex_weight"])
        x = norm(mixed + x, f"{at}.filterlayer.LayerNorm")
        inner = dense(x, f"{at}.intermediate.dense_1")
        gelu = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        x = norm(dense(gelu, f"{at}.intermediate.dense_2") + x, f"{at}.intermediate.LayerNorm")
    return x[-1]


@settings(max_examples=20)
@given(
    st.lists(st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=7), min_size=1, max_size=5),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([7, 8]),  # odd and even lengths have different last frequencies
)
@torch.no_grad()
def test_scores_are_those_of_the_paper(
    histories: list[list[int]], layers: int, longest: int
) -> None:
    made = model(layers=layers, max_length=longest)
    got = made.encode(packed(histories)) @ made.item_table().T
    for scores, history in zip(got, histories, strict=True):
        expected = made.state_dict()["item_embeddings.weight"] @ plain_fmlprec(made, history)
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_at_the_default_sizes_too() -> None:
    made = model(hidden=64, max_length=50, spread=0.05)
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, ITEMS, length).tolist() for length in (50, 1, 17)]
    got = made.encode(packed(histories))
    expected = torch.stack([plain_fmlprec(made, history) for history in histories])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_the_defaults_are_those_of_the_paper_and_names_those_of_its_checkpoints() -> None:
    # arXiv 2202.13556, section 4.1.4, and github.com/Woeee/FMLP-Rec
    made = FMLPRec(FMLPRecConfig(), 100)
    config = made.config
    assert [config.hidden, config.layers, config.max_length, config.dropout] == [64, 2, 50, 0.5]
    shapes = {name: list(value.shape) for name, value in made.state_dict().items()}
    assert shapes["item_encoder.layer.1.filterlayer.complex_weight"] == [1, 26, 64, 2]
    assert shapes["item_encoder.layer.0.intermediate.dense_1.weight"] == [256, 64]
    # items, places, a norm; filter, two norms, a feed-forward of four times the width
    block = 26 * 64 * 2 + 2 * 128 + 64 * 256 + 256 + 256 * 64 + 64
    assert sum(p.numel() for p in made.parameters()) == 100 * 64 + 50 * 64 + 128 + 2 * block


def test_a_longer_history_than_there_are_places_is_an_error() -> None:
    with pytest.raises(IndexError, match="a history of 8 items, at most 7 expected"):
        model().encode(packed([[1], [2] * 8]))


def test_dropout_works_while_training_and_only_then() -> None:
    made, layout = model(dropout=0.5), packed([[1, 2, 3], [4]])
    with torch.no_grad():
        assert torch.equal(made.encode(layout), made.encode(layout))
        made.train()
        torch.manual_seed(0)
        first, second = made.encode(layout), made.encode(layout)
    assert not torch.allclose(first, second)
