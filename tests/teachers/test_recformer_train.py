"""Pre-training and tuning a Recformer: what is drawn, what is lost, and going on after a kill to the same bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cache.dataset import Dataset
from cache.errors import StoreError, UsageError
from teachers import recformer_tune
from teachers.recformer import Batch, Recformer, encode
from teachers.recformer_pretrain import Source, mask_words, pretrain
from teachers.recformer_tokens import ItemTokens, Tokens, tokenise_items
from teachers.recformer_tune import checkpoints, read_items, tune
from teachers.schedule import warm_up_and_decay
from teachers.trainer import Recipe, Trained, train
from tests.teachers.recformer_parts import LIMITS, MASK, TINY, dataset_of, shop, vocabulary

QUIET = replace(TINY, dropout=0.0, attention_dropout=0.0)
IDENTITY = {"what": "a test"}


class Killed(BaseException):
    """What a report raises to stop a run where it stands."""


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return shop(tmp_path / "shop")


@pytest.fixture
def items(dataset: Dataset) -> ItemTokens:
    return tokenise_items(dataset, vocabulary(), LIMITS)


def model_of(dataset: Dataset | None = None, shape: Any = TINY, **more: Any) -> Recformer:
    torch.manual_seed(0)
    model = Recformer(shape, items=dataset.num_items if dataset else None, **more)
    for parameter in model.longformer.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_the_rate_rises_and_then_falls_in_straight_lines() -> None:
    share = warm_up_and_decay(4, 12)
    assert [share(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    # from there 8 steps to zero
    assert [share(step) for step in (4, 6, 10, 11, 12, 99)] == [1.0, 0.75, 0.25, 0.125, 0.0, 0.0]
    assert warm_up_and_decay(0, 2)(0) == 1.0


def test_the_loop_follows_the_schedule_and_clips(tmp_path: Path) -> None:
    # one weight w, loss 100 w: the gradient 100 is clipped to 1. Adam's steps are then the rate itself, whatever
    # the gradient's size: 0.1 + 0.05 + 0.025
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    norms: list[float] = []
    shares = [1.0, 0.5, 0.25]

    def loss() -> Tensor:
        if model.weight.grad is not None:
            norms.append(float(model.weight.grad.norm()))
        return 100 * model.weight.sum()

    train(
        model,
        Recipe(epochs=1, learning_rate=0.1),
        lambda epoch: iter([(1, loss)] * 3),
        size=3,
        checkpoint=tmp_path / "c.safetensors",
        identity=IDENTITY,
        schedule=lambda step: shares[step],
        clip=1.0,
    )
    assert norms == pytest.approx([1.0, 1.0])
    assert float(model.weight.detach()) == pytest.approx(-0.175, rel=1e-4)


def tokens_of(words: int, pieces: int) -> Tokens:
    """One text: the first token, then so many words of so many pieces each."""
    ids = np.concatenate([[2], np.tile(np.arange(5, 5 + pieces), words)]).astype(np.int32)
    begins = np.concatenate([[True], np.tile(np.arange(pieces) == 0, words)])
    places = (np.arange(len(ids)) > 0).astype(np.int32)
    return Tokens(ids=ids, kinds=places, places=places, begins=begins, lengths=np.array([len(ids)]))


def test_whole_words_are_hidden_as_often_as_agreed() -> None:
    tokens, draws = tokens_of(20_000, 3), np.random.default_rng(0)
    masked = mask_words(tokens, vocabulary(), draws)
    assert (masked.rows > 0).all()
    assert (np.diff(masked.rows) > 0).all()
    # all three pieces of a word or none
    words = np.unique((masked.rows - 1) // 3)
    assert len(masked.rows) == 3 * len(words)
    assert len(words) / 20_000 == pytest.approx(0.15, abs=0.01)
    assert (masked.words == tokens.ids[masked.rows]).all()
    untouched = np.delete(np.arange(len(tokens.ids)), masked.rows)
    assert (masked.ids[untouched] == tokens.ids[untouched]).all()
    # of the hidden pieces 80% are the mask; 10% stay, and one in 23 of the random 10% happens to stay or to be the mask
    hidden = masked.ids[masked.rows]
    assert np.mean(hidden == MASK) == pytest.approx(0.8 + 0.1 / 23, abs=0.015)
    assert np.mean(hidden == masked.words) == pytest.approx(0.1 + 0.1 / 23, abs=0.015)
    assert len(np.unique(hidden)) == 23


def test_one_word_at_least_is_hidden_and_never_the_first_token() -> None:
    for seed in range(20):
        masked = mask_words(tokens_of(2, 2), vocabulary(), np.random.default_rng(seed), share=1e-9)
        assert masked.rows.tolist() in ([1, 2], [3, 4])


def pretrained(
    folder: Path, sources: list[Source], model: Recformer | None = None, **more: Any
) -> Trained:
    recipe = Recipe(
        **{"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, **more.pop("recipe", {})}
    )
    return pretrain(
        model or model_of(with_head=True),
        sources,
        vocabulary(),
        recipe,
        **{"checkpoint": folder / "c.safetensors", "identity": IDENTITY, **more},
    )


def test_the_loss_is_the_contrast_and_a_tenth_of_each_masked_model(tmp_path: Path) -> None:
    # one user of two items: the target is item 1 and the history item 0, whatever is drawn; a batch of one pair has
    # no rivals, so its contrast is 0, and what is left are the two masked models
    shop = dataset_of(tmp_path / "d", [[0, 1]], [{"title": "red"}, {"title": "blue"}])
    items = tokenise_items(shop, vocabulary(), LIMITS)
    model = model_of(shape=QUIET, with_head=True).eval()
    # [CLS] title red [CLS] title blue, and the words drawn as the loop draws them
    draws = np.random.Generator(np.random.Philox(key=np.array([0, 0], np.uint64)))
    draws.random(1)
    draws.integers(np.array([1]), np.array([2]))
    read = items.sequences(np.array([0, 1], np.int32), np.ones(2, np.int32)).lay(np.arange(2))
    masked = mask_words(read, vocabulary(), draws)
    with torch.no_grad():
        batch = Batch.of(read, QUIET).with_ids(masked.ids)
        guesses = model.words(model.states(batch)[torch.from_numpy(masked.rows)])
        surprise = F.cross_entropy(guesses, torch.from_numpy(masked.words), reduction="none")
    parts = [surprise[torch.from_numpy(rows)] for rows in (masked.rows < 3, masked.rows >= 3)]
    expected = sum(0.1 * float(part.mean()) for part in parts if len(part))
    one = {"epochs": 1, "batch_size": 1}
    found = pretrained(tmp_path, [Source(shop, items)], model, recipe=one)
    assert found.history[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_pretraining_learns_to_tell_items_apart(
    tmp_path: Path, dataset: Dataset, items: ItemTokens
) -> None:
    # everybody's next item is the one he just had
    walks = [[row] * 4 for row in range(9)] * 2
    columns = ("title", "brand", "category")
    texts = [{name: str(row[name]) for name in columns} for row in dataset.items.to_pylist()]
    loyal = dataset_of(tmp_path / "loyal", walks, texts)
    recipe = {"epochs": 12, "batch_size": 9, "learning_rate": 2e-2}
    found = pretrained(
        tmp_path,
        [Source(loyal, items)],
        model_of(shape=QUIET, with_head=True),
        recipe=recipe,
        word_weight=0.0,
    )
    losses = [one["loss"] for one in found.history]
    assert losses[-1] < 0.5 * losses[0]


def test_sources_are_mixed_and_subsampled(
    tmp_path: Path, dataset: Dataset, items: ItemTokens
) -> None:
    second = shop(tmp_path / "second", users=6, seed=1)
    sources = [Source(dataset, items), Source(second, tokenise_items(second, vocabulary(), LIMITS))]
    told: list[float] = []
    found = pretrained(
        tmp_path, sources, limit=8, report=lambda done, total, note: told.append(done)
    )
    assert found.epochs == 2
    # eight users in steps of four: half an epoch each, and its end
    assert told == [0.5, 1.0, 1.0, 1.5, 2.0, 2.0]


def test_frozen_words_stay(tmp_path: Path, dataset: Dataset, items: ItemTokens) -> None:
    model = model_of(with_head=True)
    model.freeze_words()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    pretrained(tmp_path, [Source(dataset, items)], model)
    after = model.state_dict()
    words = "longformer.embeddings.word_embeddings.weight"
    assert torch.equal(after[words], before[words])
    assert torch.equal(after["lm_head.decoder.weight"], before[words])
    moved = "longformer.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(after[moved], before[moved])


def test_killed_pretraining_goes_on_to_the_same_bits(
    tmp_path: Path, dataset: Dataset, items: ItemTokens
) -> None:
    sources = [Source(dataset, items)]
    (tmp_path / "a").mkdir()
    expected = pretrained(tmp_path / "a", sources, recipe={"epochs": 3})

    def killer(done: float, total: float, note: str) -> None:
        if done > 1.2:
            raise Killed

    with pytest.raises(Killed):
        pretrained(tmp_path, sources, recipe={"epochs": 3}, report=killer)
    found = pretrained(tmp_path, sources, recipe={"epochs": 3})
    assert equal(found.weights, expected.weights)
    assert found.history == expected.history


def test_nobody_with_two_items_is_no_source(tmp_path: Path) -> None:
    alone = dataset_of(tmp_path / "d", [[0], [0]], [{"title": "red"}])
    items = tokenise_items(alone, vocabulary(), LIMITS)
    with pytest.raises(UsageError, match="no user of the sources has two items"):
        pretrained(tmp_path, [Source(alone, items)])
    with pytest.raises(UsageError, match="no user has two items to train on"):
        tuned(tmp_path, alone, items)


def tuned(
    folder: Path, dataset: Dataset, items: ItemTokens, model: Recformer | None = None, **more: Any
) -> Trained:
    model = model or model_of(dataset)
    recipe = Recipe(
        **{"epochs": 3, "batch_size": 4, "learning_rate": 1e-2, **more.pop("recipe", {})}
    )
    settings = {
        "second": replace(recipe, epochs=2),
        "validate": judged(model, dataset, items),
        "checkpoint": folder / "c.safetensors",
        "identity": IDENTITY,
        "warm_up": 2,
    }
    return tune(model, dataset, items, recipe, **{**settings, **more})


def judged(model: Recformer, dataset: Dataset, items: ItemTokens) -> Callable[[], float]:
    """Mean cosine of histories and their targets: a validation that moves all the time."""

    def validate() -> float:
        users, ends = dataset.held_out("valid")
        vectors = F.normalize(encode(model, items.histories(dataset, users, ends)), dim=-1)
        table = F.normalize(model.table(), dim=-1)[dataset.targets(users, ends).astype(np.int64)]
        return float((vectors * table).sum(dim=-1).mean())

    return validate


def scripted(values: list[float], start: float = 0.0) -> Callable[[], float]:
    """A validation that says these values, epoch by epoch, after that of the start."""
    left = iter([start, *values])
    return lambda: next(left)


@pytest.mark.parametrize("moment", [0.5, 1.5, 2.5, 3.3, 4.3])
def test_killed_tuning_goes_on_to_the_same_bits_in_either_stage(
    moment: float, tmp_path: Path, dataset: Dataset, items: ItemTokens
) -> None:
    (tmp_path / "a").mkdir()
    expected = tuned(tmp_path / "a", dataset, items)

    def killer(done: float, total: float, note: str) -> None:
        assert total == 5
        if done > moment:
            raise Killed

    with pytest.raises(Killed):
        tuned(tmp_path, dataset, items, report=killer)
    found = tuned(tmp_path, dataset, items)
    assert equal(found.weights, expected.weights)
    assert found.history == expected.history


def test_what_is_told_names_the_stage_and_ends_in_no_comma(
    tmp_path: Path, dataset: Dataset, items: ItemTokens
) -> None:
    told: list[str] = []
    tuned(tmp_path, dataset, items, report=lambda done, total, note: told.append(note))
    assert told[0] == "stage 1, validating the start"
    assert told[1].startswith("stage 1, valid ndcg@10 ")
    assert told[1].endswith(" at the start")
    assert "stage 2" in told  # before an epoch of it has a loss
    assert all(note.startswith("stage ") and not note.endswith(", ") for note in told)


def test_a_kill_between_the_stages_changes_nothing(
    tmp_path: Path, dataset: Dataset, items: ItemTokens
) -> None:
    (tmp_path / "a").mkdir()
    expected = tuned(tmp_path / "a", dataset, items)
    first = tuned(tmp_path, dataset, items, second=None)  # all of stage one, nothing of stage two
    assert checkpoints(tmp_path / "c.safetensors")[0].is_file()
    found = tuned(tmp_path, dataset, items)
    assert equal(found.weights, expected.weights)
    assert found.history[: first.epochs] == first.history
    assert [one["stage"] for one in found.history] == [1.0, 1.0, 1.0, 2.0, 2.0]


def test_another_run_is_not_gone_on_with(
    tmp_path: Path, dataset: Dataset, items: ItemTokens
) -> None:
    tuned(tmp_path, dataset, items)
    with pytest.raises(StoreError, match="belongs to a run with what a test"):
        tuned(tmp_path, dataset, items, identity={"what": "else"})


def test_stage_one_keeps_the_table_that_its_best_weights_read(
    tmp_path: Path, dataset: Dataset, items: ItemTokens
) -> None:
    found = tuned(tmp_path, dataset, items, validate=scripted([0.1, 0.9, 0.2]), second=None)
    assert found.best == 0.9
    model = model_of(dataset)
    model.load_state_dict(found.weights)
    read_items(model, items)
    torch.testing.assert_close(model.table(), found.weights["item_embedding.weight"])


def test_a_start_that_no_epoch_betters_stays(
    tmp_path: Path, dataset: Dataset, items: ItemTokens
) -> None:
    worse = scripted([0.1, 0.2, 0.1], start=0.5)
    found = tuned(tmp_path, dataset, items, validate=worse, second=None)
    assert found.best == 0.5
    untouched = model_of(dataset)
    read_items(untouched, items)
    assert equal(found.weights, untouched.state_dict())
    assert found.epochs == 3


def test_stage_two_keeps_the_table_and_moves_the_weights_even_after_a_full_stage_one(
    tmp_path: Path, dataset: Dataset, items: ItemTokens
) -> None:
    # best in the last of three epochs, where stage one's rate has fallen to nothing; a stage two that inherited it
    # would stand still. Adam's first steps are about the rate: 1e-2 x (1/2, 1, ...)
    values = [0.1, 0.2, 0.3, 0.4, 0.5]
    found = tuned(tmp_path, dataset, items, validate=scripted(values))
    first = tuned(tmp_path, dataset, items, validate=scripted(values), second=None)
    assert first.best == 0.3
    assert found.best == 0.5
    table = "item_embedding.weight"
    assert torch.equal(found.weights[table], first.weights[table])
    moved = "longformer.encoder.layer.0.attention.self.query.weight"
    assert float((found.weights[moved] - first.weights[moved]).abs().max()) > 5e-3


def test_a_stage_two_that_validates_worse_is_forgotten(
    tmp_path: Path, dataset: Dataset, items: ItemTokens
) -> None:
    values = [0.1, 0.9, 0.3, 0.4, 0.5]
    found = tuned(tmp_path, dataset, items, validate=scripted(values))
    first = tuned(tmp_path, dataset, items, validate=scripted(values), second=None)
    assert found.best == 0.9
    assert equal(found.weights, first.weights)
    assert found.epochs == 5


def test_every_user_has_one_target_an_epoch_and_always_a_history(
    tmp_path: Path, dataset: Dataset, items: ItemTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    real = ItemTokens.histories

    def spy(self: ItemTokens, of: Dataset, users: Any, ends: Any) -> Any:
        asked.extend(zip(users.tolist(), ends.tolist(), strict=True))
        return real(self, of, users, ends)

    monkeypatch.setattr(ItemTokens, "histories", spy)
    tuned(
        tmp_path,
        dataset,
        items,
        validate=scripted([0.1] * 40),
        second=None,
        recipe={"epochs": 10, "patience": 10},
    )
    able = np.flatnonzero(dataset.train_lengths >= 2).tolist()
    per_epoch = [asked[at : at + len(able)] for at in range(0, len(asked), len(able))]
    assert len(per_epoch) == 10
    assert all(sorted(user for user, _ in one) == able for one in per_epoch)
    # positions 1 to L - 1 come, and no other
    assert all(1 <= end < dataset.train_lengths[user] for user, end in asked)
    assert min(end for _, end in asked) == 1
    assert any(end == dataset.train_lengths[user] - 1 for user, end in asked)


def test_the_loss_is_the_full_softmax_of_cosines_over_the_table(
    tmp_path: Path, dataset: Dataset, items: ItemTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(dataset, QUIET)
    read_items(model, items)
    users = np.flatnonzero(dataset.train_lengths >= 2)
    draws = np.random.Generator(np.random.Philox(key=np.array([0, 0], np.uint64)))
    chosen = users[np.argsort(draws.random(len(users)), kind="stable")].astype(np.int32)
    ends = draws.integers(1, dataset.train_lengths[chosen]).astype(np.int32)
    states = encode(model, items.histories(dataset, chosen, ends)).numpy().astype(np.float64)
    table = model.table().numpy().astype(np.float64)
    total = 0.0
    for state, target in zip(states, dataset.targets(chosen, ends), strict=True):
        cosines = table @ state / np.linalg.norm(table, axis=1) / np.linalg.norm(state)
        scores = np.exp(cosines / 0.05)
        total -= np.log(scores[target] / scores.sum())
    recipe = {"epochs": 1, "batch_size": 1000}
    found = tuned(tmp_path, dataset, items, model_of(dataset, QUIET), second=None, recipe=recipe)
    assert found.history[0]["loss"] == pytest.approx(total / len(chosen), rel=1e-4)


def test_no_gradient_reaches_the_table(
    tmp_path: Path, dataset: Dataset, items: ItemTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(dataset)
    names = {name for name, one in model.named_parameters() if one.requires_grad}
    assert "item_embedding.weight" not in names
    # and stage two never fills it anew
    fills: list[int] = []
    real = recformer_tune.read_items
    monkeypatch.setattr(
        recformer_tune, "read_items", lambda *one, **more: (fills.append(1), real(*one, **more))[1]
    )
    tuned(tmp_path, dataset, items, model)
    assert len(fills) == 1 + 3  # before the first epoch, and after each of stage one's three
