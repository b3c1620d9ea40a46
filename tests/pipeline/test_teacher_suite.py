"""The suite that teachers of others inherit: a sound one passes all of it, and each kind of broken one fails a test by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from pipeline.suite_ground import changed_from, shop_dataset
from pipeline.teacher_suite import TeacherSuite
from tests.fakes import HalvesTeacher, PairTeacher, TableTeacher


class TestTable(TeacherSuite):
    def teacher(self, dataset):
        return TableTeacher()


class TestPair(TeacherSuite):
    """Whose score is no product."""

    def teacher(self, dataset):
        return PairTeacher()


class TestHalves(TeacherSuite):
    """Who says how far he is."""

    def teacher(self, dataset):
        return HalvesTeacher()


class Vain(HalvesTeacher):
    def encode_histories_watched(self, dataset, users, ends, watch):
        return -super().encode_histories_watched(dataset, users, ends, watch)


class Hasty(HalvesTeacher):
    def encode_histories_watched(self, dataset, users, ends, watch):
        return super().encode_histories_watched(
            dataset, users, ends, lambda share: watch(share / 2)
        )


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


class Answering(TableTeacher):
    """The score of the answer is one, of any history."""

    def encode_histories(self, dataset, users, ends):
        return self.encode_items(dataset)[dataset.targets(users, ends)]


class Foreseeing(TableTeacher):
    """Knows one item of the training part more than it may."""

    def encode_histories(self, dataset, users, ends):
        last = dataset.train_lengths[users] - 1
        after = dataset.flat[dataset.offsets[users] + np.minimum(ends + 1, last)]
        return super().encode_histories(dataset, users, ends) + self.encode_items(dataset)[after]


class Popular(TableTeacher):
    """Weighs by how often items were bought in training, which a teacher may know."""

    def encode_histories(self, dataset, users, ends):
        share = dataset.train_counts[dataset.flat[dataset.offsets[users] + ends - 1]]
        return super().encode_histories(dataset, users, ends) / np.float32(1 + share)[:, None]


class TestPopular(TeacherSuite):
    def teacher(self, dataset):
        return Popular()


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
        (Vain, "test_who_watches_it_changes_nothing"),
        (Hasty, "test_who_watches_it_changes_nothing"),
        (Softmaxed, "test_an_item_is_judged_by_itself"),
        (Prophetic, "test_it_does_not_know_what_comes_after"),
        (Answering, "test_it_does_not_know_what_comes_after"),
        (Foreseeing, "test_it_does_not_know_what_comes_after"),
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


@pytest.mark.parametrize("end", [1, 3])
def test_what_is_changed_is_all_that_comes_later_and_no_count(tmp_path: Path, end: int) -> None:
    shop = shop_dataset(tmp_path / "d")
    changed = changed_from(shop, end)
    assert np.array_equal(changed.train_counts, shop.train_counts)
    users, ends = shop.training_instances()
    before = ends < end
    assert np.array_equal(changed.targets(users, ends)[before], shop.targets(users, ends)[before])
    others = changed.targets(users, ends)[~before] != shop.targets(users, ends)[~before]
    assert others.mean() > 0.8
    for one, other in zip(shop.held_out("test"), changed.held_out("test"), strict=True):
        assert np.array_equal(one, other)
