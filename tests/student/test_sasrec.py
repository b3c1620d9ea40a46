"""SASRec: the numbers of a plain, padded SASRec written from its public description; its size, its gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from encoder.packed import Packed
from student.sasrec import SASRec, SASRecConfig

ITEMS = 30

histories_of = st.lists(
    st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=50), min_size=1, max_size=12
)


def model(*, seed: int = 0, spread: float = 0.3, **sizes: float) -> SASRec:
    """In eval mode, with every parameter drawn wide enough to count (the true start is narrow)."""
    torch.manual_seed(seed)
    config = SASRecConfig(**{"hidden": 12, "heads": 2, "inner": 20, **sizes})
    made = SASRec(config, ITEMS).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * spread)
    return made


def packed(histories: list[list[int]]) -> Packed:
    flat = np.array([item for one in histories for item in one], np.int32)
    return Packed.of(flat, np.array([len(one) for one in histories], np.int32))


def padded_sasrec(made: SASRec, histories: list[list[int]]) -> Tensor:
    """Right-padded to 50, item 0 of the embedding table for padding, everything computed, the last real state taken.

    Two blocks: masked softmax attention head by head, a dense layer, residual and norm; then two dense layers with gelu
    between, residual and norm. Nothing of the product's code but its weights.
    """
    w = made.state_dict()
    config = made.config
    longest, width, heads = config.max_length, config.hidden, config.heads
    items = torch.zeros(len(histories), longest, dtype=torch.int64)
    real = torch.zeros(len(histories), longest, dtype=torch.bool)
    for b, one in enumerate(histories):
        items[b, : len(one)] = torch.tensor(one)
        real[b, : len(one)] = True

    def norm(x: Tensor, name: str) -> Tensor:
        mean = x.mean(dim=-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
        return (x - mean) / (variance + 1e-12).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def dense(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    # what a place may look at: real places not later than itself; the rest gets -10000 before the softmax
    allowed = real[:, None, :] & torch.ones(longest, longest).tril().bool()
    penalty = torch.where(allowed, 0.0, -10000.0)
    x = w["item_embedding.weight"][items] + w["position_embedding.weight"][torch.arange(longest)]
    x = norm(x, "LayerNorm")
    for number in range(config.layers):
        at = f"trm_encoder.layer.{number}"
        query, key, value = (
            dense(x, f"{at}.multi_head_attention.{part}") for part in ("query", "key", "value")
        )
        mixed = []
        size = width // heads
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(size) + penalty
            mixed.append(torch.softmax(scores, dim=-1) @ value[..., part])
        out = dense(torch.cat(mixed, dim=-1), f"{at}.multi_head_attention.dense")
        x = norm(out + x, f"{at}.multi_head_attention.LayerNorm")
        inner = dense(x, f"{at}.feed_forward.dense_1")
        gelu = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        x = norm(dense(gelu, f"{at}.feed_forward.dense_2") + x, f"{at}.feed_forward.LayerNorm")
    last = torch.tensor([len(one) - 1 for one in histories])
    return x[torch.arange(len(histories)), last]


@settings(max_examples=30)
@given(histories_of, st.sampled_from([1, 2, 3, 4]), st.sampled_from([1, 2, 3]))
@torch.no_grad()
def test_encode_is_a_plain_padded_sasrec(
    histories: list[list[int]], heads: int, layers: int
) -> None:
    made = model(heads=heads, layers=layers)
    got = made.encode(packed(histories))
    torch.testing.assert_close(got, padded_sasrec(made, histories), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_encode_is_a_plain_padded_sasrec_at_every_length_and_at_the_default_sizes() -> None:
    made = model(hidden=64, heads=2, inner=256, spread=0.1)
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, ITEMS, length).tolist() for length in range(1, 51)]
    got = made.encode(packed(histories))
    torch.testing.assert_close(got, padded_sasrec(made, histories), atol=1e-5, rtol=1e-5)


def test_the_defaults_are_those_of_recbole() -> None:
    # github.com/RUCAIBox/RecBole, recbole/properties/model/SASRec.yaml
    config = SASRecConfig()
    assert [config.hidden, config.inner, config.layers, config.heads] == [64, 256, 2, 2]
    assert [config.dropout, config.max_length] == [0.5, 50]


def test_the_number_of_parameters_by_hand() -> None:
    made = SASRec(SASRecConfig(), 100)
    # attention: four layers of 64 * 64 + 64; feed-forward: 64 * 256 + 256 and 256 * 64 + 64; two norms of 2 * 64
    block = 4 * 4160 + 16640 + 16448 + 2 * 128
    # item rows, position rows, the first norm
    assert sum(p.numel() for p in made.parameters()) == 100 * 64 + 50 * 64 + 128 + 2 * block
    assert block == 49984


@pytest.mark.parametrize("training", [False, True])
def test_a_gradient_reaches_every_parameter(training: bool) -> None:
    made = model(dropout=0.2).train(training)
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, ITEMS, length).tolist() for length in range(1, 51)]
    scores = made.encode(packed(histories)) @ made.item_table().T
    torch.nn.functional.cross_entropy(scores, torch.arange(50) % ITEMS).backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if not name.endswith("key.bias"):
            assert (parameter.grad != 0).reshape(len(parameter), -1).any(dim=1).all(), name
            continue
        # a constant added to all keys moves every score of a query alike, which the softmax does not see
        assert training or parameter.grad.abs().max() < 1e-6, name


def test_the_item_table_is_what_histories_are_made_of() -> None:
    made = model()
    assert made.item_table() is made.item_embedding.weight
    assert made.item_table().shape == (ITEMS, 12)


def test_a_new_model_starts_as_recbole_starts() -> None:
    # N(0, 0.02) for embeddings and layers, biases 0, norms 1 and 0
    torch.manual_seed(0)
    made = SASRec(SASRecConfig(), 2000)
    for name, parameter in made.named_parameters():
        if "LayerNorm" in name:
            assert (parameter == (1 if name.endswith("weight") else 0)).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:  # five standard errors
            assert parameter.std().item() == pytest.approx(
                0.02, abs=5 * 0.02 / math.sqrt(2 * parameter.numel())
            ), name
            assert abs(parameter.mean().item()) < 5 * 0.02 / math.sqrt(parameter.numel()), name


def test_dropout_works_while_training_and_only_then() -> None:
    made, layout = model(dropout=0.5), packed([[1, 2, 3], [4]])
    with torch.no_grad():
        assert torch.equal(made.encode(layout), made.encode(layout))
        made.train()
        torch.manual_seed(0)
        first, second = made.encode(layout), made.encode(layout)
        torch.manual_seed(0)
        assert torch.equal(made.encode(layout), first)
    assert not torch.allclose(first, second)


def test_under_bfloat16_autocast_vectors_are_close() -> None:
    made = model(hidden=64, inner=256, spread=0.05)
    rng = np.random.default_rng(0)
    layout = packed([rng.integers(0, ITEMS, length).tolist() for length in (1, 7, 16, 30, 50)])
    with torch.no_grad():
        exact = made.encode(layout)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = made.encode(layout)
    # normed to a spread of 1; bfloat16 has three digits and there are a dozen roundings on the way
    torch.testing.assert_close(rounded.float(), exact, atol=0.1, rtol=0)


def test_a_history_longer_than_the_positions_is_an_error() -> None:
    made = model(max_length=4)
    with pytest.raises(IndexError):
        made.encode(packed([[1, 2, 3, 4, 5]]))
