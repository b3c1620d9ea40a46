"""The suite that teachers of others inherit: a sound one passes all of it, and each kind of broken one fails a test by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from pipeline.teacher_suite import TeacherSuite
from tests.fakes import PairTeacher, TableTeacher


class TestTable(TeacherSuite):
    def teacher(self, dataset):
        return TableTeacher()


class TestPair(TeacherSuite):
    """Whose score is no product."""

    def teacher(self, dataset):
        return PairTeacher()


class Wide(TableTeacher):
    def encode_items(self, dataset):
        return super().encode_items(dataset).astype(np.float64)


class Silent(TableTeacher):
    def score(self, users_TD, items_CD):
        return np.zeros((len(users_TD), len(items_CD)), np.float32)


class Softmaxed(TableTeacher):
    factorises = False

    def score(self, users_TD, items_CD):
        raw = np.exp(users_TD @ items_CD.T)
        return raw / raw.sum(axis=1, keepdims=True)


class Forgetful(TableTeacher):
    def score(self, users_TD, items_CD):
        self.calls["score"] += 1
        return users_TD @ items_CD.T + np.float32(self.calls["score"])


class Sociable(TableTeacher):
    def encode_histories(self, dataset, users, ends):
        own = super().encode_histories(dataset, users, ends)
        return own + own.mean(axis=0)


class Prophetic(TableTeacher):
    def encode_histories(self, dataset, users, ends):
        last = dataset.flat[dataset.offsets[users + 1] - 1]
        return super().encode_histories(dataset, users, ends) + self.encode_items(dataset)[last]


class Tempered(TableTeacher):
    def score(self, users_TD, items_CD):
        return super().score(users_TD, items_CD) / np.float32(0.07)


class Moving(TableTeacher):
    made: ClassVar[list[str]] = []

    def __init__(self):
        super().__init__()
        self.made.append(self.digest)
        self.digest = f"sha256:{len(self.made)}"


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (Wide, "test_vectors_are_finite_float32_a_row_an_item_and_a_row_a_history"),
        (Silent, "test_scores_are_a_row_a_history_and_a_column_an_item"),
        (Tempered, "test_a_factorising_teachers_scores_are_products_of_its_vectors"),
        (Forgetful, "test_the_same_question_has_the_same_answer"),
        (Sociable, "test_a_history_is_judged_by_itself"),
        (Softmaxed, "test_an_item_is_judged_by_itself"),
        (Prophetic, "test_it_does_not_know_what_comes_after"),
        (Moving, "test_it_says_who_it_is"),
    ],
)
def test_a_broken_teacher_fails_the_test_of_its_fault(
    tmp_path: Path, broken: Callable[[], Any], test: str
) -> None:
    class Suite(TeacherSuite):
        def teacher(self, dataset):
            return broken()

    with pytest.raises((AssertionError, pytest.fail.Exception)):
        getattr(Suite(), test)(tmp_path)
