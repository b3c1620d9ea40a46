"""The suite that students of others inherit: sound ones pass all of it, and each kind of broken one fails a test by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from pipeline import student_suite
from pipeline.student_suite import StudentSuite
from pipeline.suite_ground import shop_store
from student import registry


class TestSASRec(StudentSuite):
    plugin = "sasrec"
    sizes: ClassVar[dict[str, Any]] = {"hidden": 16, "heads": 2, "inner": 16, "dropout": 0.1}


class TestDeepFM(StudentSuite):
    """A scorer with a loss of its own."""

    plugin = "deepfm"
    sizes: ClassVar[dict[str, Any]] = {"hidden": 8, "inner": 8, "dropout": 0.0}


@dataclasses.dataclass(frozen=True)
class Config:
    hidden: int = 8


class Sound(torch.nn.Module):
    def __init__(self, config, dataset):
        super().__init__()
        self.items = torch.nn.Embedding(dataset.num_items, config.hidden)
        self.nexts = torch.nn.Embedding(dataset.num_items, config.hidden)

    def logits(self, packed, items_C=None):
        table = self.nexts.weight if items_C is None else self.nexts(items_C)
        return self.items(packed.items[packed.last]) @ table.T


class Sociable(Sound):
    def logits(self, packed, items_C=None):
        return super().logits(packed, items_C) + packed.last.numel()


class Shuffled(Sound):
    def logits(self, packed, items_C=None):
        return super().logits(packed, None if items_C is None else items_C.flip(0))


class Idle(Sound):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.spare = torch.nn.Parameter(torch.zeros(3))


class Frozen(Sound):
    def logits(self, packed, items_C=None):
        return super().logits(packed, items_C) * 0


class Counting(Sound):
    """Keeps what decides its steps where no checkpoint sees it."""

    steps = 0

    def logits(self, packed, items_C=None):
        self.steps += self.training
        return super().logits(packed, items_C) * (1 + 0.1 * self.steps)


class Unkept(Sound):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.shift = torch.randn(dataset.num_items)

    def logits(self, packed, items_C=None):
        shift = self.shift if items_C is None else self.shift[items_C]
        return super().logits(packed, items_C) + shift


def install(monkeypatch: pytest.MonkeyPatch, made: Any) -> type[StudentSuite]:
    kind = registry.StudentKind(name="mine", title="mine", config=Config, make=made)
    find: Any = lambda name: kind  # noqa: E731
    monkeypatch.setattr(student_suite, "find_student", find)
    for module in ("fit", "runs"):
        monkeypatch.setattr(f"pipeline.{module}.find_student", find)
    return type("Suite", (StudentSuite,), {"plugin": "mine", "learning_rate": 0.05})


BROKEN = [
    (Sociable, "test_a_history_is_judged_by_itself"),
    (Shuffled, "test_a_scorers_columns_are_those_items"),
    (Idle, "test_every_parameter_is_reached_by_the_loss"),
    (Frozen, "test_it_learns"),
    (Counting, "test_a_killed_run_goes_on_to_the_same_weights"),
    (Unkept, "test_weights_are_all_there_is_to_keep"),
]


@pytest.mark.parametrize(("broken", "test"), BROKEN)
def test_a_broken_student_fails_the_test_of_its_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Any, test: str
) -> None:
    suite = install(monkeypatch, broken)()
    store = shop_store(tmp_path / "store")
    paths = [tmp_path] if "tmp_path" in getattr(suite, test).__code__.co_varnames else []
    with pytest.raises(AssertionError):
        getattr(suite, test)(store, *paths)


@pytest.mark.parametrize("test", sorted({test for _, test in BROKEN}))
def test_a_sound_one_passes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test: str) -> None:
    suite = install(monkeypatch, Sound)()
    paths = [tmp_path] if "tmp_path" in getattr(suite, test).__code__.co_varnames else []
    getattr(suite, test)(shop_store(tmp_path / "store"), *paths)
