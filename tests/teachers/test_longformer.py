"""Our Longformer against the one of `transformers`, and what its layout promises."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import LongformerConfig, LongformerModel
from transformers.utils import logging

from encoder.dropout import seed_step
from teachers import packed_linear
from teachers.frozen_longformer import FrozenLongformer
from teachers.longformer import Longformer
from teachers.packed_linear import PackedLinear
from teachers.ragged import Ragged

HIDDEN, LAYERS, HEADS, INNER, PAD = 24, 3, 4, 40, 1
#: around the edges of windows of 64 (32 on either side) and of blocks
LENGTHS = [1, 2, 31, 32, 33, 63, 64, 65, 97, 200]
MIXED = [200, 1, 200, 5, 5, 5, 64, 33, 97]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # that theirs pads
    yield
    logging.set_verbosity(before)


def pair(window: int, layers: int = LAYERS) -> tuple[Longformer, LongformerModel]:
    """Ours and theirs with the same weights, large enough that every path matters."""
    config = LongformerConfig(
        attention_window=[window] * layers,
        hidden_size=HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
        vocab_size=50,
        max_position_embeddings=600,
        type_vocab_size=1,
        pad_token_id=PAD,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
    )
    torch.manual_seed(0)
    theirs = LongformerModel(config, add_pooling_layer=False).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = encoder(layers).eval()
    ours.load_state_dict(theirs.encoder.state_dict())
    return ours, theirs


def encoder(layers: int = LAYERS, rate: float = 0.0, attention_rate: float = 0.0) -> Longformer:
    return Longformer(
        hidden=HIDDEN,
        layers=layers,
        heads=HEADS,
        inner=INNER,
        dropout=rate,
        attention_dropout=attention_rate,
        eps=1e-12,
    )


def asked(theirs: LongformerModel, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """(embeddings, states) of random texts, real tokens laid end to end."""
    draws = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 50, (len(lengths), max(lengths)), generator=draws)
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids[~real] = PAD
    front = torch.zeros_like(ids)
    front[:, 0] = 1
    states = theirs(
        input_ids=ids, attention_mask=real.long(), global_attention_mask=front
    ).last_hidden_state
    return theirs.embeddings(ids)[real], states[real]


@pytest.mark.parametrize("lengths", [*([n] for n in LENGTHS), LENGTHS, MIXED], ids=str)
@pytest.mark.parametrize("window", [4, 64])
@pytest.mark.parametrize("padded", [False, True])
def test_states_are_those_of_transformers(lengths: list[int], window: int, padded: bool) -> None:
    ours, theirs = pair(window)
    ragged = Ragged.of(np.array(lengths), window, padded=padded)
    with torch.no_grad():
        x_ND, expected_ND = asked(theirs, lengths)
        torch.testing.assert_close(ours(x_ND, ragged), expected_ND, atol=1e-5, rtol=0)
        firsts = ours(x_ND, ragged, first_only=True)
        torch.testing.assert_close(firsts, expected_ND[ragged.starts], atol=1e-5, rtol=0)


@pytest.mark.parametrize("lengths", [*([n] for n in LENGTHS), LENGTHS, MIXED], ids=str)
@pytest.mark.parametrize("window", [4, 64, 66])
def test_the_frozen_encoder_gives_the_same_states(lengths: list[int], window: int) -> None:
    ours, theirs = pair(window)
    frozen = FrozenLongformer(ours)
    ragged = Ragged.of(np.array(lengths), window)
    with torch.no_grad():
        x_ND, expected_ND = asked(theirs, lengths)
        found = frozen(x_ND.clone(), ragged)
        torch.testing.assert_close(found, expected_ND, atol=1e-5, rtol=0)
        firsts = frozen(x_ND.clone(), ragged, first_only=True)
        torch.testing.assert_close(firsts, expected_ND[ragged.starts], atol=1e-5, rtol=0)


def test_rows_beyond_one_part_of_the_frozen_encoder_are_not_forgotten() -> None:
    ours, theirs = pair(64, layers=2)  # 1,400 tokens: three parts of at most 512
    lengths = [500, 500, 400]
    with torch.no_grad():
        x_ND, expected_ND = asked(theirs, lengths)
        found = FrozenLongformer(ours)(x_ND, Ragged.of(np.array(lengths), 64))
    torch.testing.assert_close(found, expected_ND, atol=1e-5, rtol=0)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("first_only", [False, True])
def test_gradients_are_those_of_transformers(padded: bool, first_only: bool) -> None:
    window, lengths = 8, [1, 9, 30, 30, 3]
    ours, theirs = pair(window, layers=2)
    x_ND, expected_ND = asked(theirs, lengths)
    ragged = Ragged.of(np.array(lengths), window, padded=padded)
    states = ours(x_ND.detach(), ragged, first_only)
    wanted = expected_ND[ragged.starts] if first_only else expected_ND
    mixing = torch.randn(states.shape, generator=torch.Generator().manual_seed(2))
    (states * mixing).sum().backward()
    (wanted * mixing).sum().backward()
    theirs_by_name = dict(theirs.encoder.named_parameters())
    for name, parameter in ours.named_parameters():
        expected = theirs_by_name[name].grad
        assert expected is not None
        found = torch.zeros_like(expected) if parameter.grad is None else parameter.grad
        # a key's bias moves all scores of a query alike: no gradient but rounding
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4, msg=name)


@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=6),
    reach=st.integers(1, 20),
)
def test_every_query_sees_its_window_and_its_first_token_once_each(
    lengths: list[int], reach: int
) -> None:
    ragged = Ragged.of(np.array(lengths), 2 * reach)
    begins = np.repeat(np.cumsum(lengths) - lengths, lengths)
    ends = np.repeat(np.cumsum(lengths), lengths)
    places, mask = ragged.places.numpy(), ragged.mask[:, 0].numpy()
    for token in range(sum(lengths)):
        block, place = divmod(token, places.shape[1] - 1)
        seen = places[block : block + 3].ravel()[mask[block, place]].tolist()
        assert places[block + 1, place + 1] == token
        near = range(max(begins[token], token - reach), min(ends[token], token + reach + 1))
        assert sorted(seen) == sorted({*near, begins[token]})


def test_what_else_is_in_the_batch_moves_a_state_by_rounding_alone() -> None:
    ours, _ = pair(64)
    x_ND = torch.randn(sum(MIXED), HIDDEN, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        together = FrozenLongformer(ours)(x_ND.clone(), Ragged.of(np.array(MIXED), 64), True)
        for row, part in enumerate(x_ND.split(MIXED)):
            alone = FrozenLongformer(ours)(part.clone(), Ragged.of(np.array([len(part)]), 64), True)
            torch.testing.assert_close(alone[0], together[row], atol=1e-6, rtol=0)


def test_bfloat16_products_stay_near_float32() -> None:
    ours, _ = pair(64)
    x_ND = torch.randn(sum(MIXED), HIDDEN, generator=torch.Generator().manual_seed(3))
    for padded in (False, True):
        ragged = Ragged.of(np.array(MIXED), 64, padded=padded)
        with torch.no_grad():
            exact = ours(x_ND, ragged)
            with torch.autocast("cpu", torch.bfloat16):
                rounded = ours(x_ND, ragged)
        # states are normed to about 1; eight bits of mantissa, three blocks
        assert float((rounded - exact).abs().mean()) < 0.02


def test_dropped_attention_weights_take_the_values_bias_along() -> None:
    # with value weights of zero an output is bias x (sum of the weights that dropout left)
    layer = encoder(1, attention_rate=0.25).train().layer[0]
    attention = layer.attention.self  # type: ignore[union-attr]
    torch.nn.init.zeros_(attention.value_global.weight)
    torch.nn.init.ones_(attention.value_global.bias)
    x_ND = torch.randn(400, HIDDEN)
    seed_step(0, 0)
    mass = attention.first_tokens(x_ND, Ragged.of(np.full(100, 4), 4)).detach()
    assert not torch.allclose(mass, torch.ones_like(mass))
    # every head has one mass of its own for its six numbers
    per_head = mass.view(100, HEADS, -1)
    torch.testing.assert_close(per_head, per_head[..., :1].expand_as(per_head))
    assert abs(float(mass.mean()) - 1) < 0.1


def test_dropout_falls_while_training_and_repeats_with_its_seed() -> None:
    ours = encoder(rate=0.1, attention_rate=0.3).train()
    x_ND, ragged = torch.randn(40, HIDDEN), Ragged.of(np.array([30, 10]), 8)
    seed_step(0, 1)
    once = ours(x_ND, ragged)
    seed_step(0, 1)
    assert torch.equal(ours(x_ND, ragged), once)
    assert not torch.equal(ours(x_ND, ragged), once)
    ours.eval()
    assert torch.equal(ours(x_ND, ragged), ours(x_ND, ragged))


def test_an_encoder_in_another_precision_is_not_frozen() -> None:
    with pytest.raises(ValueError, match="float32 on the processor expected"):
        FrozenLongformer(encoder().double())


@pytest.mark.parametrize("packed", [True, False])
def test_a_packed_layer_is_a_linear_layer(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not packed:
        monkeypatch.setattr(packed_linear, "has_onednn", lambda: False)
    linear = torch.nn.Linear(24, 40)
    x_NI = torch.randn(7, 24)
    with torch.no_grad():
        layer = PackedLinear(linear.weight, linear.bias)
        torch.testing.assert_close(layer(x_NI), linear(x_NI), atol=1e-6, rtol=0)
        expected = torch.nn.functional.gelu(linear(x_NI))
        torch.testing.assert_close(layer.gelu(x_NI), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("lengths", "window"), [([], 4), ([3, 0], 4), ([3], 3), ([3], 0)])
def test_nothing_empty_and_no_odd_window_is_laid_out(lengths: list[int], window: int) -> None:
    with pytest.raises(ValueError, match="at least one token and an even window expected"):
        Ragged.of(np.array(lengths, np.int64), window)
