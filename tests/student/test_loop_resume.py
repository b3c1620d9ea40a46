"""Going on after a kill: from the checkpoint of any epoch to the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cache.digest import canonical_json
from student.state import EpochRecord, RunState
from tests.student.known import Ground
from tests.student.trial import Trial, same


@pytest.mark.parametrize(
    ("teachers", "settings"),
    [
        (0, {"ce": "in-batch"}),
        (1, {"kl": "student-teacher"}),
        (3, {}),
        (3, {"ce": "in-batch", "weight_decay": 1e-3, "curriculum": False, "seed": 5}),
        (1, {"validate_every": 2, "patience": 1}),  # epochs 1 and 3; killed between them, too
        (3, {"batch_size": 5, "factors": True}),
        (2, {"batch_size": 3, "factors": True, "items": "all", "curriculum": False}),
    ],
)
def test_a_run_goes_on_from_any_epoch_to_the_same_bits(
    ground: Ground, tmp_path: Path, teachers: int, settings: dict[str, Any]
) -> None:
    script = [0.1, 0.6, 0.5, 0.5, 0.4]  # the best lies before some kills, after others
    common: dict[str, Any] = {"teachers": teachers, "epochs": 4, "patience": 2, **settings}
    whole = Trial(ground, values=script.__getitem__, **common)
    files: list[Path] = []

    def keep(state: RunState) -> None:
        files.append(tmp_path / f"after-{state.epoch}")
        whole.save(files[-1], state)

    whole.run(on_epoch=keep)
    assert len(files) == 4
    assert whole.state.stale == 2
    for number, file in enumerate(files):
        other = Trial(ground, values=script.__getitem__, init=99, **common)  # other weights
        torch.manual_seed(1000 + number)  # and another generator
        other.load(file)
        state = other.run()
        assert same(other.weights(), whole.weights())
        assert same(state.best_weights, whole.state.best_weights)
        assert state.to_json() == whole.state.to_json()
        other.save(tmp_path / "again", state)  # the optimizer too
        assert (tmp_path / "again").read_bytes() == files[-1].read_bytes()


def test_the_state_survives_json(ground: Ground) -> None:
    trial = Trial(ground, teachers=1)
    state = trial.run()
    plain = json.loads(canonical_json(state.to_json()))
    assert "best_weights" not in plain
    again = RunState.of(plain, state.best_weights)
    assert again == state
    assert isinstance(again.history[0], EpochRecord)
