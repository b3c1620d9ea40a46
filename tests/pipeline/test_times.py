"""What a clock says of epochs, read from a clock that is turned by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import fit, times
from pipeline.times import Times
from student.state import EpochRecord
from tests.student.small import shop, trained


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(times, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def turn(self, seconds: float) -> None:
        self.now += seconds


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_speed_is_that_of_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    stopped = Times(tmp_path / "times.jsonl")
    clock.turn(4)
    stopped.validate()
    clock.turn(36)
    ranked = EpochRecord(epoch=0, stage="stage 1", instances=200, ce=7, kd=1, validation=0.1)
    assert stopped.end(ranked) == 50  # 200 in 4 s, not in 40
    clock.turn(9)  # a checkpoint is written
    stopped.begin()
    clock.turn(2)
    unranked = EpochRecord(epoch=1, stage="round 1", instances=200, ce=7, kd=1, validation=None)
    assert stopped.end(unranked) == 100
    told = {"epoch": 1, "stage": "stage 1", "instances": 200}
    spent = {"seconds": 4, "validation_seconds": 36, "instances_per_second": 50}
    first, second = lines(tmp_path / "times.jsonl")
    assert first == told | spent
    assert (second["seconds"], second["validation_seconds"]) == (2, 0)


def test_fit_stops_them_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, rank_student, save_checkpoint = Clock(monkeypatch), fit.rank_student, fit.save_checkpoint

    def slow_rank(*args: Any, **more: Any) -> Any:
        clock.turn(30)
        return rank_student(*args, **more)

    def slow_save(*args: Any) -> None:
        clock.turn(500)
        save_checkpoint(*args)

    monkeypatch.setattr(fit, "rank_student", slow_rank)
    monkeypatch.setattr(fit, "save_checkpoint", slow_save)
    monkeypatch.setattr("student.loop.seed_step", lambda seed, step: clock.turn(2))  # once a step
    store = shop(tmp_path / "store")
    trained(store, tmp_path / "seed-0", "fm", epochs=3, validate_every=2)
    steps = len(store.plan.round(1))
    found = lines(tmp_path / "seed-0.times.jsonl")
    assert [line["seconds"] for line in found] == [2 * steps] * 3
    assert [line["validation_seconds"] for line in found] == [0, 30, 30]
    rate = store.plan.num_instances / (2 * steps)
    assert [line["instances_per_second"] for line in found] == [round(rate, 1)] * 3
