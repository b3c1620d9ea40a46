"""Tuning by hand and by loop, and the tuned teacher that answers."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.dataset import Dataset
from cache.errors import StoreError, UsageError
from teachers import unisrec_teacher
from teachers.folder import load_folder, read_config
from teachers.protocol import Teacher
from teachers.trainer import Recipe, Trained
from teachers.tune import tune
from teachers.unisrec import Architecture, UniSRec
from teachers.unisrec_teacher import UniSRecTeacher, encode_histories, save_unisrec
from tests.fakes import tiny_dataset
from tests.teachers import naive
from tests.teachers.naive import TINY, dataset_of, shaken, vectors

QUIET = Architecture(
    text_width=6, hidden=8, inner=10, experts=3, dropout=0, attention_dropout=0, adaptor_dropout=0
)
#: users longer and shorter than the four items that a history may hold
WALKS = [[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 1], [2, 0, 3], [4, 4, 1, 0, 2, 3], [1, 3]]


def once(folder: Path, model: UniSRec, dataset: Dataset, **recipe: float) -> Trained:
    return tune(
        model,
        dataset,
        Recipe(**{"epochs": 1, "batch_size": 1000, **recipe}),  # type: ignore[arg-type]
        validate=lambda: 0.0,
        checkpoint=folder / "c.safetensors",
        identity={},
    )


@pytest.mark.parametrize("with_ids", [False, True])
def test_the_loss_is_the_full_softmax_of_every_prefix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_ids: bool
) -> None:
    # one step over everything: its loss is that of the first weights; noise and dropout are off. With four
    # items a history the passes begin at every item, so each prefix holds exactly its last four.
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    dataset = dataset_of(WALKS, 4)
    model = shaken(UniSRec(QUIET, vectors(5), with_ids=with_ids))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    found = once(tmp_path, model, dataset).history[0]["loss"]

    table = [naive.item_vector(weights, row) for row in range(5)]
    losses = []
    for walk in WALKS:
        training = walk[:-2] if len(walk) >= 3 else walk
        for end in range(1, len(training)):
            history = training[max(0, end - 4) : end]
            state = naive.encoded(weights, QUIET, [table[row] for row in history])
            logits = torch.tensor([naive.cosine(state, item) / 0.07 for item in table])
            losses.append(-float(logits.log_softmax(0)[training[end]]))
    assert len(losses) == 8 + 0 + 3 + 1  # 11 - 2 - 1, 3 - 2 - 1, 6 - 2 - 1, 2 - 1
    assert found == pytest.approx(np.mean(losses), rel=1e-4)


def test_short_histories_are_tuned_on_too(tmp_path: Path) -> None:
    # once passes began every ten items however few a history may hold, which is none of them here
    for length in (1, 3, 7):
        (tmp_path / str(length)).mkdir()
        trained = once(
            tmp_path / str(length), UniSRec(QUIET, vectors(5)), dataset_of(WALKS, length)
        )
        assert trained.history[0]["loss"] > 0


def test_two_threads_end_in_the_same_bits_each_time(tmp_path: Path) -> None:
    # many histories share few items, whose slopes two threads once added in whatever order they came
    rng = np.random.default_rng(0)
    dataset = dataset_of(rng.integers(0, 5, (200, 14)).tolist(), 10)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        ends = []
        for number in range(4):
            (tmp_path / str(number)).mkdir()
            torch.manual_seed(0)
            model = UniSRec(replace(QUIET, hidden=64, inner=64), vectors(5))
            trained = once(tmp_path / str(number), model, dataset, epochs=2)
            ends.append((trained.history, [one.clone() for one in model.state_dict().values()]))
    finally:
        torch.set_num_threads(before)
    for history, weights in ends[1:]:
        assert [one["loss"] for one in history] == [one["loss"] for one in ends[0][0]]
        assert all(map(torch.equal, weights, ends[0][1]))


def test_a_batch_holds_at_most_so_many_targets_and_an_epoch_all_of_them(tmp_path: Path) -> None:
    heard: list[float] = []
    dataset = dataset_of([list(range(5)) * 2] * 6, 20)  # 6 users of 7 targets, a pass each
    tune(
        UniSRec(QUIET, vectors(5)),
        dataset,
        Recipe(epochs=1, batch_size=15),
        validate=lambda: 0.0,
        checkpoint=tmp_path / "c",
        identity={},
        report=lambda done, total, note: heard.append(done),
    )
    # two users a step, as three would have 21 targets; then the epoch's end
    assert heard == pytest.approx([14 / 42, 28 / 42, 1, 1])


# ---- the teacher


@pytest.fixture
def tuned(tmp_path: Path) -> tuple[Path, Dataset, UniSRec]:
    """A folder with a teacher of random weights, the dataset it belongs to, and its model."""
    dataset = tiny_dataset(tmp_path / "data")
    model = shaken(UniSRec(TINY, vectors(dataset.num_items), with_ids=True))
    save_unisrec(
        tmp_path / "teacher",
        model,
        model.state_dict(),
        stage="tuned",
        dataset=dataset.digest,
        validation={"ndcg@10": 0.25},
        test={"ndcg@10": 0.2},
    )
    return tmp_path / "teacher", dataset, model


def every_instance(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    parts = [dataset.training_instances(), dataset.held_out("valid"), dataset.held_out("test")]
    users, ends = (np.concatenate(one) for one in zip(*parts, strict=True))
    return users, ends


def test_histories_are_encoded_as_each_alone_whatever_stands_beside_them(
    tuned: tuple[Path, Dataset, UniSRec], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, dataset, model = tuned
    users, ends = every_instance(dataset)
    assert ends.max() > dataset.max_length  # some are cut
    with torch.inference_mode():
        table = model.item_table()
    alone = torch.cat(
        [encode_histories(model, table, dataset, users[[n]], ends[[n]]) for n in range(len(users))]
    )
    draws = np.random.default_rng(0)
    for tokens in (1, 7, 16384):
        monkeypatch.setattr(unisrec_teacher, "_TOKENS", tokens)
        order = draws.permutation(len(users))
        found = encode_histories(model, table, dataset, users[order], ends[order])
        torch.testing.assert_close(found, alone[order], rtol=0, atol=1e-6)
    torch.testing.assert_close(alone.norm(dim=1), torch.ones(len(alone)), rtol=0, atol=1e-6)


def test_they_are_the_slow_models(tuned: tuple[Path, Dataset, UniSRec]) -> None:
    folder, dataset, model = tuned
    weights = model.state_dict()
    table = [naive.item_vector(weights, row) for row in range(dataset.num_items)]
    users, ends = every_instance(dataset)
    users, ends = users[::7], ends[::7]
    teacher = UniSRecTeacher.load(folder)
    histories = teacher.encode_histories(dataset, users, ends)
    items = teacher.encode_items(dataset)
    scores = teacher.score(histories, items)
    for row, (user, end) in enumerate(zip(users, ends, strict=True)):
        history = dataset.sequence(user)[:end][-dataset.max_length :]
        state = naive.encoded(weights, TINY, [table[item] for item in history])
        slow = [naive.cosine(state, item) for item in table]
        np.testing.assert_allclose(scores[row], slow, rtol=0, atol=1e-5)


def test_it_offers_what_the_protocol_asks_for(tuned: tuple[Path, Dataset, UniSRec]) -> None:
    folder, dataset, _ = tuned
    teacher: Teacher = UniSRecTeacher.load(folder)
    assert (teacher.name, teacher.factorises) == ("unisrec", True)
    # what students weigh by is of validation; that of test says so in its name
    assert teacher.quality == {"ndcg@10": 0.25, "test ndcg@10": 0.2}
    assert teacher.digest.startswith("sha256:")
    items = teacher.encode_items(dataset)
    assert (items.shape, items.dtype) == ((dataset.num_items, 8), np.float32)
    histories = teacher.encode_histories(dataset, *dataset.held_out("test"))
    assert (histories.shape, histories.dtype) == ((dataset.num_users, 8), np.float32)


def test_asked_twice_it_answers_the_same_bits(tuned: tuple[Path, Dataset, UniSRec]) -> None:
    folder, dataset, _ = tuned
    one, two = UniSRecTeacher.load(folder), UniSRecTeacher.load(folder)
    assert one.digest == two.digest
    users, ends = dataset.training_instances()
    assert np.array_equal(
        one.encode_histories(dataset, users, ends), two.encode_histories(dataset, users, ends)
    )


def test_another_dataset_is_refused(tuned: tuple[Path, Dataset, UniSRec], tmp_path: Path) -> None:
    folder, _, _ = tuned
    other = tiny_dataset(tmp_path / "other", seed=1)
    teacher = UniSRecTeacher.load(folder)
    for ask in (
        lambda: teacher.encode_items(other),
        lambda: teacher.encode_histories(other, *other.held_out("test")),
    ):
        with pytest.raises(StoreError, match="the teacher was tuned on the dataset") as caught:
            ask()
        assert caught.value.code == "teacher.foreign"


def test_a_pretrained_one_cannot_be_asked(tmp_path: Path) -> None:
    model = UniSRec(TINY)
    save_unisrec(tmp_path / "p", model, model.state_dict(), stage="pretrained")
    with pytest.raises(UsageError, match=r"kd-teacher tune unisrec --from") as caught:
        UniSRecTeacher.load(tmp_path / "p")
    assert caught.value.code == "teacher.not_tuned"


@pytest.mark.parametrize(
    "edit",
    [
        {"architecture": {**asdict(TINY), "hidden": 16}},
        {"architecture": {**asdict(TINY), "heads": 3}},
        {"architecture": {**asdict(TINY), "colour": 1}},
        {"architecture": None},
        {"dataset": ...},
        {"validation": ...},
        {"architecture": ...},
    ],
)
def test_a_configuration_that_does_not_fit_its_weights_is_refused(
    tuned: tuple[Path, Dataset, UniSRec], edit: dict[str, object]
) -> None:
    folder, _, _ = tuned
    config = {**read_config(folder), **edit}
    config = {key: value for key, value in config.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(StoreError, match="does not describe the weights beside it") as caught:
        UniSRecTeacher.load(folder)
    assert caught.value.code == "teacher.damaged"


def test_a_full_gpu_is_not_taken_for_a_damaged_folder(
    tuned: tuple[Path, Dataset, UniSRec], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(torch.OutOfMemoryError):
        UniSRecTeacher.load(tuned[0])


def test_the_weights_that_are_written_are_those_that_are_read(
    tuned: tuple[Path, Dataset, UniSRec],
) -> None:
    folder, _, model = tuned
    weights, config, _ = load_folder(folder)
    expected: dict[str, Tensor] = dict(model.state_dict())
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert config["architecture"] == asdict(TINY)
