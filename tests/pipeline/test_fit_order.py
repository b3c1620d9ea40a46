"""Whose weights and states are whose: the order in which a caller hands the teachers to `fit` is part of what a run is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cache.errors import StoreError
from cache.store import Store
from pipeline.fit import fit
from pipeline.runs import Run
from student.hetcomp import HetCompSettings
from student.schedule import TrainSettings
from student.targets import JoinSettings
from tests.student.small import Answers, shop, small

WAY = ["a@2", "a@10", "a", "b@1", "b@2", "b"]  #: as the command has it
HETCOMP = HetCompSettings(states=(3, 3), top=4)
EQUAL = JoinSettings(tau=0.5, weights=(0.5, 0.5))
UNEQUAL = JoinSettings(tau=0.5, weights=(0.75, 0.25))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return shop(tmp_path_factory.mktemp("order") / "store")


def run(store: Store, folder: Path, names: list[str], join: JoinSettings | HetCompSettings) -> Run:
    readers: list[Any] = [Answers(store.plan, name=one, seed=len(one)) for one in names]
    settings = TrainSettings(join=join, epochs=1, curriculum=False)
    return fit(store, readers, folder, small("gru4rec"), settings, student="gru4rec")


@pytest.mark.parametrize(
    ("join", "usual", "other"),
    [
        (HETCOMP, WAY, [*WAY[3:], *WAY[:3]]),
        (HETCOMP, WAY, [WAY[1], WAY[0], *WAY[2:]]),
        (UNEQUAL, ["a", "b"], ["b", "a"]),
    ],
)
def test_another_order_is_another_run(
    store: Store,
    tmp_path: Path,
    join: JoinSettings | HetCompSettings,
    usual: list[str],
    other: list[str],
) -> None:
    done = run(store, tmp_path / "run", usual, join)
    assert "join.order" not in done.record["identity"]  # as in runs of before
    run(store, tmp_path / "run", usual, join)
    with pytest.raises(StoreError, match=r"a finished run with join\.order") as caught:
        run(store, tmp_path / "run", other, join)
    assert caught.value.code == "run.foreign"
    assert run(store, tmp_path / "other", other, join).record["identity"]["join.order"] == other


def test_teachers_of_equal_weight_have_no_order(store: Store, tmp_path: Path) -> None:
    first = run(store, tmp_path / "run", ["a", "b"], EQUAL)
    again = run(store, tmp_path / "run", ["b", "a"], EQUAL)
    assert again.record == first.record
