"""Eq. 1, algorithm 1's buckets and rounds, and plans as pure functions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.dataset import Dataset
from cache.errors import UsageError
from cache.plan import open_plan
from pipeline.curriculum import (
    PlanSettings,
    difficulty,
    estimate,
    make_plan,
    plan_batches,
    popularity,
)
from pipeline.ingest import ingest
from tests.cache.test_dataset import make
from tests.fakes import tiny_dataset


def test_difficulty_by_hand(tmp_path: Path) -> None:
    # training counts 1 1 2 1 1, so pop = .5 .5 1 .5 .5; histories [0], [0 1], [4]; N_max = 2
    dataset = make(tmp_path / "d", max_length=2)
    users, ends = dataset.training_instances()
    ssl = difficulty(dataset, users, ends, alpha=1.0, kind="max")
    assert ssl.tolist() == [1 / 2 - 0.5, 2 / 2 - (0.5 + 0.5) / 2, 1 / 2 - 0.5]
    ssl = difficulty(dataset, users, ends, alpha=0.1, kind="raw")
    assert ssl.tolist() == pytest.approx([0.5 - 0.1, 1 - 0.1, 0.5 - 0.1])


def test_popularity_kinds_by_hand() -> None:
    counts = np.array([0, 1, 3])
    assert popularity(counts, "max").tolist() == [0, 1 / 3, 1]
    assert popularity(counts, "share").tolist() == [0, 1 / 4, 3 / 4]
    assert popularity(counts, "raw").tolist() == [0, 1, 3]
    assert popularity(counts, "log").tolist() == [0, np.log(2) / np.log(4), 1]


@given(
    st.integers(1, 200), st.integers(2, 17), st.integers(1, 6), st.integers(1, 3), st.integers(0, 9)
)
def test_every_instance_stands_once_in_each_round(
    count: int, size: int, buckets: int, rounds: int, seed: int
) -> None:
    ssl = np.random.default_rng(seed).normal(size=count)
    settings = PlanSettings(batch_size=size, buckets=buckets, rounds=rounds, seed=seed)
    batches = plan_batches(ssl, settings)
    for number in range(rounds + 1):
        some = [batch.instances for batch in batches if batch.round == number]
        assert sorted(np.concatenate(some).tolist()) == list(range(count))
        assert all(1 <= len(one) <= size for one in some)
    sizes = []
    hardest = -np.inf
    for bucket in range(buckets):
        members = [ssl[b.instances] for b in batches if b.round == 0 and b.bucket == bucket]
        values = np.concatenate(members) if members else np.empty(0)
        sizes.append(len(values))
        if len(values):
            assert values.min() >= hardest
            hardest = values.max()
    assert max(sizes) - min(sizes) <= 1


def test_stages_are_unions_of_buckets(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "d", users=40)
    plan = make_plan(tmp_path / "p", dataset, PlanSettings(batch_size=4, buckets=3, rounds=2))
    for stage in (1, 2, 3):
        expected = [i for i in range(len(plan)) if plan[i].round == 0 and plan[i].bucket < stage]
        assert plan.stage(stage).tolist() == expected
    assert {plan[i].round for i in plan.round(2)} == {2}
    for i in range(len(plan)):
        batch = plan[i]
        assert len(set(batch.items.tolist())) == len(batch.items)
        targets = dataset.targets(batch.users, batch.ends)
        assert np.array_equal(batch.items[batch.columns], targets)
        assert list(dict.fromkeys(targets.tolist())) == batch.items.tolist()


def test_a_plan_is_a_pure_function(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "d", users=40)
    settings = PlanSettings(batch_size=8, buckets=2)
    one = make_plan(tmp_path / "p1", dataset, settings)
    two = make_plan(tmp_path / "p2", dataset, settings)
    assert one.digest == two.digest
    assert (tmp_path / "p1" / "plan.parquet").read_bytes() == (
        tmp_path / "p2" / "plan.parquet"
    ).read_bytes()
    other = make_plan(tmp_path / "p3", dataset, PlanSettings(batch_size=8, buckets=2, seed=1))
    assert other.digest != one.digest


def test_the_shuffle_never_moves_between_versions() -> None:
    # golden: raw Philox bits; if this changes, no stored plan can be made again
    batches = plan_batches(np.zeros(8), PlanSettings(batch_size=8, buckets=1, seed=3))
    assert [b.instances.tolist() for b in batches] == GOLDEN


def test_validation_and_test_items_never_touch_difficulty(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "d", users=30)
    users, ends = dataset.training_instances()
    before = difficulty(dataset, users, ends, alpha=1.0, kind="max")
    flat = dataset.flat.copy()
    for user in np.flatnonzero(dataset.lengths >= 3):
        last = dataset.offsets[user + 1]
        flat[last - 2 : last] = (flat[last - 2 : last] + 1) % dataset.num_items
    changed = Dataset(
        path=dataset.path, manifest=dataset.manifest, flat=flat, offsets=dataset.offsets
    )
    after = difficulty(changed, users, ends, alpha=1.0, kind="max")
    assert np.array_equal(before, after)


def test_a_plan_of_another_dataset_is_refused_with_both_digests(tmp_path: Path) -> None:
    one, other = tiny_dataset(tmp_path / "a"), tiny_dataset(tmp_path / "b", seed=1)
    make_plan(tmp_path / "p", one, PlanSettings(batch_size=4))
    with pytest.raises(Exception, match=rf"{one.digest[:19]}.*{other.digest[:19]}"):
        open_plan(tmp_path / "p", other)


def test_the_estimate_is_what_the_plan_then_is(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "d", users=40)
    settings = PlanSettings(batch_size=8, buckets=2)
    cost = estimate(dataset, settings)
    plan = make_plan(tmp_path / "p", dataset, settings)
    assert (cost.instances, cost.batches, cost.columns) == (
        plan.num_instances,
        len(plan),
        plan.num_columns,
    )


def test_impossible_settings_are_told_all_at_once(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "d")
    with pytest.raises(UsageError, match=r"batch_size 1 .*buckets 0 .*alpha -1"):
        make_plan(tmp_path / "p", dataset, PlanSettings(batch_size=1, buckets=0, alpha=-1))
    too_many = PlanSettings(buckets=32768, rounds=40000)
    with pytest.raises(UsageError, match=r"buckets 32768 \(at most 32767\), rounds 40000"):
        make_plan(tmp_path / "p", dataset, too_many)
    with pytest.raises(UsageError, match="buckets 32768"):  # a dry run says the same
        estimate(dataset, too_many)


@pytest.mark.parametrize(("k_core", "remedy"), [(2, "smaller --k-core"), (0, "longer histories")])
def test_a_log_too_short_to_train_on_gets_advice_that_can_be_followed(
    tmp_path: Path, k_core: int, remedy: str
) -> None:
    (tmp_path / "log.csv").write_text("user,item\nu,a\nu,b\nu,c\nv,a\nv,b\nv,c\n")
    dataset = ingest(tmp_path / "log.csv", tmp_path / "d", k_core=k_core).dataset
    with pytest.raises(UsageError, match=f"no user has two items to train on; ingest .*{remedy}"):
        estimate(dataset, PlanSettings())


GOLDEN = [[6, 1, 5, 2, 7, 4, 3, 0], [0, 1, 4, 2, 3, 5, 6, 7]]
