"""Another process ends the same run or teacher between the first look and the lock: what it made is taken, not made again."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cache.errors import StoreError
from pipeline import fit as fit_module
from pipeline import teach
from pipeline.sets import only_trainer
from tests.fakes import tree
from tests.pipeline.test_trajectory import dataset, tune
from tests.student.small import shop, trained

__all__ = ["dataset"]  # a fixture


def ended_by_another(done: Path) -> Callable[[Path], contextlib.AbstractContextManager[None]]:
    """In place of the lock: whoever gets it finds `done` in his folder."""

    @contextlib.contextmanager
    def lock(folder: Path) -> Iterator[None]:
        shutil.copytree(done, folder, dirs_exist_ok=True)
        yield

    return lock


def never(*given: Any, **more: Any) -> None:
    raise AssertionError("trained again")


def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = shop(tmp_path / "shop")
    done = trained(store, tmp_path / "done", "sasrec")
    monkeypatch.setattr(fit_module, "only_trainer", ended_by_another(done.folder))
    monkeypatch.setattr(fit_module, "train", never)
    again = trained(store, tmp_path / "again", "sasrec")
    assert again.record == done.record
    assert tree(again.folder) == tree(done.folder)


def test_a_teacher(dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = tune(dataset, tmp_path / "done", keep=0)
    monkeypatch.setattr(teach, "only_trainer", ended_by_another(tmp_path / "done"))
    monkeypatch.setattr(teach, "run_tuning", never)
    assert tune(dataset, tmp_path / "again", keep=0) == done
    assert tree(tmp_path / "again") == tree(tmp_path / "done")


def test_two_at_once_and_what_a_refusal_leaves(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "toys" / "seed-0"
    with only_trainer(folder):
        with (
            pytest.raises(StoreError, match="another process is training it") as caught,
            only_trainer(folder),
        ):
            pass
        assert caught.value.code == "train.busy"
    assert list(tmp_path.iterdir()) == []  # nothing was trained, so no folders stay
    with only_trainer(folder):
        folder.mkdir()
    assert tree(tmp_path).keys() == {"runs", "runs/toys", "runs/toys/seed-0"}
