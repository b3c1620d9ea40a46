"""Tests that a teacher of yours inherits: what `kd-cache build` and all who trust its scores rely on.

    from pipeline.teacher_suite import TeacherSuite

    class TestPopular(TeacherSuite):
        def teacher(self, dataset):
            return Popular(...)

Run by pytest. Each test names one rule and what broke it. A teacher that can only speak of its own dataset overrides
`dataset` too. All of them together ask the teacher about some hundred histories.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cache.dataset import Dataset, Ints
from cache.store import Store
from pipeline.build import build
from pipeline.suite_ground import changed_from, shop_dataset, shop_store
from teachers.protocol import Watched

__all__ = ["TeacherSuite"]


class TeacherSuite(ABC):
    """Inherit, and make a teacher."""

    #: how far the same answer may be off when asked in other company (floating-point sums depend on it)
    tolerance = 1e-4

    @abstractmethod
    def teacher(self, dataset: Dataset) -> Any:
        """A teacher ready to be asked about `dataset`; called anew for each test, equal each time."""

    def dataset(self, path: Path, *, held_out: int = 0) -> Dataset:
        """What to ask about; with `held_out` the same with other validation and test items."""
        return shop_dataset(path, held_out=held_out)

    def _asked(self, path: Path) -> tuple[Any, Dataset, Ints, Ints]:
        dataset = self.dataset(path)
        users, ends = dataset.training_instances()
        return self.teacher(dataset), dataset, users[:40], ends[:40]

    def test_it_says_who_it_is(self, tmp_path: Path) -> None:
        dataset = self.dataset(tmp_path / "data")
        one, other = self.teacher(dataset), self.teacher(dataset)
        assert isinstance(one.name, str)
        assert one.name
        assert isinstance(one.digest, str)
        assert one.digest, "the digest names everything that decides the scores"
        assert one.digest == other.digest, "the same teacher has the same digest"
        assert isinstance(one.factorises, bool)
        for metric, value in one.quality.items():
            assert math.isfinite(value), f"quality {metric} is {value}"

    def test_vectors_are_finite_float32_a_row_an_item_and_a_row_a_history(
        self, tmp_path: Path
    ) -> None:
        teacher, dataset, users, ends = self._asked(tmp_path / "data")
        items_VD = teacher.encode_items(dataset)
        histories_ND = teacher.encode_histories(dataset, users, ends)
        assert len(items_VD) == dataset.num_items
        assert len(histories_ND) == len(users)
        for found in (items_VD, histories_ND):
            assert found.ndim == 2
            assert found.dtype == np.float32
            assert np.isfinite(found).all()

    def test_scores_are_a_row_a_history_and_a_column_an_item(self, tmp_path: Path) -> None:
        teacher, dataset, users, ends = self._asked(tmp_path / "data")
        scores_NV = _scores(teacher, dataset, users, ends)
        assert scores_NV.shape == (len(users), dataset.num_items)
        assert np.isfinite(scores_NV).all(), "an item without a score needs a low one, not -inf"
        assert np.ptp(scores_NV), "all scores are equal: it has nothing to teach"

    def test_a_factorising_teachers_scores_are_products_of_its_vectors(
        self, tmp_path: Path
    ) -> None:
        teacher, dataset, users, ends = self._asked(tmp_path / "data")
        if not teacher.factorises:
            return
        histories, items = (
            teacher.encode_histories(dataset, users, ends),
            teacher.encode_items(dataset),
        )
        scores, product = teacher.score(histories, items), histories @ items.T
        # a constant a history changes no softmax
        scores, product = (one - one.mean(axis=1, keepdims=True) for one in (scores, product))
        _close(scores, product, 1e-3, "score is not the product of the vectors")

    def test_the_same_question_has_the_same_answer(self, tmp_path: Path) -> None:
        teacher, dataset, users, ends = self._asked(tmp_path / "data")
        first = _scores(teacher, dataset, users, ends)
        again = _scores(teacher, dataset, users, ends)
        assert np.array_equal(first, again), "answers change (dropout left on, or a random draw?)"
        other = _scores(self.teacher(dataset), dataset, users, ends)
        assert np.array_equal(first, other), "two teachers of one digest answer differently"

    def test_a_history_is_judged_by_itself(self, tmp_path: Path) -> None:
        teacher, dataset, users, ends = self._asked(tmp_path / "data")
        together = teacher.encode_histories(dataset, users, ends)
        backwards = teacher.encode_histories(dataset, users[::-1].copy(), ends[::-1].copy())[::-1]
        alone = np.concatenate(
            [teacher.encode_histories(dataset, users[[n]], ends[[n]]) for n in range(5)]
        )
        _close(backwards, together, self.tolerance, "a vector depends on the order of the question")
        _close(alone, together[:5], self.tolerance, "a vector depends on who stands beside it")

    def test_who_watches_it_changes_nothing(self, tmp_path: Path) -> None:
        teacher, dataset, users, ends = self._asked(tmp_path / "data")
        alone = teacher.encode_histories(dataset, users, ends)
        if not isinstance(teacher, Watched):
            return
        shares: list[float] = []
        watched = teacher.encode_histories_watched(dataset, users, ends, shares.append)
        assert np.array_equal(watched, alone), "an answer depends on whether it is watched"
        assert shares, "a watcher hears nothing"
        assert shares == sorted(shares), "shares that are done fall"
        assert 0 <= shares[0], "a share below 0"
        assert shares[-1] == 1, "the last share that is told is not 1"

    def test_an_item_is_judged_by_itself(self, tmp_path: Path) -> None:
        teacher, dataset, users, ends = self._asked(tmp_path / "data")
        histories, items = (
            teacher.encode_histories(dataset, users, ends),
            teacher.encode_items(dataset),
        )
        chosen = np.arange(dataset.num_items)[::-2].copy()
        some = teacher.score(histories, items[chosen])
        every = teacher.score(histories, items)[:, chosen]
        _close(some, every, self.tolerance, "a score depends on the items beside it (a softmax?)")

    def test_it_does_not_know_what_comes_after(self, tmp_path: Path) -> None:
        dataset, changed = (
            self.dataset(tmp_path / "data"),
            self.dataset(tmp_path / "changed", held_out=7),
        )
        teacher = self.teacher(dataset)
        users, ends = dataset.training_instances()
        users, ends = users[:40], ends[:40]
        found = teacher.encode_histories(dataset, users, ends)
        told = teacher.encode_histories(changed, users, ends)
        _close(told, found, self.tolerance, "a vector depends on items after the history")
        # held-out items are out of reach; the target itself is the nearest thing to cheat with
        for end in np.unique(ends).tolist():
            mine = ends == end
            told = teacher.encode_histories(changed_from(dataset, end), users[mine], ends[mine])
            _close(
                told, found[mine], self.tolerance, "a vector depends on the target or later items"
            )

    def test_a_store_is_built_of_it_and_read_again(self, tmp_path: Path) -> None:
        dataset = self.dataset(tmp_path / "data")
        store = shop_store(tmp_path / "store", dataset)
        teacher = self.teacher(dataset)
        build(teacher, store)
        reader = Store.open(store.path).scores(teacher.name)
        batch = store.plan[0]
        scores_TV = _scores(teacher, store.dataset, batch.users, batch.ends)
        scaled_TC = scores_TV[:, batch.items].astype(np.float64) / reader.tau
        scaled_TC -= scaled_TC.max(axis=1, keepdims=True)
        expected_TC = scaled_TC - np.log(np.exp(scaled_TC).sum(axis=1, keepdims=True))
        _close(np.asarray(reader[0], np.float64), expected_TC, 0.05, "the store keeps other scores")


def _scores(teacher: Any, dataset: Dataset, users: Ints, ends: Ints) -> NDArray[Any]:
    histories, items = teacher.encode_histories(dataset, users, ends), teacher.encode_items(dataset)
    return np.asarray(teacher.score(histories, items))


def _close(found: NDArray[Any], expected: NDArray[Any], tolerance: float, what: str) -> None:
    gap = float(np.abs(found - expected).max()) / max(1.0, float(np.abs(expected).max()))
    if not gap <= tolerance:
        pytest.fail(f"{what}: off by {gap:.2g}, at most {tolerance:.2g} expected")
