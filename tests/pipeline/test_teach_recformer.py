"""Recformers as the command line makes them: begun, pre-trained, tuned, stopped, gone on with, asked and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from cache.dataset import Dataset
from cache.errors import CkdError
from pipeline import teach_recformer
from pipeline.teach import evaluate_teacher
from pipeline.teach_recformer import Reading
from teachers.folder import load_folder, read_config
from teachers.registry import load_teacher
from teachers.trainer import Recipe
from tests.fakes import tree
from tests.teachers.recformer_parts import LIMITS, WORDS, dataset_of, shop, tokenizer_folder

RECIPE = Recipe(epochs=3, patience=3, batch_size=4, learning_rate=0.01)


class Killed(BaseException):
    """What a report raises to stop a run where it stands."""


def silent(done: float, total: float, note: str) -> None:
    """A report that nobody hears."""


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return shop(tmp_path / "shop", users=16)


@pytest.fixture
def reading(tmp_path: Path) -> Reading:
    shape = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        max_position_embeddings=22,
    )
    torch.manual_seed(3)
    BertForMaskedLM(shape).save_pretrained(tokenizer_folder(tmp_path / "bert"))
    return Reading(text=str(tmp_path / "bert"), limits=LIMITS)


def tune(dataset: Dataset, out: Path, reading: Reading, **more: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "reading": reading,
        "start": None,
        "second": replace(RECIPE, epochs=2),
        "limit": None,
        "recipe": RECIPE,
        "device": "cpu",
        "report": silent,
    }
    return teach_recformer.tune(dataset, out, **(settings | more))


def pretrain(sources: list[Dataset], out: Path, reading: Reading, **more: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "reading": reading,
        "word_weight": 0.1,
        "limit": None,
        "recipe": RECIPE,
        "device": "cpu",
        "report": silent,
    }
    return teach_recformer.pretrain(sources, out, **(settings | more))


def stop_after(epochs: float) -> Any:
    def report(done: float, total: float, note: str) -> None:
        if done > epochs:
            raise Killed

    return report


def test_a_tuned_folder_answers_what_its_configuration_says(
    dataset: Dataset, reading: Reading, tmp_path: Path
) -> None:
    config = tune(dataset, tmp_path / "t", reading)
    assert config["stage"] == "tuned"
    teacher = load_teacher(tmp_path / "t")
    assert teacher.name == "recformer"
    for part, name in (("valid", "validation"), ("test", "test")):
        assert evaluate_teacher(teacher, dataset, part)[1] == pytest.approx(config[name], abs=1e-9)
    assert teacher.quality["ndcg@10"] == config["validation"]["ndcg@10"]
    assert teacher.quality["test ndcg@10"] == config["test"]["ndcg@10"]
    assert {path.name for path in (tmp_path / "t").iterdir()} == {
        "config.json",
        "tokenizer.json",
        "weights.safetensors",
    }


@pytest.mark.parametrize("epochs", [1.2, 3.2])
def test_tuning_stopped_in_either_stage_ends_in_the_same_bytes(
    dataset: Dataset, reading: Reading, tmp_path: Path, epochs: float
) -> None:
    tune(dataset, tmp_path / "whole", reading)
    with pytest.raises(Killed):
        tune(dataset, tmp_path / "cut", reading, report=stop_after(epochs))
    assert not (tmp_path / "cut" / "config.json").exists()
    tune(dataset, tmp_path / "cut", reading)
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")
    # a finished one is taken as it is: no epoch runs
    assert tune(dataset, tmp_path / "cut", reading, report=stop_after(0))["epochs"] == 5


def test_a_limit_trains_and_validates_on_fewer(
    dataset: Dataset, reading: Reading, tmp_path: Path
) -> None:
    steps: list[float] = []
    few = {"limit": 4, "second": None, "recipe": replace(RECIPE, epochs=2)}
    tune(dataset, tmp_path / "t", reading, report=lambda d, t, n: steps.append(d), **few)
    # before and after the start is judged; four users in batches of four: a step an epoch, and its end
    assert steps == [0, 0, 1, 1, 2, 2]
    asked = load_teacher(tmp_path / "t")
    config = tune(dataset, tmp_path / "t", reading, **few)
    # what is kept is of all users all the same
    assert evaluate_teacher(asked, dataset, "valid")[1] == pytest.approx(config["validation"])


def test_pretraining_does_not_care_about_order_goes_on_and_is_a_start(
    dataset: Dataset, reading: Reading, tmp_path: Path
) -> None:
    sources = [shop(tmp_path / name, seed=seed) for seed, name in enumerate("ab", 5)]
    config = pretrain(sources, tmp_path / "p", reading)
    assert config["stage"] == "pretrained"
    assert len(config["losses"]) == 3
    with pytest.raises(Killed):
        pretrain(sources[::-1], tmp_path / "q", reading, report=stop_after(1))
    pretrain(sources[::-1], tmp_path / "q", reading)
    assert tree(tmp_path / "q") == tree(tmp_path / "p")
    # word embeddings stay those of the language model; the rest moved
    weights = load_folder(tmp_path / "p")[0]
    begun = teach_recformer._begin(reading, None, items=dataset.num_items)[0].state_dict()
    words = "longformer.embeddings.word_embeddings.weight"
    assert torch.equal(weights[words], begun[words])
    moved = "longformer.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(weights[moved], begun[moved])
    # tuning at a rate of zero hands the pre-trained weights on
    still = replace(RECIPE, epochs=1, learning_rate=0.0)
    tune(dataset, tmp_path / "t", reading, start=tmp_path / "p", recipe=still, second=None)
    tuned = load_folder(tmp_path / "t")[0]
    assert torch.equal(tuned[moved], weights[moved])
    assert not any(name.startswith("lm_head.") for name in tuned)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"start": "shop"}, "teacher.missing"),
        ({"start": "tuned"}, "tune.not_pretrained"),
        ({"limits": replace(LIMITS, items=9)}, "recformer.too_long"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(
    dataset: Dataset, reading: Reading, tmp_path: Path, change: dict[str, Any], code: str
) -> None:
    pretrain([dataset], tmp_path / "pre", reading, recipe=replace(RECIPE, epochs=1))
    quick = {"recipe": replace(RECIPE, epochs=1), "second": None}
    tune(dataset, tmp_path / "tuned", reading, **quick)
    start = tmp_path / change.get("start", "pre")
    reads = replace(reading, limits=change.get("limits", LIMITS))
    with pytest.raises(CkdError) as caught:
        tune(dataset, tmp_path / "t", reads, start=start, **quick)
    assert caught.value.code == code
    assert not (tmp_path / "t").exists()


def test_a_start_whose_configuration_was_changed_is_refused(
    dataset: Dataset, reading: Reading, tmp_path: Path
) -> None:
    pretrain([dataset], tmp_path / "p", reading, recipe=replace(RECIPE, epochs=1))
    path = tmp_path / "p" / "config.json"
    config = json.loads(path.read_bytes())
    config["architecture"]["layers"] += 1
    path.write_text(json.dumps(config))
    with pytest.raises(CkdError, match="does not describe the weights beside it") as caught:
        tune(dataset, tmp_path / "t", reading, start=tmp_path / "p")
    assert caught.value.code == "teacher.damaged"


def test_a_finished_teacher_of_other_settings_is_not_overwritten(
    dataset: Dataset, reading: Reading, tmp_path: Path
) -> None:
    quick = {"recipe": replace(RECIPE, epochs=1), "second": None}
    tune(dataset, tmp_path / "t", reading, **quick)
    before = tree(tmp_path / "t")
    other = replace(reading, limits=replace(LIMITS, attribute=5))
    with pytest.raises(CkdError, match=r"limits\.attribute 6, this one would have 5"):
        tune(dataset, tmp_path / "t", other, **quick)
    assert tree(tmp_path / "t") == before


def test_the_attributes_that_it_was_tuned_on_are_kept(
    dataset: Dataset, reading: Reading, tmp_path: Path
) -> None:
    quick = {"recipe": replace(RECIPE, epochs=1), "second": None}
    tune(dataset, tmp_path / "t", reading, **quick)
    assert read_config(tmp_path / "t")["attributes"] == ["title", "brand", "category"]
    titles = dataset_of(tmp_path / "d", [[0, 1, 2, 0]] * 8, [{"title": w} for w in WORDS[9:12]])
    tune(titles, tmp_path / "u", reading, **quick)
    assert read_config(tmp_path / "u")["attributes"] == ["title"]


def test_what_a_killed_process_left_beside_a_finished_one_goes(
    dataset: Dataset, reading: Reading, tmp_path: Path
) -> None:
    out = tmp_path / "t"
    tune(dataset, out, reading, recipe=replace(RECIPE, epochs=1), second=None)
    before = tree(out)
    for name in ("checkpoint.safetensors", "checkpoint-2.safetensors"):
        (out / name).write_bytes(b"large")
    tune(dataset, out, reading, recipe=replace(RECIPE, epochs=1), second=None)
    assert tree(out) == before


def test_sources_without_two_items_to_train_on_are_refused(
    reading: Reading, tmp_path: Path
) -> None:
    short = dataset_of(tmp_path / "d", [[0, 1, 2]] * 5, [{"title": w} for w in WORDS[9:12]])
    with pytest.raises(CkdError, match=r"/d: no user has two items to train on") as caught:
        pretrain([short], tmp_path / "p", reading)
    assert caught.value.code == "pretrain.no_users"
    assert not (tmp_path / "p").exists()
