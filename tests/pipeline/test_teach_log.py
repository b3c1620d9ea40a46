"""What a log is told of a teacher's epochs: each once, by its own number, the last one too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.cli_teacher import _progress
from teachers.trainer import Recipe, Report, train


def run(
    folder: Path,
    epochs: int,
    steps: int,
    told: Callable[[Report], Report] = lambda report: report,
    *,
    judge_start: bool = False,
) -> None:
    """A training of so many steps an epoch whose validation is the epoch's number."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    values = iter(range(1, 9))
    with _progress(folder) as report:
        train(
            model,
            Recipe(epochs=epochs),
            lambda epoch: ((1, lambda: model(torch.ones(2)).square().sum()) for _ in range(steps)),
            size=steps,
            checkpoint=folder / "checkpoint.safetensors",
            identity={},
            validate=lambda: next(values) / 10,
            report=told(report),
            judge_start=judge_start,
        )


def lines(capsys: pytest.CaptureFixture[str]) -> list[tuple[str, str]]:
    """(number of the epoch, validation) of each line."""
    said = [line for line in capsys.readouterr().err.splitlines() if ": epoch " in line]
    return [
        (line.split(": epoch ")[1].split(",")[0], line.split("ndcg@10 ")[1].split()[0])
        for line in said
    ]


@pytest.mark.parametrize("steps", [1, 3])
def test_every_epoch_is_told_by_its_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: int
) -> None:
    run(tmp_path, 3, steps)
    assert lines(capsys) == [("1", "0.1000"), ("2", "0.2000"), ("3", "0.3000")]


@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_that_goes_on_tells_what_is_new(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: int
) -> None:
    run(tmp_path, 1, steps)
    run(tmp_path, 3, steps)
    assert lines(capsys) == [("1", "0.1000"), ("2", "0.1000"), ("3", "0.2000")]


def test_the_stages_of_a_recformer_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(
        tmp_path,
        2,
        1,
        lambda report: lambda done, total, note: report(done, total, f"stage 1, {note}"),
    )
    assert lines(capsys) == [("1", "0.1000"), ("2", "0.2000")]


@pytest.mark.parametrize("steps", [1, 3])
def test_a_start_that_is_judged_is_told_before_and_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: int
) -> None:
    run(tmp_path, 1, steps, judge_start=True)
    said = [line.split(": ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert said[:2] == [
        "epoch 0, validating the start",
        "epoch 0, valid ndcg@10 0.1000 at the start",
    ]
    assert [line.split(", loss")[0] for line in said[2:]] == ["epoch 1"]
    assert said[2].endswith("valid ndcg@10 0.2000 (best 0.2000)")


def test_a_start_that_was_judged_is_not_judged_again_when_a_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, 1, 1, judge_start=True)
    capsys.readouterr()
    run(tmp_path, 2, 1, judge_start=True)
    (line,) = [one for one in capsys.readouterr().err.splitlines() if ": epoch " in one]
    assert line.split(": epoch ")[1].startswith("2, loss ")
