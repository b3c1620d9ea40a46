"""The two contrastive losses by hand, dropped items, and pre-training over two domains against a slow loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cache.dataset import Dataset
from teachers import pretrain as module
from teachers.pretrain import Augmentation, Source, contrast, drop_items, pretrain
from teachers.trainer import Recipe, Trained
from teachers.unisrec import Architecture, UniSRec
from tests.teachers import naive
from tests.teachers.naive import cosine, dataset_of, shaken, vectors

QUIET = Architecture(
    text_width=6, hidden=8, inner=10, experts=3, dropout=0, attention_dropout=0, adaptor_dropout=0
)


class Killed(BaseException):
    """What a report raises to stop a run where it stands."""


# ---- contrast


def test_contrast_by_hand() -> None:
    # cosines of the anchors (rows) with the others: 1, 0.6 and 0, 0.8; over t = 1/2: 2, 1.2 and 0, 1.6
    anchors = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    others = torch.tensor([[1.0, 0.0], [1.2, 1.6]])
    first = -math.log(math.exp(2) / (math.exp(2) + math.exp(1.2)))
    second = -math.log(math.exp(1.6) / (math.exp(0) + math.exp(1.6)))
    found = contrast(anchors, others, torch.tensor([4, 7]), 0.5)
    assert float(found) == pytest.approx((first + second) / 2, abs=1e-6)


def test_an_item_equal_to_the_positive_leaves_the_denominator() -> None:
    # with one target for both rows nothing but the positive is left: -log(1) = 0
    anchors, others = vectors(2, 4), vectors(2, 4, 1)
    assert float(contrast(anchors, others, torch.tensor([7, 7]), 0.07)) == 0


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.integers(0, 2**31))
def test_contrast_equals_a_slow_loop(targets: list[int], seed: int) -> None:
    anchors, others = vectors(len(targets), 4, seed), vectors(len(targets), 4, seed + 1)
    slow = 0.0
    for i, target in enumerate(targets):
        terms = [
            math.exp(cosine(anchors[i], others[j]) / 0.3)
            for j in range(len(targets))
            if j == i or targets[j] != target
        ]
        slow -= math.log(math.exp(cosine(anchors[i], others[i]) / 0.3) / sum(terms))
    found = contrast(anchors, others, torch.tensor(targets), 0.3)
    assert float(found) == pytest.approx(slow / len(targets), abs=1e-5)


# ---- dropped items

cases = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=6)


@given(cases, st.floats(0, 1), st.integers(0, 2**31))
def test_the_first_item_stays_the_others_leave_by_their_draws_and_order_stays(
    histories: list[list[int]], ratio: float, seed: int
) -> None:
    flat = np.array([item for one in histories for item in one], np.int32)
    lengths = np.array([len(one) for one in histories], np.int32)
    draws = np.random.default_rng(seed).random(len(flat))
    kept, sizes = drop_items(flat, lengths, ratio, draws)
    left = iter(draws)
    expected = []
    for one in histories:
        chances = [next(left) for _ in one]
        expected.append([i for n, i in enumerate(one) if n == 0 or chances[n] >= ratio])
    assert kept.tolist() == [item for one in expected for item in one]
    assert sizes.tolist() == [len(one) for one in expected]
    assert sizes.dtype == np.int32


def test_nothing_leaves_at_ratio_0_and_all_but_the_first_at_1() -> None:
    flat, lengths = np.arange(7, dtype=np.int32), np.array([3, 1, 3], np.int32)
    draws = np.random.default_rng(0).random(7)
    same, sizes = drop_items(flat, lengths, 0.0, draws)
    assert (same.tolist(), sizes.tolist()) == (flat.tolist(), lengths.tolist())
    first, ones = drop_items(flat, lengths, 1.0, draws)
    assert (first.tolist(), ones.tolist()) == ([0, 3, 4], [1, 1, 1])


def test_the_share_that_leaves_is_the_ratio() -> None:
    flat, lengths = np.zeros(100_001, np.int32), np.array([100_001], np.int32)
    kept, _ = drop_items(flat, lengths, 0.2, np.random.default_rng(0).random(100_001))
    # deviation sqrt(0.2 * 0.8 / 100,000) = 0.0013; four of them
    assert len(kept) / 100_001 == pytest.approx(0.8, abs=0.005)


# ---- the whole


def domain(seed: int, users: int = 9, items: int = 7) -> Source:
    """A domain of walks where item i is followed by i + 1 or i + 2."""
    draws = np.random.default_rng(seed)
    sequences = [
        (np.cumsum(draws.integers(1, 3, draws.integers(3, 9))) % items).tolist()
        for _ in range(users)
    ]
    dataset = dataset_of(sequences, 4, items)
    return Source(
        dataset, (vectors(items, seed=seed).numpy(),), (vectors(items, seed=seed + 50).numpy(),)
    )


def go(
    folder: Path,
    sources: Sequence[Source],
    *,
    shape: Architecture = QUIET,
    augmentation: Augmentation | None = None,
    **more: Any,
) -> Trained:
    keys = {"epochs", "batch_size", "seed", "learning_rate"} & more.keys()
    recipe = Recipe(**{"epochs": 1, "batch_size": 16, **{key: more.pop(key) for key in keys}})
    folder.mkdir(exist_ok=True)
    return pretrain(
        shaken(UniSRec(shape)),
        sources,
        recipe,
        augmentation or Augmentation(),
        checkpoint=folder / "c.safetensors",
        identity={},
        **more,
    )


def test_two_threads_end_in_the_same_bits_each_time(tmp_path: Path) -> None:
    # many histories share few items, whose slopes two threads once added in whatever order they came
    rng = np.random.default_rng(0)
    walks = rng.integers(0, 5, (100, 12)).tolist()
    source = Source(dataset_of(walks, 10), (vectors(5).numpy(),), (vectors(5, 6, 1).numpy(),))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        ends = []
        for number in range(4):
            torch.manual_seed(0)
            model = UniSRec(replace(QUIET, hidden=64, inner=64))
            trained = pretrain(
                model,
                [source],
                Recipe(epochs=2, batch_size=200),
                Augmentation(item_drop_chance=0.5),
                checkpoint=tmp_path / f"{number}.safetensors",
                identity={},
            )
            losses = [one["loss"] for one in trained.history]
            ends.append((losses, [one.clone() for one in model.state_dict().values()]))
    finally:
        torch.set_num_threads(before)
    for losses, weights in ends[1:]:
        assert losses == ends[0][0]
        assert all(map(torch.equal, weights, ends[0][1]))


def prefixes(dataset: Dataset) -> list[tuple[list[int], int]]:
    """(history, target) of every training prefix, by the definition."""
    out = []
    for user in range(dataset.num_users):
        training = dataset.sequence(user).tolist()[:-2]
        out += [
            (training[max(0, end - dataset.max_length) : end], training[end])
            for end in range(1, len(training))
        ]
    return out


def slow_loss(
    sources: Sequence[Source],
    second: Callable[[list[Tensor], list[Tensor]], list[Tensor]],
    weight: float,
) -> float:
    """Both losses over all prefixes of all sources as one batch; `second` makes the second view's inputs.

    It gets the adapted texts and the adapted dropped texts of a history.
    """
    weights = shaken(UniSRec(QUIET)).state_dict()
    anchors, targets, others, names = [], [], [], []
    for number, source in enumerate(sources):
        whole, dropped = (
            [naive.adapted(weights, torch.from_numpy(row)) for row in table]
            for (table,) in (source.features_VW, source.dropped_VW)
        )
        for history, target in prefixes(source.dataset):
            inputs = [whole[item] for item in history]
            anchors.append(naive.encoded(weights, QUIET, inputs))
            others.append(
                naive.encoded(weights, QUIET, second(inputs, [dropped[i] for i in history]))
            )
            targets.append(whole[target])
            names.append((number, target))
    total = 0.0
    for part, share in ((targets, 1.0), (others, weight)):
        for i, anchor in enumerate(anchors):
            terms = {
                j: math.exp(cosine(anchor, part[j]) / QUIET.temperature)
                for j in range(len(part))
                if j == i or names[j] != names[i]
            }
            total -= share * math.log(terms[i] / sum(terms.values())) / len(anchors)
    return total


@pytest.mark.parametrize("view", ["same", "first", "words"])
def test_the_loss_is_that_of_a_slow_loop_over_both_domains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, view: str
) -> None:
    # without the gates' noise and without dropout nothing is left to chance but the augmentation
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    sources = [domain(1), domain(2, items=5)]
    augmentation = Augmentation(
        item_drop_ratio=0.0 if view == "same" else 1.0,
        item_drop_chance=0.0 if view == "words" else 1.0,
        weight=0.5,
    )
    trained = go(tmp_path, sources, augmentation=augmentation, batch_size=10_000)
    second = {
        "same": lambda inputs, dropped: inputs,
        "first": lambda inputs, dropped: inputs[:1],
        "words": lambda inputs, dropped: dropped,
    }[view]
    slow = slow_loss(sources, second, 0.5)
    assert trained.history[0]["loss"] == pytest.approx(slow, rel=1e-4)


def test_targets_of_both_domains_stand_in_one_batch_and_never_count_as_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[int]] = []

    def spy(anchors: Tensor, others: Tensor, targets: Tensor, temperature: float) -> Tensor:
        seen.append(set(targets.tolist()))
        return contrast(anchors, others, targets, temperature)

    monkeypatch.setattr(module, "contrast", spy)
    sources = [domain(1), domain(2)]
    go(tmp_path, sources, batch_size=16)
    assert len(seen) >= 4
    # rows of the first domain are 0..6, of the second 7..13
    assert all(min(one) < 7 <= max(one) for one in seen)
    wanted = {target for _, target in prefixes(sources[0].dataset)}
    wanted |= {target + 7 for _, target in prefixes(sources[1].dataset)}
    assert set().union(*seen) <= wanted


def test_it_learns(tmp_path: Path) -> None:
    trained = go(tmp_path, [domain(1), domain(2)], epochs=12, learning_rate=0.01, batch_size=24)
    losses = [one["loss"] for one in trained.history]
    assert losses[-1] < 0.8 * losses[0]


NOISY = Architecture(text_width=6, hidden=8, inner=10, experts=3)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path: Path) -> None:
    sources = [domain(1), domain(2)]
    a, b, c = (
        go(tmp_path / name, sources, shape=NOISY, epochs=2, seed=seed).weights
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)


@pytest.mark.parametrize("epochs", [1, 2])
def test_stopped_after_an_epoch_it_goes_on_to_the_same_bits(tmp_path: Path, epochs: int) -> None:
    sources = [domain(1), domain(2)]
    whole = go(tmp_path / "whole", sources, shape=NOISY, epochs=3, limit=40)

    def report(done: float, total: float, note: str) -> None:
        if done > epochs:
            raise Killed

    with pytest.raises(Killed):
        go(tmp_path / "cut", sources, shape=NOISY, epochs=3, limit=40, report=report)
    again = go(tmp_path / "cut", sources, shape=NOISY, epochs=3, limit=40)
    assert again.history == whole.history
    assert all(torch.equal(again.weights[key], whole.weights[key]) for key in whole.weights)


def test_a_limit_draws_other_instances_each_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[int]] = []

    def spy(anchors: Tensor, others: Tensor, targets: Tensor, temperature: float) -> Tensor:
        drawn.append(targets.tolist())
        return contrast(anchors, others, targets, temperature)

    monkeypatch.setattr(module, "contrast", spy)
    go(tmp_path, [domain(1), domain(2)], epochs=2, batch_size=8, limit=16)
    # two steps an epoch, each asks for both losses
    assert [len(one) for one in drawn] == [8] * 8
    assert sorted(drawn[0] + drawn[2]) != sorted(drawn[4] + drawn[6])


def test_what_does_not_fill_a_batch_is_left_out_unless_there_is_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def spy(anchors: Tensor, others: Tensor, targets: Tensor, temperature: float) -> Tensor:
        sizes.append(len(targets))
        return contrast(anchors, others, targets, temperature)

    monkeypatch.setattr(module, "contrast", spy)
    go(tmp_path / "a", [domain(1), domain(2)], batch_size=8, limit=19)
    assert sizes == [8] * 4  # 19 = 8 + 8 + 3
    sizes.clear()
    go(tmp_path / "b", [domain(1), domain(2)], batch_size=50, limit=19)
    assert sizes == [19] * 2
