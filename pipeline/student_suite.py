"""Tests that a student of yours inherits: what training, killing, resuming, ranking and serving it rely on.

    from pipeline.student_suite import StudentSuite

    class TestLastItem(StudentSuite):
        plugin = "last"                      # its name in the entry point group `ckd.students`
        sizes = {"hidden": 8}                # small, so that the tests are fast

Run by pytest. Each test names one rule. Nothing is trained for more than a few dozen steps of sixteen instances.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cache.score_writer import log_softmax
from cache.store import Store
from encoder.checkpoint import load_weights, save_weights
from encoder.packed import Packed
from pipeline.evaluate import rank_student
from pipeline.fit import fit
from pipeline.runs import Run, load_student
from pipeline.suite_ground import shop_store
from student.prepared import prepared
from student.protocol import Scorer, Student
from student.registry import find_student
from student.schedule import TrainSettings
from student.state import RunState
from student.steps import step_loss
from student.targets import join_settings

__all__ = ["StudentSuite"]


class StudentSuite:
    """Inherit, and name a student."""

    plugin: ClassVar[str]  #: its name in the registry
    sizes: ClassVar[dict[str, Any]] = {}  #: settings of its Config, small ones
    learning_rate: ClassVar[float] = 0.01  #: at which its loss falls within eight epochs
    tolerance: ClassVar[float] = 1e-4  #: of one score computed in other company

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        """What it learns from."""
        return shop_store(tmp_path / "store")

    def made(self, store: Store, seed: int = 0) -> Any:
        """The student, as yet untrained, in eval mode."""
        torch.manual_seed(seed)
        return find_student(self.plugin).make(self._config(store), store.dataset).eval()

    def _config(self, store: Store) -> Any:
        kind = find_student(self.plugin)
        longest = {"max_length": store.dataset.max_length} if "max_length" in kind.fields else {}
        return kind.config(**{**longest, **self.sizes})

    def _trained(
        self,
        store: Store,
        folder: Path,
        *,
        taught: bool = False,
        stop: int | None = None,
        **more: Any,
    ) -> Run:
        readers: list[Any] = [_Shifted(store)] if taught else []

        def watch(state: RunState, rate: float) -> None:
            if state.epoch == stop:
                raise KeyboardInterrupt

        settings = TrainSettings(
            **{
                "join": join_settings(readers) if taught else None,
                "epochs": 8,
                "curriculum": False,
                "learning_rate": self.learning_rate,
                **more,
            }
        )
        config = self._config(store)
        return fit(store, readers, folder, config, settings, student=self.plugin, watch=watch)

    def test_it_is_a_student(self, store: Store) -> None:
        model = self.made(store)
        assert isinstance(model, nn.Module)
        assert isinstance(model, Student | Scorer), "neither encode and item_table nor logits"

    def test_scores_are_finite_a_row_a_history_and_a_column_an_item(self, store: Store) -> None:
        scores_BV = _scores(self.made(store), _histories([[3], [5, 1, 7], [2, 2]]))
        assert scores_BV.shape == (3, store.dataset.num_items)
        assert bool(scores_BV.isfinite().all())

    def test_a_history_is_judged_by_itself(self, store: Store) -> None:
        model = self.made(store)
        several = [[3], [5, 1, 7], [2, 2, 9, 4, 8, 6], [5, 1]]
        together = _scores(model, _histories(several))
        for row, one in enumerate(several):
            alone = _scores(model, _histories([one], [row]))
            gap = float((alone - together[row]).abs().max())
            assert gap <= self.tolerance, f"history {one} has another score in company: {gap:.2g}"

    def test_a_scorers_columns_are_those_items(self, store: Store) -> None:
        model = self.made(store)
        if isinstance(model, Student):
            return  # by construction
        packed = _histories([[3], [5, 1, 7]])
        columns = torch.tensor([9, 0, 4])
        with torch.no_grad():
            gap = model.logits(packed, columns) - model.logits(packed)[:, columns]
        assert float(gap.abs().max()) <= self.tolerance

    def test_every_parameter_is_reached_by_the_loss(self, store: Store) -> None:
        model = self.made(store).train()
        join = join_settings([_Shifted(store)])
        (batch,) = prepared(
            store.dataset, store.plan, [len(store.plan) - 1], [_Shifted(store)], join
        )
        step_loss(model, batch, TrainSettings(join=join))[0].backward()  # type: ignore[no-untyped-call]
        lost = [name for name, one in model.named_parameters() if one.grad is None]
        assert not lost, f"no gradient reaches {lost}"
        broken = [n for n, one in model.named_parameters() if not bool(one.grad.isfinite().all())]
        assert not broken, f"the gradient of {broken} is not finite"

    def test_it_learns(self, store: Store, tmp_path: Path) -> None:
        history = self._trained(store, tmp_path / "run").record["history"]
        assert history[-1]["ce"] < history[0]["ce"]

    def test_it_hears_its_teachers(self, store: Store, tmp_path: Path) -> None:
        taught = self._trained(store, tmp_path / "taught", taught=True).record["history"]
        deaf = self._trained(store, tmp_path / "deaf", taught=True, kd_weight=0.0).record["history"]
        assert taught[-1]["kd"] < taught[0]["kd"]
        assert taught[-1]["kd"] < deaf[-1]["kd"]

    def test_the_same_seed_gives_the_same_weights(self, store: Store, tmp_path: Path) -> None:
        weights = []
        for name in ("one", "other"):
            torch.manual_seed(len(name))  # what was drawn before has no say
            self._trained(store, tmp_path / name, epochs=2)
            weights.append((tmp_path / name / "model.safetensors").read_bytes())
        assert weights[0] == weights[1], (
            "chance comes from elsewhere than torch's default generator"
        )

    def test_a_killed_run_goes_on_to_the_same_weights(self, store: Store, tmp_path: Path) -> None:
        self._trained(store, tmp_path / "whole", taught=True, epochs=3)
        with pytest.raises(KeyboardInterrupt):
            self._trained(store, tmp_path / "killed", taught=True, epochs=3, stop=1)
        self._trained(store, tmp_path / "killed", taught=True, epochs=3)
        files = [tmp_path / name / "model.safetensors" for name in ("whole", "killed")]
        assert files[0].read_bytes() == files[1].read_bytes(), (
            "something that decides the next step is in no parameter, buffer or seed"
        )

    def test_weights_are_all_there_is_to_keep(self, store: Store, tmp_path: Path) -> None:
        model = self.made(store, seed=1)
        save_weights(tmp_path / "w.safetensors", model.state_dict(), {"suite": "student"})
        other = self.made(store, seed=2)
        other.load_state_dict(load_weights(tmp_path / "w.safetensors")[0])
        packed = _histories([[3], [5, 1, 7]])
        assert torch.equal(_scores(model, packed), _scores(other, packed))

    def test_a_run_is_loaded_and_ranks_as_it_did(self, store: Store, tmp_path: Path) -> None:
        run = self._trained(store, tmp_path / "run", epochs=2)
        model = load_student(run.folder, store)
        ranks = rank_student(model, store.dataset, store.dataset.held_out("test"))
        assert ranks.tolist() == run.test_ranks.tolist()


class _Shifted:
    """A teacher who likes the item after the last one: something to be learnt."""

    name, tau, quality, digest = "next", 0.5, None, "sha256:next"
    manifest = SimpleNamespace(kind="scores", settings={"teacher": "next", "tau": 0.5})

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getitem__(self, index: int, /) -> NDArray[np.float16]:
        dataset, batch = self._store.dataset, self._store.plan[index]
        flat, lengths = dataset.histories(batch.users, batch.ends)
        liked_T = (flat[np.cumsum(lengths) - 1] + 1) % dataset.num_items
        return log_softmax((batch.items == liked_T[:, None]).astype(np.float32), self.tau)


def _histories(several: list[list[int]], users: Iterable[int] | None = None) -> Packed:
    flat = np.array([item for one in several for item in one], np.int32)
    lengths = np.array([len(one) for one in several], np.int32)
    whose = np.arange(len(several)) if users is None else np.array(list(users))
    return Packed.of(flat, lengths, users=whose)


@torch.no_grad()
def _scores(model: Any, packed: Packed) -> Tensor:
    if isinstance(model, Student):
        return model.encode(packed) @ model.item_table().T
    scores: Tensor = model.logits(packed)
    return scores
