"""`tune` and `pretrain` as the command line calls them: what is trained, kept, gone on with, reused and refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from cache.dataset import Dataset, open_dataset, write_dataset
from cache.errors import CkdError, StoreError, UsageError
from cache.vectors import vectors_manifest, write_vectors
from pipeline import teach
from pipeline.metrics import metrics_of_ranks
from pipeline.teach import evaluate_teacher
from teachers.folder import load_folder
from teachers.pretrain import Augmentation
from teachers.prewhitening import whitened
from teachers.registry import load_teacher
from teachers.text import TextSettings
from teachers.trainer import Recipe
from teachers.unisrec import Architecture, UniSRec
from teachers.unisrec_teacher import save_unisrec
from tests.fakes import PairTeacher, TableTeacher, tiny_dataset, tree
from tests.teachers.naive import shaken, vectors

WIDTH = 6
RECIPE = Recipe(epochs=3, patience=3, batch_size=32, learning_rate=0.01)
SMALL = {"hidden": 8, "inner": 10, "experts": 3}


class Killed(BaseException):
    """What a report raises to stop a run where it stands."""


def silent(done: float, total: float, note: str) -> None:
    """A report that nobody hears."""


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    dataset = tiny_dataset(tmp_path / "data", users=40)
    write_vectors(dataset, "random", vectors(dataset.num_items).numpy() + 1, {"origin": "test"})
    return dataset


def tune(dataset: Dataset, out: Path, **more: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "text": TextSettings(),
        "vectors": "random",
        "whiten": True,
        "start": None,
        "transductive": True,
        "freeze_encoder": False,
        "architecture": SMALL,
        "recipe": RECIPE,
        "device": "cpu",
        "report": silent,
    }
    return teach.tune(dataset, out, **(settings | more))


def pretrained(folder: Path, **config: Any) -> dict[str, Tensor]:
    """A pre-trained teacher of random weights in `folder`; returns them."""
    shape = Architecture(text_width=WIDTH, hidden=8, inner=10, experts=3)
    model = shaken(UniSRec(shape), seed=5)
    card = {"stage": "pretrained", "text": None, "whiten": True, "identity": {}}
    save_unisrec(folder, model, model.state_dict(), **(card | config))
    return dict(model.state_dict())


# ---- what is trained


def test_inductive_has_no_ids_and_transductive_one_for_each_item(
    dataset: Dataset, tmp_path: Path
) -> None:
    tune(dataset, tmp_path / "i", transductive=False)
    tune(dataset, tmp_path / "t", transductive=True)
    inductive, _, _ = load_folder(tmp_path / "i")
    transductive, _, _ = load_folder(tmp_path / "t")
    # two layers of 4 products, 2 feed-forward ones and 2 norms, each with a bias; norm; positions; 2 gates; 3 experts; texts
    assert len(inductive) == 2 * 2 * (4 + 2 + 2) + 2 + 1 + 2 + 3 * 2 + 1
    assert transductive.keys() - inductive.keys() == {"item_embedding.weight"}
    assert transductive["item_embedding.weight"].shape == (dataset.num_items, 8)
    # 50 positions even where histories hold four, so that weights fit other targets
    assert transductive["position_embedding.weight"].shape == (50, 8)


@pytest.mark.parametrize("whiten", [True, False])
def test_texts_enter_whitened_or_as_they_are(
    dataset: Dataset, tmp_path: Path, whiten: bool
) -> None:
    tune(dataset, tmp_path / "t", whiten=whiten)
    raw = vectors(dataset.num_items).numpy() + 1
    kept = load_folder(tmp_path / "t")[0]["plm_embedding.weight"].numpy()
    assert np.array_equal(kept, whitened(raw) if whiten else raw)


def test_a_frozen_encoder_stays_bit_for_bit_while_the_rest_learns(
    dataset: Dataset, tmp_path: Path
) -> None:
    before = pretrained(tmp_path / "p")
    tune(dataset, tmp_path / "t", start=tmp_path / "p", freeze_encoder=True)
    after, _, _ = load_folder(tmp_path / "t")
    frozen = {"position_embedding", "trm_encoder"}
    for name, value in before.items():
        same = torch.equal(value, after[name])
        assert same == (name.split(".")[0] in frozen), name
    (tmp_path / "u").mkdir()
    tune(dataset, tmp_path / "u", start=tmp_path / "p")
    moved, _, _ = load_folder(tmp_path / "u")
    assert not any(torch.equal(value, moved[name]) for name, value in before.items())


def test_it_starts_from_the_pretrained_weights(dataset: Dataset, tmp_path: Path) -> None:
    before = pretrained(tmp_path / "p")
    tiny_step = replace(RECIPE, learning_rate=1e-7, epochs=1)
    tune(dataset, tmp_path / "t", start=tmp_path / "p", recipe=tiny_step)
    after, config, _ = load_folder(tmp_path / "t")
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-5)
    assert config["identity"]["start"] == load_folder(tmp_path / "p")[2]


def test_it_learns_what_follows_what(tmp_path: Path) -> None:
    # everyone walks 0, 1, 2, ..., so the next item can be told from the last
    flat = np.concatenate([(np.arange(8) + start) % 9 for start in np.arange(45) % 9])
    items = pa.table({"item": [f"i{row}" for row in range(9)]})
    write_dataset(
        tmp_path / "walks",
        items=items,
        user_ids=None,
        flat=flat,
        offsets=np.arange(46) * 8,
        max_length=5,
    )
    dataset = open_dataset(tmp_path / "walks")
    write_vectors(dataset, "random", vectors(9).numpy(), {"origin": "test"})
    recipe = replace(RECIPE, epochs=15, patience=15, learning_rate=0.03)
    quiet = {**SMALL, "dropout": 0.1, "attention_dropout": 0.1, "adaptor_dropout": 0.0}
    config = tune(dataset, tmp_path / "t", recipe=recipe, architecture=quiet)
    assert config["test"]["recall@5"] > 0.9  # by chance 5/9


def test_it_stops_early_and_keeps_the_best(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = metrics_of_ranks

    def script(values: list[float]) -> None:
        left = iter(values)
        monkeypatch.setattr(
            teach, "metrics_of_ranks", lambda ranks: real(ranks) | {"ndcg@10": next(left, 0.5)}
        )

    # the second epoch is the best, and the two after it are all that patience allows
    script([0.1, 0.3, 0.2, 0.2])
    config = tune(dataset, tmp_path / "t", recipe=replace(RECIPE, epochs=9, patience=2))
    assert config["epochs"] == 4
    # and is what was measured
    assert config["test"]["ndcg@20"] == pytest.approx(_ndcg20(dataset, tmp_path / "t"))
    script([0.1, 0.3])
    tune(dataset, tmp_path / "u", recipe=replace(RECIPE, epochs=2))
    best, two = load_folder(tmp_path / "t")[0], load_folder(tmp_path / "u")[0]
    assert all(torch.equal(best[name], two[name]) for name in two)


def _ndcg20(dataset: Dataset, folder: Path) -> float:
    return evaluate_teacher(load_teacher(folder), dataset, "test")[1]["ndcg@20"]


# ---- going on, and reuse


@pytest.mark.parametrize("epochs", [1, 2])
def test_stopped_after_an_epoch_the_same_call_ends_in_the_same_bytes(
    dataset: Dataset, tmp_path: Path, epochs: int
) -> None:
    tune(dataset, tmp_path / "whole")

    def report(done: float, total: float, note: str) -> None:
        if done > epochs:
            raise Killed

    with pytest.raises(Killed):
        tune(dataset, tmp_path / "cut", report=report)
    assert sorted(tree(tmp_path / "cut")) == ["checkpoint.safetensors"]
    tune(dataset, tmp_path / "cut")
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")
    assert sorted(tree(tmp_path / "cut")) == ["config.json", "weights.safetensors"]


def test_stopped_while_it_was_written_the_same_call_ends_in_the_same_bytes(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(dataset, tmp_path / "whole")

    def killed(*_: object, **__: object) -> None:
        raise Killed

    monkeypatch.setattr(teach, "save_unisrec", killed)
    with pytest.raises(Killed):
        tune(dataset, tmp_path / "cut")
    monkeypatch.undo()
    tune(dataset, tmp_path / "cut")
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")


def test_an_unfinished_run_of_other_settings_is_not_gone_on_with(
    dataset: Dataset, tmp_path: Path
) -> None:
    def report(done: float, total: float, note: str) -> None:
        if done > 1:
            raise Killed

    with pytest.raises(Killed):
        tune(dataset, tmp_path / "t", report=report)
    with pytest.raises(StoreError, match=r"recipe\.seed 0, this one has 1") as caught:
        tune(dataset, tmp_path / "t", recipe=replace(RECIPE, seed=1))
    assert caught.value.code == "checkpoint.foreign"


def test_a_finished_teacher_is_taken_as_it_is(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tune(dataset, tmp_path / "t")
    before = tree(tmp_path / "t")

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("it trained again")

    monkeypatch.setattr(teach, "run_tuning", forbidden)
    assert tune(dataset, tmp_path / "t") == first
    assert tree(tmp_path / "t") == before


def test_what_a_killed_process_left_beside_a_finished_one_goes(
    dataset: Dataset, tmp_path: Path
) -> None:
    tune(dataset, tmp_path / "t")
    before = tree(tmp_path / "t")
    (tmp_path / "t" / "checkpoint.safetensors").write_bytes(b"large")
    (tmp_path / "t" / ".way").mkdir()
    (tmp_path / "t" / ".way" / "00001.safetensors").write_bytes(b"large")
    tune(dataset, tmp_path / "t")
    assert tree(tmp_path / "t") == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"transductive": False}, "transductive True, this one would have False"),
        ({"whiten": False}, "whiten True, this one would have False"),
        ({"recipe": replace(RECIPE, seed=1)}, r"recipe\.seed 0, this one would have 1"),
        ({"architecture": {**SMALL, "dropout": 0.1}}, r"architecture\.dropout 0\.5, .* have 0\.1"),
    ],
)
def test_one_of_other_settings_is_never_overwritten(
    dataset: Dataset, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    tune(dataset, tmp_path / "t")
    before = tree(tmp_path / "t")
    with pytest.raises(UsageError, match=said) as caught:
        tune(dataset, tmp_path / "t", **change)
    assert caught.value.code == "teacher.exists"
    assert tree(tmp_path / "t") == before


def test_one_of_another_dataset_is_never_overwritten(dataset: Dataset, tmp_path: Path) -> None:
    tune(dataset, tmp_path / "t")
    other = tiny_dataset(tmp_path / "other", seed=3)
    write_vectors(other, "random", vectors(other.num_items).numpy(), {"origin": "test"})
    with pytest.raises(UsageError, match=f"dataset {dataset.digest}") as caught:
        tune(other, tmp_path / "t")
    assert caught.value.code == "teacher.exists"


def test_one_of_other_vectors_of_the_same_name_is_never_taken(
    dataset: Dataset, tmp_path: Path
) -> None:
    tune(dataset, tmp_path / "t")
    shutil.rmtree(dataset.path / "vectors" / "random")
    write_vectors(dataset, "random", vectors(dataset.num_items, seed=9).numpy(), {"origin": "test"})
    with pytest.raises(UsageError, match="holds a teacher with vectors random sha256:") as caught:
        tune(dataset, tmp_path / "t")
    assert caught.value.code == "teacher.exists"


def test_a_finished_teacher_that_is_damaged_is_not_taken(dataset: Dataset, tmp_path: Path) -> None:
    tune(dataset, tmp_path / "t")
    (tmp_path / "t" / "weights.safetensors").unlink()
    with pytest.raises(StoreError, match=rf"remove {tmp_path / 't'} and make") as caught:
        tune(dataset, tmp_path / "t")
    assert caught.value.code == "teacher.damaged"
    shutil.rmtree(tmp_path / "t")  # what the error says to do helps
    tune(dataset, tmp_path / "t")


# ---- what a pre-trained one must be like


@pytest.mark.parametrize(
    ("config", "call", "code"),
    [
        ({"whiten": False}, {}, "tune.other_text"),
        ({}, {"whiten": False}, "tune.other_text"),
        ({}, {"vectors": "wide"}, "tune.other_text"),
        ({"text": {"pooling": "mean", "weights": "a"}}, {"vectors": "made"}, "tune.other_text"),
        ({"text": {"pooling": "cls", "weights": "b"}}, {"vectors": "made"}, "tune.other_text"),
        ({"stage": "tuned"}, {}, "tune.not_pretrained"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(
    dataset: Dataset, tmp_path: Path, config: dict[str, Any], call: dict[str, Any], code: str
) -> None:
    rows = dataset.num_items
    write_vectors(dataset, "wide", vectors(rows, WIDTH + 1).numpy(), {"origin": "test"})
    made_by = {"pooling": "cls", "weights": "a", "config": "c"}
    write_vectors(dataset, "made", vectors(rows).numpy(), made_by)
    pretrained(tmp_path / "p", **config)
    with pytest.raises(CkdError) as caught:
        tune(dataset, tmp_path / "t", start=tmp_path / "p", **call)
    assert caught.value.code == code
    assert str(tmp_path / "p") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "edit", [{"architecture": None}, {"architecture": {"colour": 1}}, {"text": ...}]
)
def test_a_start_whose_configuration_was_changed_is_refused(
    dataset: Dataset, tmp_path: Path, edit: dict[str, Any]
) -> None:
    pretrained(tmp_path / "p")
    path = tmp_path / "p" / "config.json"
    config = {**json.loads(path.read_bytes()), **edit}
    path.write_text(json.dumps({key: one for key, one in config.items() if one is not ...}))
    with pytest.raises(StoreError, match="does not describe the weights beside it") as caught:
        tune(dataset, tmp_path / "t", start=tmp_path / "p")
    assert caught.value.code == "teacher.damaged"
    assert not (tmp_path / "t").exists()


def test_the_same_encoder_is_welcome(dataset: Dataset, tmp_path: Path) -> None:
    made_by = {"pooling": "cls", "weights": "a", "config": "c"}
    write_vectors(dataset, "made", vectors(dataset.num_items).numpy(), made_by)
    pretrained(tmp_path / "p", text=made_by)
    tune(dataset, tmp_path / "t", start=tmp_path / "p", vectors="made")


def test_a_tuned_teacher_is_no_start(dataset: Dataset, tmp_path: Path) -> None:
    tune(dataset, tmp_path / "t")
    with pytest.raises(UsageError, match="holds no pre-trained UniSRec") as caught:
        tune(dataset, tmp_path / "u", start=tmp_path / "t")
    assert caught.value.code == "tune.not_pretrained"


def test_only_what_was_learnt_can_be_frozen(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name it with --from") as caught:
        tune(dataset, tmp_path / "t", freeze_encoder=True)
    assert caught.value.code == "tune.nothing_to_freeze"


def long_dataset(path: Path, max_length: int) -> Dataset:
    write_dataset(
        path,
        items=pa.table({"item": [f"i{row}" for row in range(5)]}),
        user_ids=None,
        flat=np.arange(240) % 5,
        offsets=np.array([0, 120, 240]),
        max_length=max_length,
    )
    dataset = open_dataset(path)
    write_vectors(dataset, "random", vectors(5).numpy(), {"origin": "test"})
    return dataset


def test_histories_of_more_than_fifty_items_are_read(tmp_path: Path) -> None:
    dataset = long_dataset(tmp_path / "long", 70)
    config = tune(dataset, tmp_path / "t", recipe=replace(RECIPE, epochs=1))
    assert config["architecture"]["positions"] == 70
    pretrained(tmp_path / "p")
    with pytest.raises(
        StoreError, match=r"reads histories of up to 50 items, .* has up to 70"
    ) as e:
        tune(dataset, tmp_path / "u", start=tmp_path / "p")
    assert e.value.code == "tune.too_long"


def test_without_anybody_to_validate_on_nothing_begins(tmp_path: Path) -> None:
    write_dataset(
        tmp_path / "d",
        items=pa.table({"item": ["a", "b"]}),
        user_ids=None,
        flat=np.array([0, 1, 1, 0]),
        offsets=np.array([0, 2, 4]),
    )
    with pytest.raises(UsageError, match="no user with three interactions") as caught:
        tune(open_dataset(tmp_path / "d"), tmp_path / "t")
    assert caught.value.code == "tune.nothing_to_validate"


def short_dataset(path: Path) -> Dataset:
    """Twenty users of three interactions: two are held out, and one has no history."""
    write_dataset(
        path,
        items=pa.table({"item": ["a", "b", "c", "d"]}),
        user_ids=None,
        flat=np.arange(60) % 4,
        offsets=np.arange(21) * 3,
    )
    dataset = open_dataset(path)
    write_vectors(dataset, "random", vectors(4).numpy(), {"origin": "test"})
    return dataset


def test_without_anybody_to_train_on_nothing_is_sealed(tmp_path: Path) -> None:
    short = short_dataset(tmp_path / "d")
    with pytest.raises(UsageError, match="/d: no user has two items to train on") as caught:
        tune(short, tmp_path / "t")
    assert caught.value.code == "tune.no_users"
    with pytest.raises(UsageError, match="/d: no user has two items to train on") as caught:
        pretrain([short], tmp_path / "p")
    assert caught.value.code == "pretrain.no_users"
    assert not (tmp_path / "t").exists()
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("name", ["my set", "../random", "feat1CLS "])
def test_vectors_whose_name_was_mistyped_are_those_that_are_not_there(
    dataset: Dataset, tmp_path: Path, name: str
) -> None:
    with pytest.raises(StoreError, match=r"has no vectors '.*' \(there: random\)") as caught:
        tune(dataset, tmp_path / "t", vectors=name)
    assert caught.value.code == "vectors.missing"


def test_vectors_that_are_not_there_are_named(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"has no vectors 'feat1CLS' \(there: random\)"):
        tune(dataset, tmp_path / "t", vectors="feat1CLS")


# ---- evaluation


def test_a_tuned_folder_evaluates_to_what_its_configuration_says(
    dataset: Dataset, tmp_path: Path
) -> None:
    config = tune(dataset, tmp_path / "t")
    teacher = load_teacher(tmp_path / "t")
    for part, name in (("valid", "validation"), ("test", "test")):
        users, metrics = evaluate_teacher(teacher, dataset, part)
        assert users == 40
        assert metrics == config[name]
    tested = {f"test {metric}": value for metric, value in config["test"].items()}
    assert teacher.quality == config["validation"] | tested


def test_evaluation_ranks_all_items_and_counts_ties_against_the_teacher(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "d")
    teacher = TableTeacher(width=2)
    _, metrics = evaluate_teacher(teacher, dataset, "test")
    users, ends = dataset.held_out("test")
    scores = teacher.encode_histories(dataset, users, ends) @ teacher.encode_items(dataset).T
    targets = dataset.targets(users, ends)
    ranks = [int((row >= row[t]).sum()) for row, t in zip(scores, targets, strict=True)]
    assert metrics["recall@5"] == np.mean([rank <= 5 for rank in ranks])


def test_a_teacher_of_pairs_cannot_be_ranked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="scores pairs, not vectors") as caught:
        evaluate_teacher(PairTeacher(), tiny_dataset(tmp_path / "d"), "test")
    assert caught.value.code == "teacher.no_vectors"


# ---- pre-training


def pretrain(datasets: list[Dataset], out: Path, **more: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "text": TextSettings(),
        "whiten": True,
        "word_drop": 0.2,
        "augmentation": Augmentation(),
        "architecture": SMALL,
        "recipe": RECIPE,
        "limit": None,
        "device": "cpu",
        "report": silent,
    }
    return teach.pretrain(datasets, out, **(settings | more))


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Dataset]:
    """Two domains whose texts are encoded by a fake, which says so in their settings."""

    def encoded(dataset: Dataset, text: TextSettings, **_: object) -> tuple[str, np.ndarray]:
        name = f"fake-{text.word_drop}"
        table = vectors(dataset.num_items, seed=int(100 * text.word_drop)).numpy()
        if not (dataset.path / "vectors" / name).exists():
            write_vectors(
                dataset, name, table, {"weights": "sha256:w", "word_drop": text.word_drop}
            )
        return name, table

    monkeypatch.setattr(teach, "item_vectors", encoded)
    return [tiny_dataset(tmp_path / name, users=20, seed=seed) for seed, name in enumerate("ab")]


def test_pretraining_leaves_a_start_for_tuning(sources: list[Dataset], tmp_path: Path) -> None:
    config = pretrain(sources, tmp_path / "p")
    assert (config["stage"], config["epochs"], len(config["losses"])) == ("pretrained", 3, 3)
    assert config["text"] == {"weights": "sha256:w", "word_drop": 0}  # of the undropped texts
    assert sorted(tree(tmp_path / "p")) == ["config.json", "weights.safetensors"]
    assert str(tmp_path) not in (tmp_path / "p" / "config.json").read_text()
    target = tiny_dataset(tmp_path / "target", users=30, seed=8)
    tuned = teach.tune(
        target,
        tmp_path / "t",
        text=TextSettings(),
        vectors=None,
        whiten=True,
        start=tmp_path / "p",
        transductive=True,
        freeze_encoder=True,
        architecture={},
        recipe=RECIPE,
        device="cpu",
        report=silent,
    )
    assert tuned["architecture"] == config["architecture"]


def test_the_order_of_the_sources_does_not_matter(sources: list[Dataset], tmp_path: Path) -> None:
    pretrain(sources, tmp_path / "p")
    pretrain(sources[::-1], tmp_path / "q")
    assert tree(tmp_path / "p") == tree(tmp_path / "q")


def test_pretraining_goes_on_to_the_same_bytes(sources: list[Dataset], tmp_path: Path) -> None:
    def report(done: float, total: float, note: str) -> None:
        if done > 1:
            raise Killed

    pretrain(sources, tmp_path / "whole")
    with pytest.raises(Killed):
        pretrain(sources, tmp_path / "cut", report=report)
    pretrain(sources, tmp_path / "cut")
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"whiten": False}, "whiten True"),
        ({"limit": 20}, "limit None, this one would have 20"),
        ({"augmentation": Augmentation(weight=1.0)}, r"augmentation\.weight 0\.001"),
        ({"word_drop": 0.3}, r"word_drop 0\.2"),
    ],
)
def test_a_pretrained_one_of_other_settings_is_never_overwritten(
    sources: list[Dataset], tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    recipe = replace(RECIPE, epochs=1)
    first = pretrain(sources, tmp_path / "p", recipe=recipe)
    assert pretrain(sources, tmp_path / "p", recipe=recipe) == first
    with pytest.raises(UsageError, match=said) as caught:
        pretrain(sources, tmp_path / "p", recipe=recipe, **change)
    assert caught.value.code == "teacher.exists"


def test_long_sources_get_the_positions_that_they_need(
    sources: list[Dataset], tmp_path: Path
) -> None:
    long = long_dataset(tmp_path / "long", 60)
    recipe = replace(RECIPE, epochs=1, batch_size=64)
    config = pretrain([sources[0], long], tmp_path / "p", recipe=recipe, limit=64)
    assert config["architecture"]["positions"] == 60
    assert config["identity"]["architecture.positions"] == 60


def test_the_identity_says_everything_that_was_set(dataset: Dataset, tmp_path: Path) -> None:
    identity = tune(dataset, tmp_path / "t")["identity"]
    assert identity["dataset"] == dataset.digest
    assert identity["vectors"] == f"random {vectors_manifest(dataset, 'random').digest}"
    assert identity["start"] == "scratch"
    assert {f"recipe.{key}" for key in asdict(RECIPE)} <= identity.keys()
    shape = Architecture(text_width=WIDTH, **SMALL)
    assert {key: identity[f"architecture.{key}"] for key in asdict(shape)} == asdict(shape)
