"""Which students there are; a plug-in that imports nothing of ours is trained, saved, loaded and judged."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from cache.errors import StoreError, UsageError
from cache.store import Store
from encoder.checkpoint import load_weights, save_weights
from pipeline.evaluate import rank_student
from pipeline.runs import load_student
from student.registry import BUILT_IN, StudentKind, find_student
from tests.student.small import shop, trained

PLUGIN = """
import dataclasses, torch

@dataclasses.dataclass(frozen=True)
class Config:
    hidden: int = 4
    max_length: int = 1

class Last(torch.nn.Module):
    def __init__(self, config, dataset):
        super().__init__()
        self.longest = config.max_length
        self.items = torch.nn.Embedding(dataset.num_items, config.hidden)
        self.nexts = torch.nn.Embedding(dataset.num_items, config.hidden)

    def logits(self, packed, items_C=None):
        table = self.nexts.weight if items_C is None else self.nexts(items_C)
        return -torch.cdist(self.items(packed.items[packed.last]), table)

student = (Config, Last)
no_pair = Last
no_defaults = (dataclasses.make_dataclass("Config", ["hidden"]), Last)
"""

Install = Callable[[], None]


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes the package `last_student` importable, its students known by their entry points."""
    site = tmp_path / "site"
    info = site / "last_student-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "last_student_of_a_test.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: last-student\nVersion: 1.0\n")
    names = {"last": "student", "no-pair": "no_pair", "no-defaults": "no_defaults"}
    lines = [f"{name} = last_student_of_a_test:{there}" for name, there in names.items()]
    (info / "entry_points.txt").write_text("\n".join(["[ckd.students]", *lines, ""]))

    def install() -> None:
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.delitem(sys.modules, "last_student_of_a_test", raising=False)

    return install


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return shop(tmp_path_factory.mktemp("shop") / "store")


@pytest.mark.parametrize("ce", ["full", "in-batch"])
def test_a_plug_in_that_imports_nothing_of_ours_is_trained_and_judged(
    store: Store, tmp_path: Path, plugin: Install, ce: str
) -> None:
    plugin()
    common = {"epochs": 6, "learning_rate": 0.05, "sizes": {"hidden": 6}, "ce": ce}
    base = trained(store, tmp_path / "base", "last", **common).record["history"]
    assert base[-1]["ce"] < base[0]["ce"] * 0.95
    run = trained(store, tmp_path / "taught", "last", teachers=2, **common)
    assert run.record["history"][-1]["kd"] < run.record["history"][0]["kd"]
    assert run.record["identity"]["student"] == "last"
    model = load_student(run.folder, store)
    assert type(model).__module__ == "last_student_of_a_test"
    assert model.longest == store.dataset.max_length == 6
    assert model.items.weight.shape == (24, 6)
    ranks = rank_student(model, store.dataset, store.dataset.held_out("test"))
    assert ranks.tolist() == run.test_ranks.tolist()


def test_a_plug_in_that_is_gone_is_asked_for_by_name(
    store: Store, tmp_path: Path, plugin: Install
) -> None:
    plugin()
    run = trained(store, tmp_path / "run", "last", epochs=1)
    sys.path.remove(str(tmp_path / "site"))
    with pytest.raises(UsageError, match="student 'last' is not known, known are sasrec, gru4rec"):
        load_student(run.folder, store)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no-pair", "student 'no-pair': names a type, a pair"),
        ("no-defaults", "its first part is no dataclass of fields with defaults"),
    ],
)
def test_an_entry_point_of_another_shape_is_refused(plugin: Install, name: str, said: str) -> None:
    plugin()
    with pytest.raises(UsageError, match=said) as caught:
        find_student(name)
    assert caught.value.code == "student.bad_plugin"


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_canonical_defaults_are_all_there(name: str) -> None:
    kind = find_student(name)
    assert kind.config() == kind.config()
    assert "hidden" in kind.fields


def test_weights_that_do_not_fit_their_student_are_refused(store: Store, tmp_path: Path) -> None:
    run = trained(store, tmp_path / "run", "gru4rec", epochs=1)
    path = run.folder / "model.safetensors"
    weights, card = load_weights(path)
    del weights["dense.bias"]
    for name, config in (("gru4rec", card["config"]), ("gru4rec", {"depth": 3})):
        save_weights(path, weights, {**card, "student": name, "config": config})
        with pytest.raises(StoreError, match="does not fit the gru4rec of this version") as caught:
            load_student(run.folder, store)
        assert caught.value.code == "model.unknown"


def test_a_weight_of_its_own_is_a_class_variable_and_no_setting() -> None:
    @dataclass(frozen=True, slots=True)
    class Own:
        kd_weight: ClassVar[float] = 0.5

    @dataclass(frozen=True, slots=True)
    class Setting:
        kd_weight: float = 0.5

    kinds = [
        StudentKind(name="any", title="any", config=config, make=lambda config, dataset: None)
        for config in (Own, Setting)
    ]
    assert [kind.kd_weight for kind in kinds] == [0.5, None]
