"""How long a teacher would take: a sample's time, extrapolated, by a clock that only the teacher moves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cache.dataset import Dataset
from pipeline.build import build
from pipeline.curriculum import PlanSettings, planned
from pipeline.estimate import estimate_seconds
from tests.fakes import PairTeacher, TableTeacher, tiny_dataset, tiny_store


class Timed(TableTeacher):
    """Takes 3 s for the items, 1 ms an instance, 0.5 s a batch; the first call for histories 100 s on top."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.asked: list[tuple[np.ndarray, np.ndarray]] = []

    def clock(self) -> float:
        return self.now

    def encode_items(self, dataset):
        self.now += 3
        return super().encode_items(dataset)

    def encode_histories(self, dataset, users, ends):
        self.now += 0.001 * len(users) + (0 if self.asked else 100)
        self.asked.append((users, ends))
        return super().encode_histories(dataset, users, ends)

    def score(self, users_TD, items_CD):
        self.now += 0.5
        return super().score(users_TD, items_CD)


class TimedPairs(Timed):
    factorises = False
    score = PairTeacher.score


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return tiny_dataset(tmp_path / "data", users=800)


def test_the_estimate_by_hand(dataset: Dataset) -> None:
    instances, batches = planned(dataset, PlanSettings(batch_size=64))
    count = len(instances[0])
    assert count > 2048
    teacher = Timed()
    seconds = estimate_seconds(teacher, dataset, instances, batches, clock=teacher.clock)
    # items 3 s, every instance once at 1 ms, every batch at half a second; the slow first call does not count
    assert seconds == pytest.approx(3 + 0.001 * count + 0.5 * len(batches))


def test_pairs_are_encoded_anew_for_every_batch(dataset: Dataset) -> None:
    instances, batches = planned(dataset, PlanSettings(batch_size=64, rounds=2))
    slots = 3 * len(instances[0])  # the curriculum round and two standard ones
    teacher = TimedPairs()
    seconds = estimate_seconds(teacher, dataset, instances, batches, clock=teacher.clock)
    assert seconds == pytest.approx(3 + 0.001 * slots)


def test_the_sample_is_eight_runs_of_neighbours_spread_over_all_instances(dataset: Dataset) -> None:
    instances, batches = planned(dataset, PlanSettings(batch_size=64))
    teacher = Timed()
    estimate_seconds(teacher, dataset, instances, batches, clock=teacher.clock)
    rows = {
        (u, e): row
        for row, (u, e) in enumerate(zip(*(part.tolist() for part in instances), strict=True))
    }
    sample = np.array(
        [rows[pair] for pair in zip(*(part.tolist() for part in teacher.asked[-1]), strict=True)]
    )
    assert len(sample) == len(set(sample.tolist())) == 1024
    firsts = sample.reshape(8, 128)[:, 0]
    assert np.array_equal(sample.reshape(8, 128), firsts[:, None] + np.arange(128))
    gaps = np.diff(firsts)
    assert gaps.max() - gaps.min() <= 128
    assert firsts[0] < len(rows) / 8
    assert sample[-1] > len(rows) * 7 / 8 - 128
    assert teacher.calls["score"] == 4


@pytest.mark.parametrize("users", [1, 2, 7, 60])
def test_a_small_dataset_is_asked_whole(tmp_path: Path, users: int) -> None:
    dataset = tiny_dataset(tmp_path / "data", users=users)
    instances, batches = planned(dataset, PlanSettings(batch_size=4))
    teacher = Timed()
    seconds = estimate_seconds(teacher, dataset, instances, batches, clock=teacher.clock)
    assert seconds == pytest.approx(3 + 0.001 * len(instances[0]) + 0.5 * len(batches))
    assert len(teacher.asked[-1][0]) <= len(instances[0])


def test_what_was_foretold_is_what_a_build_then_takes(tmp_path: Path) -> None:
    store = tiny_store(tmp_path / "store", users=40)
    instances = (store.plan.instance_users, store.plan.instance_ends)
    batches = [store.plan[index] for index in range(len(store.plan))]
    teacher = Timed()
    foretold = estimate_seconds(teacher, store.dataset, instances, batches, clock=teacher.clock)
    before = teacher.now
    build(teacher, store)
    assert teacher.now - before == pytest.approx(foretold)
