"""Learning from factor sets: the same loss as from scores, any batch, any temperature, all items."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cache.errors import StoreError, UsageError
from cache.factors import FactorReader
from cache.scores import ScoreReader
from cache.store import Store
from pipeline.build import build
from student.batches import UNPLANNED, FreshBatches, instances_of
from student.losses import distillation_loss
from student.prepared import prepared
from student.targets import join_settings, target_of
from tests.fakes import TableTeacher, tiny_store
from tests.student.known import KnownFactors

NAMES = ("one", "two", "three")
KLS = ("teacher-student", "student-teacher")


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three teachers, of each scores and factors; 31 instances, 9 items."""
    return of_three(tmp_path_factory.mktemp("kinds") / "store", rounds=2)


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The same teachers over batches of 64."""
    return of_three(tmp_path_factory.mktemp("wide") / "store", users=120, items=80, batch_size=64)


def of_three(path: Path, **sizes: int) -> Store:
    store = tiny_store(path, **sizes)
    for seed, name in enumerate(NAMES):
        build(TableTeacher(name, seed=seed, width=32), store, keep="both", tau=0.07 + 0.01 * seed)
    return store


def readers_of(store: Store, kinds: str) -> list[ScoreReader | FactorReader]:
    """A letter a teacher: s for its scores, f for its factors."""
    return [
        store.scores(name) if kind == "s" else store.factors(name)
        for name, kind in zip(NAMES, kinds, strict=False)
    ]


def fresh(store: Store, size: int = 5, *, seed: int = 0, epoch: int = 0) -> FreshBatches:
    instances = np.arange(store.plan.num_instances, dtype=np.int32)
    return FreshBatches(store.plan, instances, size, seed=seed, epoch=epoch)


def exact_KTC(store: Store, batch, tau: float, items=None) -> Tensor:
    """[K, T, C] eq. 2's softmax straight from the teachers, in float64."""
    items = batch.items if items is None else items
    said = []
    for seed, name in enumerate(NAMES):
        teacher = TableTeacher(name, seed=seed, width=32)
        users = teacher.encode_histories(store.dataset, batch.users, batch.ends).astype(np.float64)
        raw = users @ teacher.encode_items(store.dataset)[items].astype(np.float64).T
        said.append(torch.softmax(torch.from_numpy(raw / tau), dim=-1))
    return torch.stack(said)


# ------------------------------------------------------------------------------------- either kind


@pytest.mark.parametrize("kl", KLS)
@pytest.mark.parametrize("kinds", ["f", "ff", "fff", "fss", "sfs", "ssf"])
def test_the_same_loss_from_either_kind_on_the_same_batch(wide: Store, kinds: str, kl: str):
    """The bar is 1e-3, batch by batch: what float16 takes from the vectors and from the stored logarithms."""
    for one, other in losses_of(wide, kinds, kl, epsilon=1e6):  # nobody is dropped
        assert one == pytest.approx(other, abs=1e-3)
        assert one > 0.5


@pytest.mark.parametrize("kinds", ["fff", "ssf"])
def test_rounding_may_decide_whom_two_equals_contradict_but_not_what_is_learnt(
    wide: Store, kinds: str
):
    """Of two teachers who stand almost equally far the rounded scores may drop the other one: the mean loss stands."""
    losses = losses_of(wide, kinds, "teacher-student", epsilon="0.8q")
    one, other = np.array(losses).mean(axis=0)
    assert one == pytest.approx(other, abs=1e-3)


def losses_of(
    store: Store, kinds: str, kl: Literal["teacher-student", "student-teacher"], **join: Any
) -> list[tuple[float, float]]:
    """Of each batch the divergence of one student from what the scores say, and from what `kinds` say."""
    rng = torch.Generator().manual_seed(0)
    plain, mixed = readers_of(store, "s" * len(kinds)), readers_of(store, kinds)
    settings = join_settings(plain, tau=0.07, **join)
    assert join_settings(mixed, tau=0.07, **join) == settings
    losses = []
    for index in range(len(store.plan)):
        batch = store.plan[index]
        targets = [target_of(some, batch, settings) for some in (plain, mixed)]
        logits = torch.randn(targets[0].q_TC.shape, generator=rng)
        one, other = (distillation_loss(logits, target.q_TC, kl).item() for target in targets)
        losses.append((one, other))
    return losses


@given(tau=st.floats(0.05, 2), size=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_a_fresh_batch_of_any_size_at_any_tau_is_eq_2_of_the_bare_scores(
    store: Store, tau: float, size: int, seed: int
):
    batches = fresh(store, size, seed=seed)
    batch = batches[len(batches) - 1]
    settings = join_settings(readers_of(store, "f"), tau=tau)
    target = target_of(readers_of(store, "f"), batch, settings)
    wanted_TC = exact_KTC(store, batch, tau)[0]
    # an entry's logit is off by 2^-10 / tau at most; its share by that share of itself, twice for the others
    assert (target.q_TC - wanted_TC).abs().max() < 2 * 2**-10 / tau + 1e-6


@pytest.mark.parametrize("kinds", ["f", "ff", "fff"])
def test_over_all_items_every_row_sums_to_one(store: Store, kinds: str):
    readers = readers_of(store, kinds)
    settings = join_settings(readers, tau=0.05, items="all", epsilon=1e6)
    for batch in (store.plan[0], fresh(store)[2]):
        target = target_of(readers, batch, settings)
        assert target.all_items
        assert target.q_TC.shape == (len(batch.instances), 9)
        assert target.q_TC.sum(dim=-1) == pytest.approx(1, abs=1e-6)
        # nobody is above so large an epsilon: the mean of the teachers, who are equally good
        wanted_KTV = exact_KTC(store, batch, 0.05, items=np.arange(9))[: len(kinds)]
        assert (target.q_TC - wanted_KTV.mean(dim=0)).abs().max() < 0.01
        entropy = torch.special.entr(wanted_KTV.mean(dim=0)).sum(dim=-1).mean().item()
        assert target.entropy == pytest.approx(entropy, abs=0.01)


def test_over_very_many_items_the_floors_do_not_add_up(store: Store):
    # 50,000 floors of 1e-8 are 5e-4 of a row that the teacher gave to a few items
    reader = KnownFactors(store.plan, items=50_000, tau=0.01)
    target = target_of([reader], store.plan[0], join_settings([reader], items="all"))
    assert target.q_TC.double().sum(dim=-1) == pytest.approx(1, abs=1e-5)
    assert target.q_TC.min() > 9e-9


def test_scores_cannot_answer_for_what_was_never_planned(store: Store):
    readers = readers_of(store, "fs")
    batch = fresh(store)[0]
    with pytest.raises(UsageError, match="of two only the scores") as caught:
        target_of(readers, batch, join_settings(readers, tau=0.1))
    assert caught.value.code == "fit.no_factors"
    with pytest.raises(UsageError, match="--teacher two --keep factors"):
        target_of(readers, store.plan[0], join_settings(readers, tau=0.1, items="all"))


def test_factors_that_are_damaged_end_the_preparation(tmp_path: Path):
    store = tiny_store(tmp_path / "store")
    build(TableTeacher(), store, keep="factors")
    file = store.factor_folder("table") / "items/0000000.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    readers = [store.factors("table")]
    with pytest.raises(StoreError, match=str(file)):
        list(prepared(store.dataset, store.plan, [0], readers, join_settings(readers)))


# ------------------------------------------------------------------------------------- fresh batches


@given(size=st.integers(1, 40), seed=st.integers(0, 2**32), epoch=st.integers(0, 100))
def test_fresh_batches_are_a_partition_and_a_function_of_seed_and_epoch(
    store: Store, size: int, seed: int, epoch: int
):
    plan = store.plan
    batches = fresh(store, size, seed=seed, epoch=epoch)
    found = [batches[index] for index in range(len(batches))]
    sizes = [len(batch.instances) for batch in found]
    assert sizes == [size] * (31 // size) + ([31 % size] if 31 % size else [])
    met = np.concatenate([batch.instances for batch in found])
    assert sorted(met.tolist()) == list(range(31))
    for batch in found:
        targets = store.dataset.targets(batch.users, batch.ends)
        assert batch.items[batch.columns].tolist() == targets.tolist()
        assert batch.items.tolist() == list(dict.fromkeys(targets.tolist()))
        assert batch.users.tolist() == plan.instance_users[batch.instances].tolist()
        assert batch.index == UNPLANNED
    again = fresh(store, size, seed=seed, epoch=epoch)
    assert again[0].instances.tolist() == found[0].instances.tolist()
    # golden: the order is that of raw Philox bits; if it changes, a killed run cannot go on to the same weights
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(31)
    assert met.tolist() == sorted(range(31), key=lambda place: bits[place])


def test_epochs_and_seeds_have_orders_of_their_own(store: Store):
    orders = {
        tuple(fresh(store, 31, seed=seed, epoch=epoch)[0].instances.tolist())
        for seed in range(4)
        for epoch in range(5)
    }
    assert len(orders) == 20


def test_any_subset_of_instances_and_none(store: Store):
    some = np.array([3, 7, 30], np.int32)
    batches = FreshBatches(store.plan, some, 2, seed=0, epoch=0)
    met = [i for index in range(len(batches)) for i in batches[index].instances.tolist()]
    assert sorted(met) == [3, 7, 30]
    assert len(FreshBatches(store.plan, some[:0], 2, seed=0, epoch=0)) == 0
    for index in (-1, 2):
        with pytest.raises(IndexError, match="of 2 fresh batches"):
            batches[index]


def test_instances_of_batches(store: Store):
    plan = store.plan
    assert instances_of(plan, plan.round(2)[::-1]).tolist() == list(range(31))
    assert instances_of(plan, plan.stage(1)).tolist() == list(range(16))  # the first half
    assert instances_of(plan, plan.stage(1)[:0]).tolist() == []
