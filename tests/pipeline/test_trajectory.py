"""A teacher's way: which epochs are kept, what they are, and a run that was killed on it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cache.dataset import Dataset
from cache.errors import StoreError, UsageError
from cache.paths import checkpoint_of, trajectory, without_checkpoints
from cache.vectors import write_vectors
from encoder.checkpoint import load_weights
from pipeline import teach
from pipeline.trajectory import Way, checkpoints, chosen, kept
from teachers.folder import load_folder, read_config
from teachers.registry import load_teacher
from teachers.text import TextSettings
from teachers.trainer import Recipe
from tests.fakes import tiny_dataset, tree
from tests.teachers.naive import vectors

RECIPE = Recipe(epochs=7, patience=7, batch_size=64, learning_rate=0.003)


class Killed(BaseException):
    """Raised where a run is to stop."""


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    dataset = tiny_dataset(tmp_path / "data", users=40)
    write_vectors(dataset, "random", vectors(dataset.num_items).numpy() + 1, {"origin": "test"})
    return dataset


def tune(dataset: Dataset, out: Path, *, keep: int = 2, stop: float = 99.0) -> dict[str, Any]:
    def report(done: float, total: float, note: str) -> None:
        if done > stop:
            raise Killed

    return teach.tune(
        dataset,
        out,
        text=TextSettings(),
        vectors="random",
        whiten=True,
        start=None,
        transductive=True,
        freeze_encoder=False,
        architecture={"hidden": 8, "inner": 10, "experts": 3},
        recipe=RECIPE,
        device="cpu",
        report=report,
        keep_trajectory=keep,
    )


def test_epochs_are_thinned_as_the_best_moves_on() -> None:
    assert kept(4, 4, 2) == [1, 2, 3, 4]
    assert kept(4, 6, 2) == [1, 2, 3, 4, 5, 6]  # 5 and 6 may come before a better one
    assert kept(6, 6, 2) == [2, 4, 6]
    assert kept(10, 12, 2) == [4, 8, 12]
    # of the best epoch 9, thirds are 3 and 6; 2, 4, 6, 8 are there, and of equals the earlier one is taken
    assert chosen(9, 2) == [2, 6]
    assert chosen(4, 3) == [1, 2, 3]
    assert chosen(2, 3) == [1]
    assert chosen(1, 3) == []


@given(st.lists(st.integers(1, 12), min_size=1, max_size=30), st.integers(1, 9))
def test_whatever_is_chosen_was_kept_all_along(gaps: list[int], wanted: int) -> None:
    bests = [sum(gaps[: count + 1]) for count in range(len(gaps))]
    final = bests[-1]
    found = chosen(final, wanted)
    assert found == sorted(set(found))
    assert len(found) == min(wanted, final - 1)
    assert all(1 <= epoch < final for epoch in found)
    for epoch in found:
        for now in range(epoch, final + 1):
            best = max((one for one in bests if one <= now), default=1)
            assert epoch in kept(best, now, wanted)
    assert len(kept(final, final, wanted)) <= 2 * wanted


def test_what_is_no_longer_needed_goes_at_once(tmp_path: Path) -> None:
    way = Way(tmp_path / "t", 2, {})
    lying = []
    for done in range(1, 7):  # each is the best so far
        way.after_epoch(done, done, torch.nn.Linear(1, 1))
        lying.append([int(path.stem) for path in sorted((tmp_path / "t/.way").iterdir())])
    assert lying == [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [2, 4], [2, 4, 6]]


def test_the_names_of_checkpoints() -> None:
    names = ["a", "a@10", "a@2", "b@1", "c@0", "d@x"]
    assert checkpoint_of("a@10") == ("a", 10)
    assert [checkpoint_of(one) for one in ("a", "c@0", "d@x", "@1")] == [None] * 4
    assert trajectory("a", names) == ["a@2", "a@10", "a"]
    # of b only a checkpoint is there: then it is a teacher like any other
    assert without_checkpoints(names) == ["a", "b@1", "c@0", "d@x"]


def test_checkpoints_are_teachers_that_stood_there_and_change_nothing_of_the_tuned_one(
    dataset: Dataset, tmp_path: Path
) -> None:
    config = tune(dataset, tmp_path / "t")
    alone = tune(dataset, tmp_path / "alone", keep=0)
    assert tree(tmp_path / "t") == tree(tmp_path / "alone")
    assert config == alone
    assert checkpoints(tmp_path / "alone") == []
    found = checkpoints(tmp_path / "t")
    assert [folder.name for folder in found] == ["t@1", "t@2"]
    epochs = [read_config(folder)["epochs"] for folder in found]
    assert epochs == sorted(epochs)
    assert epochs[-1] < config["epochs"]
    for folder, epoch in zip(found, epochs, strict=True):
        # the weights are those of a run that ended there
        short = tmp_path / f"short-{epoch}"
        with pytest.raises(Killed):
            tune(dataset, short, keep=7, stop=epoch)
        there = load_folder(folder)[0]
        stood = load_way(short, epoch)
        assert there.keys() == stood.keys()
        assert all(torch.equal(there[name], stood[name]) for name in there)
        _, metrics = teach.evaluate_teacher(load_teacher(folder), dataset, "valid")
        assert metrics == pytest.approx(read_config(folder)["validation"])
        assert metrics["ndcg@10"] < config["validation"]["ndcg@10"]


def load_way(out: Path, epoch: int) -> dict[str, torch.Tensor]:
    return load_weights(out / ".way" / f"{epoch:05}.safetensors")[0]


def everything(folder: Path) -> dict[str, str]:
    return {name: one for name, one in tree(folder).items() if not name.startswith("data")}


def test_a_run_that_was_killed_goes_on_to_the_same_way(dataset: Dataset, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    tune(dataset, whole / "t")
    for stop in (1.5, 4.5, 6.0):
        with pytest.raises(Killed):
            tune(dataset, cut / "t", stop=stop)
    tune(dataset, cut / "t")
    assert everything(cut) == everything(whole)
    assert not list(cut.rglob(".way"))


def test_killed_while_it_was_published_it_ends_in_the_same_way(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    tune(dataset, whole / "t")
    true, saved = teach.save_unisrec, []

    def save(folder: Path, *args: Any, **more: Any) -> None:
        saved.append(folder.name)
        if len(saved) == 2:
            raise Killed
        true(folder, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(teach, "save_unisrec", save)
        with pytest.raises(Killed):
            tune(dataset, cut / "t")
    assert saved == ["t@1", "t@2"]
    tune(dataset, cut / "t")
    assert everything(cut) == everything(whole)


def test_a_run_begun_without_a_way_does_not_go_on_with_one(
    dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        tune(dataset, tmp_path / "t", keep=0, stop=1.5)
    with pytest.raises(StoreError, match="keep_trajectory None, this one has 2"):
        tune(dataset, tmp_path / "t")


def test_checkpoints_of_another_run_are_never_overwritten(dataset: Dataset, tmp_path: Path) -> None:
    tune(dataset, tmp_path / "t")
    shutil.rmtree(tmp_path / "t")
    with pytest.raises(UsageError, match=r"t@1: is a checkpoint of another run"):
        tune(dataset, tmp_path / "t", keep=1)
    before = everything(tmp_path)
    tune(dataset, tmp_path / "t")
    assert before.items() <= everything(tmp_path).items()
