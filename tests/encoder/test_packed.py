"""Packed histories and the causal transformer over them: the same numbers as one history at a time, and no leaks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from encoder.packed import Packed
from encoder.transformer import CausalTransformer

WIDTH = 8
# a tile of 16 takes sixteen, eight, five, ..., one; 17..32 have tiles of 32; longer ones are as wide as the longest
EDGES = [1, 2, 3, 5, 6, 8, 9, 15, 16, 17, 31, 32, 33, 48, 60]

lengths_of = st.lists(st.integers(1, 60), min_size=1, max_size=24)


def packed(lengths: Sequence[int]) -> Packed:
    total = sum(lengths)
    return Packed.of(np.arange(total, dtype=np.int32), np.array(lengths, np.int32))


def tokens(lengths: Sequence[int], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(lengths), WIDTH, generator=generator)


def transformer(*, dropout: float = 0.0, attention_dropout: float = 0.0) -> CausalTransformer:
    torch.manual_seed(0)
    return CausalTransformer(
        hidden=WIDTH,
        layers=2,
        heads=2,
        inner=12,
        dropout=dropout,
        attention_dropout=attention_dropout,
    ).eval()


def bounds(lengths: Sequence[int]) -> list[slice]:
    ends = np.cumsum(lengths).tolist()
    return [slice(end - size, end) for end, size in zip(ends, lengths, strict=True)]


def test_a_layout_by_hand() -> None:
    # histories of 2, 17 and 1 items, rows 0..19
    layout = packed([2, 17, 1])
    assert layout.items.tolist() == list(range(20))
    assert layout.positions.tolist() == [0, 1, *range(17), 0]
    assert layout.last.tolist() == [1, 18, 19]
    narrow, wide = layout.tiles
    assert [narrow.width, wide.width] == [16, 32]
    # sixteen histories of one item share a tile, eight of two: here one tile each
    assert narrow.mask.shape == (2, 1, 16, 16)
    assert narrow.tokens[narrow.places].tolist() == [19, 0, 1]
    assert wide.tokens[wide.places].tolist() == list(range(2, 19))
    assert layout.untiled.tolist() == [1, 2, *range(3, 20), 0]


@pytest.mark.parametrize(("length", "together"), [(1, 16), (2, 8), (3, 5), (5, 3), (8, 2), (9, 1)])
def test_short_histories_share_a_tile_of_sixteen(length: int, together: int) -> None:
    (tile,) = packed([length] * together).tiles
    assert tile.mask.shape[0] == 1
    (tile,) = packed([length] * (together + 1)).tiles
    assert tile.mask.shape[0] == 2


@given(lengths_of)
def test_every_token_has_one_place_and_sees_its_own_past_only(lengths: list[int]) -> None:
    layout = packed(lengths)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    laid = torch.cat([tile.tokens[tile.places] for tile in layout.tiles])
    assert sorted(laid.tolist()) == list(range(sum(lengths)))
    assert torch.equal(laid[layout.untiled], torch.arange(sum(lengths)))
    for tile in layout.tiles:
        real = torch.zeros(len(tile.tokens), dtype=torch.bool)
        real[tile.places] = True
        assert tile.mask.any(dim=-1).all()  # an empty row would make the softmax NaN
        for row in range(len(tile.mask)):
            here = slice(row * tile.width, (row + 1) * tile.width)
            who, is_real = tile.tokens[here].numpy(), real[here].numpy()
            expected = (
                (owner[who][:, None] == owner[who])
                & (who[:, None] >= who)
                & (is_real[:, None] & is_real)
            )
            assert np.array_equal(tile.mask[row, 0].numpy()[is_real], expected[is_real])


@settings(max_examples=20)
@given(lengths_of)
def test_together_is_one_history_at_a_time(lengths: list[int]) -> None:
    model, x = transformer(), tokens(lengths)
    with torch.no_grad():
        together = model(x, packed(lengths))
        alone = [
            model(x[here], packed([size]))
            for here, size in zip(bounds(lengths), lengths, strict=True)
        ]
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("length", EDGES)
def test_every_prefix_state_is_that_of_the_prefix(length: int) -> None:
    # causal: one pass over a sequence holds the last state of each of its prefixes
    model, x = transformer(), tokens([length])
    with torch.no_grad():
        whole = model(x, packed([length]))
        prefixes = [model(x[:n], packed([n]), only_last=True)[0] for n in range(1, length + 1)]
    torch.testing.assert_close(whole, torch.stack(prefixes), atol=2e-6, rtol=1e-5)


@given(lengths_of)
def test_only_last_gives_the_last_rows(lengths: list[int]) -> None:
    model, x, layout = transformer(), tokens(lengths), packed(lengths)
    with torch.no_grad():
        whole, last = model(x, layout), model(x, layout, only_last=True)
    assert last.shape == (len(lengths), WIDTH)
    torch.testing.assert_close(last, whole[layout.last], atol=2e-6, rtol=1e-5)


@settings(max_examples=30)
@given(lengths_of, st.randoms(use_true_random=False))
def test_the_order_of_histories_only_orders_the_results(lengths: list[int], random) -> None:
    model, x = transformer(), tokens(lengths)
    order = list(range(len(lengths)))
    random.shuffle(order)
    where = bounds(lengths)
    with torch.no_grad():
        once = model(x, packed(lengths), only_last=True)
        shuffled = torch.cat([x[where[i]] for i in order])
        again = model(shuffled, packed([lengths[i] for i in order]), only_last=True)
    torch.testing.assert_close(again, once[order], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_no_token_hears_of_another_history_or_of_its_own_future(training: bool) -> None:
    lengths = [3, 1, 16, 5, 17, 2, 32, 3, 40, 1]
    model = transformer(dropout=0.2, attention_dropout=0.4).train(training)
    x = tokens(lengths).requires_grad_()
    out = model(x, packed(lengths))
    for number, here in enumerate(bounds(lengths)):
        for place in {here.start, (here.start + here.stop) // 2, here.stop - 1}:
            weight = tokens([1], seed=place)[0]  # not all ones: a layer norm's sum is a constant
            (heard,) = torch.autograd.grad((out[place] * weight).sum(), x, retain_graph=True)
            # exactly zero, not small: what is masked has no part in it
            assert (heard[: here.start] == 0).all(), number
            assert (heard[place + 1 :] == 0).all(), number
            assert (heard[place] != 0).any()
            if not training:  # dropout may silence some
                assert (heard[here.start : place + 1] != 0).any(dim=-1).all()


@settings(max_examples=30)
@given(lengths_of, st.data())
def test_a_changed_token_changes_nothing_but_its_own_future(lengths: list[int], data) -> None:
    model, x, layout = transformer(), tokens(lengths), packed(lengths)
    changed = data.draw(st.integers(0, sum(lengths) - 1))
    other = x.clone()
    other[changed] += 1.0
    with torch.no_grad():
        moved = (model(other, layout) != model(x, layout)).any(dim=-1)
    (own,) = (here for here in bounds(lengths) if here.start <= changed < here.stop)
    assert moved[changed]
    moved[changed : own.stop] = False
    assert not moved.any()


def test_attention_with_dropout_and_without_are_the_same_attention() -> None:
    # a rate of .001 rounds to 0 of 256, so nothing is dropped, but the path of training runs
    lengths = [1, 1, 7, 16, 17, 33]
    x, layout = tokens(lengths), packed(lengths)
    model = transformer(attention_dropout=0.001)
    with torch.no_grad():
        evaluated, trained = model(x, layout), model.train()(x, layout)
    torch.testing.assert_close(trained, evaluated, atol=2e-6, rtol=1e-5)


def test_attention_weights_are_dropped_while_training() -> None:
    lengths = [20, 4]
    x, layout = tokens(lengths), packed(lengths)
    model = transformer(attention_dropout=0.5).train()
    torch.manual_seed(1)
    with torch.no_grad():
        first, second = model(x, layout), model(x, layout)
        torch.manual_seed(1)
        again = model(x, layout)
    assert torch.equal(first, again)
    assert not torch.allclose(first, second)


@pytest.mark.parametrize(
    ("items", "lengths"),
    [(3, [3, 0]), (3, [0]), (3, [2, 2]), (3, [1, 1]), (3, [4, -1]), (3, []), (0, [1])],
)
def test_empty_histories_and_wrong_sums_are_refused(items: int, lengths: list[int]) -> None:
    with pytest.raises(ValueError, match=f"lengths of at least 1 that sum to {items} expected"):
        Packed.of(np.arange(items), np.array(lengths, np.int32))


def test_no_histories_are_an_empty_layout() -> None:
    layout = Packed.of(np.empty(0, np.int32), np.empty(0, np.int32))
    assert layout.tiles == ()
    assert [len(layout.items), len(layout.last), len(layout.untiled)] == [0, 0, 0]


def test_a_layout_goes_whole_to_the_device_asked_for() -> None:
    layout = Packed.of(np.arange(20), np.array([2, 17, 1]), "meta")  # any device but the processor
    parts = [layout.items, layout.positions, layout.last, layout.untiled]
    parts += [part for tile in layout.tiles for part in (tile.tokens, tile.places, tile.mask)]
    assert all(part.is_meta for part in parts)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="hidden 10 is not a multiple of heads 4"):
        CausalTransformer(hidden=10, layers=1, heads=4, inner=8, dropout=0, attention_dropout=0)
