"""RecGURU's parts by hand, and what flows where between its two domains."""

from __future__ import annotations

from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from cache.dataset import Dataset
from cache.errors import UsageError
from cache.store import Store
from pipeline.fit import fit
from student.recguru import RecGURU, RecGURUConfig, discrimination, turned
from student.schedule import TrainSettings
from tests.fakes import tiny_dataset
from tests.student.small import SMALL, elsewhere, first_batch, packed, shop, small, trained


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return shop(tmp_path_factory.mktemp("shop") / "store")


def model_of(store: Store, **more: Any) -> RecGURU:
    """Without dropout, and able to tell the domains apart."""
    torch.manual_seed(1)
    source = elsewhere(store)
    sizes = {**SMALL, "dropout": 0.0, "max_length": 6, "source_items": source.num_items, **more}
    model = RecGURU(RecGURUConfig(**sizes), store.dataset.num_items)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.learn_from(source)
    return model


def gradients(model: RecGURU, store: Store) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(7)
    loss, _ = model.own_loss(first_batch(store), logits=False)
    loss.backward()
    return {
        name: torch.zeros_like(one) if one.grad is None else one.grad.clone()
        for name, one in model.named_parameters()
    }


def test_the_discrimination_is_the_binary_cross_entropy_of_both_domains() -> None:
    # of the target one in two and 3/4 sure, of the source 1/4 sure of the target: -log 1/2, -log 3/4, -log 3/4
    found = discrimination(torch.tensor([0.0, log(3)]), torch.tensor([-log(3)]))
    assert found.item() == pytest.approx(((log(2) - log(3 / 4)) / 2 - log(3 / 4)) / 2)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=8))
def test_what_is_turned_is_the_same_and_pulls_the_other_way(values: list[float]) -> None:
    x = torch.tensor(values, requires_grad=True)
    y = turned(x)
    assert torch.equal(y, x)
    y.backward(torch.arange(len(values)) + 1.0)
    assert x.grad is not None
    assert x.grad.tolist() == [-1.0 - place for place in range(len(values))]


def test_the_adversary_descends_and_the_encoder_ascends_on_the_same_loss(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The share of the adversary in each gradient, alone: with the turn, without it."""
    model = model_of(store, adversary_weight=1.0)
    quiet = gradients(model_of(store, adversary_weight=0.0), store)
    with_turn = gradients(model, store)
    monkeypatch.setattr("student.recguru.turned", lambda x: x)
    without = gradients(model, store)
    seen = set()
    for name, one in with_turn.items():
        adversary, straight = one - quiet[name], without[name] - quiet[name]
        if name.startswith("discriminator."):
            torch.testing.assert_close(adversary, straight, atol=1e-6, rtol=1e-4)
        else:
            torch.testing.assert_close(adversary, -straight, atol=1e-6, rtol=1e-4)
        if straight.abs().max() > 1e-4:
            seen.add(name.split(".")[0])
    assert {"discriminator", "encoder", "item_embedding", "source_embedding"} <= seen
    assert not seen & {"decoder", "recommender", "augment"}


def test_the_base_loss_is_its_three_parts(store: Store) -> None:
    batch = first_batch(store)

    def loss(**weights: float) -> float:
        model = model_of(store, reconstruct_weight=0.0, adversary_weight=0.0)
        model.config = RecGURUConfig(
            **{
                **SMALL,
                "max_length": 6,
                "reconstruct_weight": 0.0,
                "adversary_weight": 0.0,
                **weights,
            }
        )
        torch.manual_seed(7)
        return model.own_loss(batch, logits=False)[0].item()

    model = model_of(store)
    scores = model.encode(batch.packed) @ model.item_table().T
    alone = loss()
    assert alone == pytest.approx(F.cross_entropy(scores, batch.rows_T).item(), rel=1e-5)
    rebuilt, told = loss(reconstruct_weight=1.0) - alone, loss(adversary_weight=1.0) - alone
    both = loss(reconstruct_weight=0.5, adversary_weight=0.1)
    assert both == pytest.approx(alone + 0.5 * rebuilt + 0.1 * told, rel=1e-5)


@torch.no_grad()
def test_a_place_is_rebuilt_from_what_stands_before_it_and_the_vector(store: Store) -> None:
    """With every place drawn, the mean over the sequences by themselves, items by the one before."""
    model = model_of(store, reconstruct_ratio=1.0)
    histories = [[3, 1, 4], [1, 5]]
    general_BD = torch.randn(2, 8)
    found = model._rebuilt(packed(histories), general_BD, model.item_embedding).item()
    losses = []
    for history, general_D in zip(histories, general_BD, strict=True):
        before = torch.stack([model.start, *(model.item_embedding.weight[i] for i in history[:-1])])
        x = before + model.position_embedding.weight[: len(history)] + general_D
        states = model.decoder(model.LayerNorm(x), packed([history]))
        logits = states @ model.item_embedding.weight.T
        losses += F.cross_entropy(logits, torch.tensor(history), reduction="none").tolist()
    assert found == pytest.approx(sum(losses) / 5, rel=1e-5)


@torch.no_grad()
def test_a_history_is_encoded_alone_as_among_others_and_alike_for_both_domains(
    store: Store,
) -> None:
    model = model_of(store)
    histories = [[3, 1, 4], [1, 5], [9, 2, 6, 5, 3]]
    together = model.encode(packed(histories))
    for place, history in enumerate(histories):
        alone = model.encode(packed([history]))[0]
        torch.testing.assert_close(together[place], alone, atol=1e-5, rtol=1e-5)


def test_of_the_source_the_training_parts_are_read_and_no_more(tmp_path: Path) -> None:
    source: Dataset = tiny_dataset(tmp_path / "source", users=30, items=15, seed=5)
    model = RecGURU(RecGURUConfig(**{**SMALL, "max_length": 3, "source_items": 15}), 9)
    model.learn_from(source)
    drawn = model._drawn(400, torch.device("cpu"))
    ends = drawn.last.tolist()
    starts = [0, *(end + 1 for end in ends[:-1])]
    found = {tuple(drawn.items[a : b + 1].tolist()) for a, b in zip(starts, ends, strict=True)}
    users = range(source.num_users)
    expected = {
        tuple(source.sequence(user)[: source.train_lengths[user]][-3:].tolist()) for user in users
    }
    assert len(ends) == 400
    assert found == expected


def test_it_ranks_better_than_chance_and_its_source_has_a_say(store: Store, tmp_path: Path) -> None:
    common: dict[str, Any] = {"sizes": {"hidden": 16, "dropout": 0.0}, "learning_rate": 0.01}
    run = trained(store, tmp_path / "a", "recguru", epochs=10, **common)
    first, *_, last = run.record["history"]
    assert last["ce"] < first["ce"] * 0.9
    chance = sum(1 / np.log2(1 + rank) for rank in range(1, 11)) / 24
    assert last["validation"] > 1.5 * chance
    identity = run.record["identity"]
    assert identity["student.source"] == elsewhere(store).digest
    assert identity["student.source_items"] == 15


@pytest.mark.parametrize(
    ("student", "source", "said", "code"),
    [
        ("recguru", None, "recguru learns from two domains and one was given", "fit.no_source"),
        ("sasrec", "other", "--source means nothing to sasrec", "fit.other_option"),
        ("recguru", "own", "is the very dataset of the store", "fit.bad_source"),
    ],
)
def test_what_is_no_second_domain_is_refused_before_anything_is_written(
    store: Store, tmp_path: Path, student: str, source: str | None, said: str, code: str
) -> None:
    datasets = {"other": elsewhere(store), "own": store.dataset}
    with pytest.raises(UsageError, match=said) as caught:
        fit(
            store,
            [],
            tmp_path / "run",
            small(student),
            TrainSettings(),
            student=student,
            source=datasets[source] if source else None,
        )
    assert caught.value.code == code
    assert not (tmp_path / "run").exists()


def test_a_discriminator_that_is_sure_costs_what_its_surety_says() -> None:
    # a logit of 2 for the target: -log(1 / (1 + exp(-2)))
    assert discrimination(torch.tensor([2.0]), torch.tensor([-2.0])).item() == pytest.approx(
        log(1 + exp(-2))
    )
