"""A stopped run goes on with another number of epochs, and ends as if it had been asked so from the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cache.errors import StoreError
from cache.store import Store
from pipeline.fit import check_runs, fit
from pipeline.runs import CHECKPOINT
from student.hetcomp import HetCompSettings
from student.schedule import TrainSettings
from student.state import RunState
from tests.fakes import StoppedError, tree
from tests.student.small import Answers, shop, small


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return shop(tmp_path_factory.mktemp("resume") / "store")


class Trial:
    """A run into one folder, of 9 epochs at most where nothing else is said; each may be stopped."""

    def __init__(self, store: Store, folder: Path, **settings: Any) -> None:
        self.store, self.folder = store, folder
        self.settings = {"curriculum": False, "patience": 9, **settings}
        names = ["t@1", "t"] if "join" in settings else []
        self.readers: list[Any] = [Answers(store.plan, name=one, seed=len(one)) for one in names]

    def run(self, epochs: int = 9, stop: int = 0) -> dict[str, str]:
        """What the run left, after `stop` epochs or at its end."""

        def watch(state: RunState, rate: float) -> None:
            if state.epoch == stop:
                raise StoppedError

        settings = TrainSettings(epochs=epochs, **self.settings)
        try:
            fit(
                self.store,
                self.readers,
                self.folder,
                small("gru4rec"),
                settings,
                student="gru4rec",
                watch=watch,
            )
        except StoppedError:
            assert (self.folder / CHECKPOINT).is_file()
        return tree(self.folder)

    def refused(self, epochs: int) -> str:
        """Why there can be no such run, told at once and beforehand."""
        before = tree(self.folder)
        settings = TrainSettings(epochs=epochs, **self.settings)
        wanted = [(self.folder, self.readers, settings)]
        for go in (
            lambda: check_runs(self.store, wanted, small("gru4rec"), student="gru4rec"),
            lambda: self.run(epochs),
        ):
            with pytest.raises(StoreError) as caught:
                go()
            assert caught.value.code == "checkpoint.further"
            assert tree(self.folder) == before
        return str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"curriculum": True, "epochs_per_stage": 2},
        {"join": HetCompSettings(states=(2,), top=4)},
        {"patience": 1, "learning_rate": 0.0},  # the first is best on any machine; two epochs
    ],
    ids=["plain", "staged", "hetcomp", "patient"],
)
def test_more_epochs_or_fewer(store: Store, tmp_path: Path, settings: dict[str, Any]) -> None:
    for number, (first, then) in enumerate([(9, 3), (2, 3), (3, 9)]):
        stopped = Trial(store, tmp_path / f"stopped{number}", **settings)
        stopped.run(first, stop=1)
        whole = Trial(store, tmp_path / f"whole{number}", **settings)
        assert stopped.run(then) == whole.run(then)


def test_as_many_as_lie_behind_it_end_it_there(store: Store, tmp_path: Path) -> None:
    stopped = Trial(store, tmp_path / "stopped")
    stopped.run(stop=3)
    assert stopped.run(3) == Trial(store, tmp_path / "whole").run(3)


def test_killed_after_its_last_epoch_it_still_has_more(store: Store, tmp_path: Path) -> None:
    stopped = Trial(store, tmp_path / "stopped")
    stopped.run(3, stop=3)
    assert stopped.run(5) == Trial(store, tmp_path / "whole").run(5)


def test_a_run_that_is_further_is_refused(store: Store, tmp_path: Path) -> None:
    run = Trial(store, tmp_path / "run")
    run.run(stop=4)
    assert "is further than --epochs 3; give --epochs 4 or more" in run.refused(3)
    # stages are not among the epochs that one asks for
    staged = Trial(store, tmp_path / "staged", curriculum=True)
    staged.run(stop=store.plan.num_buckets + 2)
    assert "give --epochs 2 or more" in staged.refused(1)


def test_a_run_whose_last_epoch_was_not_ranked_cannot_end_there(
    store: Store, tmp_path: Path
) -> None:
    run = Trial(store, tmp_path / "run", validate_every=3)
    run.run(stop=4)
    assert "give --epochs 5 or more" in run.refused(4)
    whole = Trial(store, tmp_path / "whole", validate_every=3)
    assert run.run(5) == whole.run(5)
