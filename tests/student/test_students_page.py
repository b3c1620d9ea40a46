"""What docs/students.md shows is run as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from cache.store import Store
from pipeline.build import build
from pipeline.runs import load_student
from pipeline.student_suite import StudentSuite
from student.registry import BUILT_IN, find_student
from tests.fakes import TableTeacher
from tests.student.small import shop, trained

PAGE = (Path(__file__).parents[2] / "docs" / "students.md").read_text()
LOOP, PLUGIN, SUITE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = shop(tmp_path_factory.mktemp("shop") / "store")
    build(TableTeacher(), store)
    return Store.open(store.path)


class Foreign(torch.nn.Module):
    """A model that knows nothing of this program: the mean of a padded history's items."""

    def __init__(self, items: int) -> None:
        super().__init__()
        self.items, self.out = torch.nn.Embedding(items + 1, 8), torch.nn.Linear(8, items)

    def forward(self, items: torch.Tensor, lengths: torch.Tensor) -> Any:
        states = self.items(items) * (items > 0)[..., None]
        return self.out(states.sum(1) / lengths[:, None])


def test_a_foreign_module_is_trained_by_the_pages_loop(store: Store) -> None:
    page: dict[str, Any] = {"__name__": "page"}
    exec(LOOP, page)
    seen: list[float] = []
    true = page["distillation_loss"]

    def spy(*args: Any) -> Any:
        loss = true(*args)
        seen.append(loss.item())
        return loss

    page["distillation_loss"] = spy
    page["DataLoader"] = lambda *args, **more: DataLoader(*args, **more | {"num_workers": 0})
    torch.manual_seed(0)
    page["train"](Foreign(24), store.path, epochs=14)  # two stages, then the round twelve times
    steps = len(store.plan.round(1))
    assert len(seen) == len(store.plan.stage(1)) + len(store.plan.stage(2)) + 12 * steps
    assert sum(seen[-steps:]) < sum(seen[-12 * steps : -11 * steps]) * 0.95
    body = LOOP.partition("def train")[2].strip().splitlines()
    assert len(body) == 11  # the head and ten lines


def test_the_suite_of_the_page_is_inherited() -> None:
    page: dict[str, Any] = {"__name__": "page"}
    exec(SUITE, page)
    assert issubclass(page["TestLast"], StudentSuite)
    assert page["TestLast"].plugin == "last"


def test_the_plug_in_of_the_page_is_trained_and_loaded(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not {"cache", "student", "encoder", "pipeline"} & set(
        re.findall(r"\w+", PLUGIN.partition("student = ")[0])
    )
    site = tmp_path / "site"
    info = site / "students_page-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "plug_in_of_the_page.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: students-page\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ckd.students]\nlast = plug_in_of_the_page:student\n")
    monkeypatch.syspath_prepend(str(site))
    try:
        run = trained(
            store, tmp_path / "run", "last", teachers=1, sizes={"hidden": 48, "std": 0.0}, epochs=2
        )
        model: Any = load_student(run.folder, store)
    finally:
        sys.modules.pop("plug_in_of_the_page", None)
    assert model.items.weight.shape == (24, 48)


def test_the_table_names_every_student_and_the_options_it_knows() -> None:
    rows = {row[0]: row for line in PAGE.splitlines() if (row := re.findall(r"[^|]+", line))}
    shared = ("hidden", "layers", "heads", "inner", "dropout")
    for name in BUILT_IN:
        told, _, own = rows[f" `{name}` "][-1].strip().partition("; ")
        fields = find_student(name).fields
        assert told.split(", ") == [one for one in shared if one in fields]
        others = fields - {*shared, "max_length", "source", "source_items"}
        assert set(re.findall(r"`(\w+)`", own)) == others
