"""The loop: best weights, patience, history, divergence, and going on after a kill to the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cache.errors import StoreError, TeacherError
from encoder.dropout import Dropout
from teachers.trainer import Recipe, Trained, train

STEPS, COUNT = 3, 5  # an epoch has three steps of five targets each
IDENTITY = {"what": "a test"}


class Killed(BaseException):
    """What a report raises to stop a run where it stands."""


def model_of(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), Dropout(0.5), nn.Linear(3, 1))


def batches_for(model: nn.Module) -> Callable[[int], Iterator[tuple[int, Callable[[], Tensor]]]]:
    def batches(epoch: int) -> Iterator[tuple[int, Callable[[], Tensor]]]:
        for step in range(STEPS):
            draws = torch.Generator().manual_seed(100 * epoch + step)
            x, y = torch.randn(COUNT, 4, generator=draws), torch.randn(COUNT, 1, generator=draws)
            yield COUNT, lambda x=x, y=y: ((model(x) - y) ** 2).mean()

    return batches


def run(folder: Path, recipe: Recipe, model: nn.Module | None = None, **more: Any) -> Trained:
    model = model or model_of()
    settings = {"batches": batches_for(model), "identity": IDENTITY, **more}
    return train(model, recipe, size=STEPS * COUNT, checkpoint=folder / "c.safetensors", **settings)


def scripted(values: list[float]) -> Callable[[], float]:
    left = iter(values)
    return lambda: next(left)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_it_stops_when_validation_has_not_improved_for_as_long_as_patience_says(
    tmp_path: Path,
) -> None:
    # best is 0.5 in the second epoch; 0.5 again is no improvement; three stale epochs end it
    values = [0.1, 0.5, 0.4, 0.5, 0.3, 0.9]
    trained = run(tmp_path, Recipe(epochs=9, patience=3), validate=scripted(values))
    assert (trained.epochs, trained.best) == (5, 0.5)
    assert [one["validation"] for one in trained.history] == values[:5]
    # what is kept is the model as it stood after the second epoch
    (tmp_path / "b").mkdir()
    two = run(tmp_path / "b", Recipe(epochs=2), validate=scripted(values))
    assert equal(trained.weights, two.weights)
    (tmp_path / "c").mkdir()
    assert not equal(trained.weights, run(tmp_path / "c", Recipe(epochs=3)).weights)


def test_without_validation_all_epochs_run_and_the_last_weights_are_kept(tmp_path: Path) -> None:
    model = model_of()
    trained = run(tmp_path, Recipe(epochs=4, patience=1), model)
    assert (trained.epochs, len(trained.history)) == (4, 4)
    assert trained.best != trained.best  # NaN
    assert equal(trained.weights, dict(model.state_dict()))


def test_the_loss_of_an_epoch_is_the_mean_over_its_targets(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.tensor(2.0))
    model = nn.Module()
    model.weight = weight

    def batches(epoch: int) -> Iterator[tuple[int, Callable[[], Tensor]]]:
        yield 3, lambda: model.weight * 0 + 1.0
        yield 1, lambda: model.weight * 0 + 5.0

    trained = train(
        model, Recipe(epochs=1), batches, size=4, checkpoint=tmp_path / "c", identity={}
    )
    assert trained.history == [{"loss": 2.0}]  # (3 * 1 + 1 * 5) / 4


def test_validation_sees_the_model_in_evaluation_and_steps_see_it_in_training(
    tmp_path: Path,
) -> None:
    model = model_of()
    seen: list[bool] = []

    def batches(epoch: int) -> Iterator[tuple[int, Callable[[], Tensor]]]:
        def loss() -> Tensor:
            seen.append(model.training)
            return model(torch.ones(1, 4)).sum()

        yield 1, loss

    def validate() -> float:
        seen.append(model.training)
        return float(len(seen))

    run(tmp_path, Recipe(epochs=2), model, batches=batches, validate=validate)
    assert seen == [True, False, True, False]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_and_spares_the_checkpoint(
    tmp_path: Path, bad: float
) -> None:
    model = model_of()
    good = batches_for(model)

    def batches(epoch: int) -> Iterator[tuple[int, Callable[[], Tensor]]]:
        for step, (count, loss) in enumerate(good(epoch)):
            if (epoch, step) == (1, 1):
                yield count, lambda loss=loss: loss() * bad
            else:
                yield count, loss

    with pytest.raises(TeacherError, match="epoch 1: the loss is not a number") as caught:
        run(tmp_path, Recipe(epochs=3), model, batches=batches)
    assert (caught.value.code, caught.value.exit) == ("teacher.diverged", 6)
    # the first epoch is kept: without the fault the run goes on from it to what it would have been
    (tmp_path / "b").mkdir()
    assert equal(
        run(tmp_path, Recipe(epochs=3)).weights, run(tmp_path / "b", Recipe(epochs=3)).weights
    )


@pytest.mark.parametrize("steps", range(1, 3 * (STEPS + 1) + 1))
def test_a_run_that_was_killed_goes_on_to_the_same_bits(tmp_path: Path, steps: int) -> None:
    recipe = Recipe(epochs=3, patience=2, seed=7)
    values = [0.3, 0.1, 0.2]  # the best weights are those of the first epoch, wherever it is cut
    (tmp_path / "whole").mkdir()
    whole = run(tmp_path / "whole", recipe, validate=scripted(values))
    reports = 0

    def report(done: float, total: float, note: str) -> None:
        nonlocal reports
        reports += 1
        if reports == steps:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, recipe, report=report, validate=scripted(values))
    # a fresh process begins from other weights, which the checkpoint replaces
    finished = steps // (STEPS + 1)  # the report of an epoch's end comes when it is kept
    again = run(
        tmp_path, recipe, model_of(0 if not finished else 99), validate=scripted(values[finished:])
    )
    assert equal(again.weights, whole.weights)
    assert (again.history, again.epochs, again.best) == (whole.history, 3, 0.3)


def test_every_step_draws_its_own_dropout_whatever_was_drawn_before(tmp_path: Path) -> None:
    weights = []
    for name, noise in (("a", 0), ("b", 1000)):
        (tmp_path / name).mkdir()
        model = model_of()
        torch.rand(noise)
        weights.append(run(tmp_path / name, Recipe(epochs=2), model).weights)
    assert equal(*weights)
    (tmp_path / "c").mkdir()
    assert not equal(weights[0], run(tmp_path / "c", Recipe(epochs=2, seed=1)).weights)


def test_a_checkpoint_of_another_run_is_refused_by_what_differs(tmp_path: Path) -> None:
    run(tmp_path, Recipe(epochs=1))
    with pytest.raises(
        StoreError, match="belongs to a run with what a test, this one has other"
    ) as e:
        run(tmp_path, Recipe(epochs=2), identity={"what": "other"})
    assert e.value.code == "checkpoint.foreign"


def test_it_reports_how_far_it_is_and_how_good(tmp_path: Path) -> None:
    heard: list[tuple[float, float, str]] = []
    run(
        tmp_path,
        Recipe(epochs=2),
        report=lambda *one: heard.append(one),
        validate=scripted([0.25, 0.5]),
    )
    # three steps of five targets of fifteen: thirds of an epoch, and its end
    assert [round(done, 6) for done, _, _ in heard] == [
        0.333333,
        0.666667,
        1,
        1,
        1.333333,
        1.666667,
        2,
        2,
    ]
    assert {total for _, total, _ in heard} == {2}
    assert [note for _, _, note in heard[:3]] == [""] * 3
    assert all("valid ndcg@10 0.2500 (best 0.2500)" in note for _, _, note in heard[3:7])
    assert "valid ndcg@10 0.5000 (best 0.5000)" in heard[7][2]


def test_only_what_may_learn_does(tmp_path: Path) -> None:
    model = model_of()
    model[0].requires_grad_(False)  # type: ignore[index]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = run(tmp_path, Recipe(epochs=2), model).weights
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"2.weight", "2.bias"}
