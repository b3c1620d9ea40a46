"""What docs/students.md shows is run as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cache.store import Store
from pipeline.build import build
from pipeline.fit import load_student
from student.registry import BUILT_IN, find_student
from tests.fakes import TableTeacher
from tests.student.small import shop, trained

PAGE = (Path(__file__).parents[2] / "docs" / "students.md").read_text()
LOOP, PLUGIN = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = shop(tmp_path_factory.mktemp("shop") / "store")
    build(TableTeacher(), store)
    return Store.open(store.path)


class Foreign(torch.nn.Module):
    """A model that knows nothing of this program: the last item's vector, and one a user."""

    def __init__(self, items: int, users: int) -> None:
        super().__init__()
        self.items, self.users = torch.nn.Embedding(items, 8), torch.nn.Embedding(users, 8)
        self.out = torch.nn.Linear(8, items)

    def forward(self, items: torch.Tensor, last: torch.Tensor, users: torch.Tensor) -> Any:
        return self.out(self.items(items[last]) + self.users(users))


def test_a_foreign_module_is_trained_by_the_pages_loop(store: Store) -> None:
    page: dict[str, Any] = {}
    exec(LOOP, page)
    seen: list[float] = []
    true = page["distillation_loss"]

    def spy(*args: Any) -> Any:
        loss = true(*args)
        seen.append(loss.item())
        return loss

    page["distillation_loss"] = spy
    torch.manual_seed(0)
    page["train"](Foreign(24, 40), store, epochs=12)
    steps = len(store.plan.round(1))
    assert len(seen) == 12 * steps
    assert sum(seen[-steps:]) < sum(seen[:steps]) * 0.95
    body = LOOP.partition("def train")[2].strip().splitlines()
    assert len(body) == 11  # the head and ten lines


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
        run = trained(store, tmp_path / "run", "last", teachers=1, sizes={"hidden": 48}, epochs=2)
        model: Any = load_student(run.folder, store)
    finally:
        sys.modules.pop("plug_in_of_the_page", None)
    assert model.items.weight.shape == (24, 48)


def test_the_table_names_every_student_and_the_options_it_knows() -> None:
    rows = {row[0]: row for line in PAGE.splitlines() if (row := re.findall(r"[^|]+", line))}
    shared = ("hidden", "layers", "heads", "inner", "dropout")
    for name in BUILT_IN:
        told = rows[f" `{name}` "][-1].strip().split(", ")
        assert told == [one for one in shared if one in find_student(name).fields]
