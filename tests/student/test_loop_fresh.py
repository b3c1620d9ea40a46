"""Training on batches that no plan fixed, and over all items: what meets when, and that a step is eq. 10."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cache.errors import UsageError
from student.losses import cross_entropy, distillation_loss
from student.prepared import prepared
from student.schedule import TrainSettings, epoch_batches, schedule
from student.steps import step_loss
from tests.student.known import Ground
from tests.student.trial import Trial, same


def met(trial: Trial, epoch: int) -> tuple[str, list[list[int]]]:
    now = epoch_batches(trial.settings, trial.plan, epoch)
    assert now
    name, batches, order = now
    return name, [batches[int(index)].instances.tolist() for index in order]


def test_stages_draw_from_their_buckets_and_then_from_everything(ground: Ground) -> None:
    # 31 instances, the first 16 in bucket 0; batches of 6: 3 of them (6, 6, 4), then 6 (the last of 1)
    trial = Trial(ground, teachers=1, factors=True, batch_size=6)
    names, sizes, sets = [], [], []
    for epoch in range(5):
        name, batches = met(trial, epoch)
        names.append(name)
        sizes.append([len(batch) for batch in batches])
        sets.append(sorted(instance for batch in batches for instance in batch))
    assert names == ["stage 1/2", "stage 2/2", "fresh", "fresh", "fresh"]
    assert sizes == [[6, 6, 4]] + 4 * [[6, 6, 6, 6, 6, 1]]
    assert sets == [list(range(16))] + 4 * [list(range(31))]
    assert epoch_batches(trial.settings, trial.plan, 5) is None
    assert len({str(met(trial, epoch)) for epoch in (2, 3, 4)}) == 3


def test_training_asks_about_those_batches_in_that_order(ground: Ground) -> None:
    trial = Trial(
        ground, teachers=2, factors=True, batch_size=40, epochs=2
    )  # larger than the plan's
    state = trial.run()
    wanted = [batch for epoch in range(4) for batch in met(trial, epoch)[1]]
    assert [reader.met for reader in trial.readers] == [wanted, wanted]
    assert [record.instances for record in state.history] == [16, 31, 31, 31]
    assert [record.stage for record in state.history][2:] == ["fresh", "fresh"]
    assert state.step == 4
    assert all(record.kd > 0 for record in state.history)


def test_the_base_may_have_fresh_batches_too(ground: Ground) -> None:
    state = Trial(ground, batch_size=7, curriculum=False, epochs=2).run()
    assert state.step == 2 * 5  # 31 in sevens


def test_without_a_batch_size_the_plan_is_followed(ground: Ground) -> None:
    _, plan = ground
    for epoch in range(5):
        now = epoch_batches(TrainSettings(epochs=3), plan, epoch)
        planned = schedule(TrainSettings(epochs=3), plan, epoch)
        assert now
        assert planned
        assert (now[0], now[1]) == (planned[0], plan)
        assert now[2].tolist() == planned[1].tolist()
    one, other = (
        Trial(ground, teachers=1, factors=True, **more) for more in ({}, {"batch_size": 4})
    )
    one.run()
    other.run()
    assert not same(one.weights(), other.weights())


@pytest.mark.parametrize("teachers", [1, 3])
@pytest.mark.parametrize("kl", ["teacher-student", "student-teacher"])
@pytest.mark.parametrize("batch_size", [0, 6])
def test_a_step_over_all_items_follows_eq_10(
    ground: Ground, teachers: int, kl: Any, batch_size: int
) -> None:
    trial = Trial(ground, teachers=teachers, factors=True, items="all", dropout=0.0, kl=kl, batch_size=batch_size)  # fmt: skip
    now = epoch_batches(trial.settings, trial.plan, 1)
    assert now
    (batch,) = prepared(trial.dataset, now[1], now[2][:1], trial.readers, trial.settings.join)
    assert batch.target
    assert batch.target.q_TC.shape == (batch.slots, trial.dataset.num_items)
    logits_TV = trial.model.encode(batch.packed) @ trial.model.item_table().T
    ce = cross_entropy(logits_TV, batch.rows_T)
    kd = distillation_loss(logits_TV, batch.target.q_TC, kl)
    parameters = list(trial.model.parameters())
    expected = torch.autograd.grad(ce + trial.settings.kd_weight * kd, parameters)
    total, got_ce, got_kd = step_loss(trial.model, batch, trial.settings)
    assert got_ce.item() == pytest.approx(ce.item(), rel=1e-5)
    assert got_kd.item() == pytest.approx(kd.item(), rel=1e-4, abs=1e-6)
    for one, other in zip(torch.autograd.grad(total, parameters), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_all_items_of_one_teacher_by_hand(ground: Ground) -> None:
    trial = Trial(ground, teachers=1, factors=True, items="all", curriculum=False, batch_size=6)
    reader = trial.readers[0]
    now = epoch_batches(trial.settings, trial.plan, 0)
    assert now
    (batch,) = prepared(trial.dataset, now[1], now[2][:1], trial.readers, trial.settings.join)
    raw_TV = reader.histories_ND[reader.met[0]].astype(float) @ reader.items_VD.astype(float).T
    powers = np.exp(raw_TV / reader.tau)
    assert batch.target
    assert batch.target.q_TC.numpy() == pytest.approx(
        powers / powers.sum(1, keepdims=True), abs=1e-5
    )


def test_in_batch_cross_entropy_has_no_logits_over_all_items(ground: Ground) -> None:
    trial = Trial(ground, teachers=1, factors=True, items="all", ce="in-batch")
    with pytest.raises(UsageError, match="leave one away") as caught:
        trial.run()
    assert caught.value.code == "fit.mixed_items"


def test_a_score_set_cannot_answer_for_fresh_batches(ground: Ground) -> None:
    with pytest.raises(UsageError, match="of t0 only the scores of the plan's batches are kept"):
        Trial(ground, teachers=1, batch_size=4).run()
