"""The training loop: which batches when, when it stops, what it keeps, what a step is."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cache.errors import StoreError, TeacherError
from student.kept import Kept
from student.losses import cross_entropy, distillation_loss
from student.prepared import prepared
from student.schedule import TrainSettings, schedule
from student.state import RunState
from student.steps import step_loss
from tests.student.known import Ground
from tests.student.trial import Trial, same

# ------------------------------------------------------------------------------------- which batches


def test_the_schedule_is_algorithm_1(ground: Ground) -> None:
    # two buckets, two epochs each: stage 1 sees bucket 1, stage 2 sees both; then the rounds in turn
    _, plan = ground
    settings = TrainSettings(epochs_per_stage=2, epochs=5)
    found = []
    epoch = 0
    while now := schedule(settings, plan, epoch):
        name, order = now
        found.append(name)
        batches = [plan[int(index)] for index in order]
        instances = sorted(int(i) for batch in batches for i in batch.instances)
        if name == "stage 1/2":
            assert {(batch.round, batch.bucket) for batch in batches} == {(0, 0)}
            assert instances == list(range((plan.num_instances + 1) // 2))
        else:  # everything, each instance once
            assert instances == list(range(plan.num_instances))
            if name == "stage 2/2":
                assert {(batch.round, batch.bucket) for batch in batches} == {(0, 0), (0, 1)}
            else:
                assert {f"round {batch.round}" for batch in batches} == {name}
        epoch += 1
    stages = ["stage 1/2"] * 2 + ["stage 2/2"] * 2
    assert found == [*stages, "round 1", "round 2", "round 1", "round 2", "round 1"]
    assert schedule(settings, plan, epoch + 100) is None


def test_without_a_curriculum_the_rounds_begin_at_once(ground: Ground) -> None:
    _, plan = ground
    settings = TrainSettings(curriculum=False, epochs=3, epochs_per_stage=7)
    names = [now[0] for epoch in range(9) if (now := schedule(settings, plan, epoch))]
    assert names == ["round 1", "round 2", "round 1"]


@given(st.integers(0, 2**32), st.integers(0, 20))
def test_an_epochs_order_is_a_function_of_seed_and_epoch(
    ground: Ground, seed: int, epoch: int
) -> None:
    _, plan = ground
    name, order = schedule(TrainSettings(seed=seed), plan, epoch)
    torch.manual_seed(seed)  # nobody's generator has a say, nor what does not concern batches
    again = schedule(TrainSettings(seed=seed, kd_weight=1.0, ce="in-batch"), plan, epoch)
    assert again[0] == name
    assert again[1].tolist() == order.tolist()
    assert len(set(order.tolist())) == len(order)


def test_epochs_and_seeds_have_orders_of_their_own(ground: Ground) -> None:
    _, plan = ground
    settings = TrainSettings(curriculum=False, epochs=20)
    orders = [
        tuple(schedule(dataclasses.replace(settings, seed=seed), plan, epoch)[1].tolist())
        for seed in range(5)
        for epoch in range(0, 20, 2)  # round 1
    ]
    assert len(set(orders)) > 45  # of 50; with a dozen batches chance alone makes no two equal


def test_the_order_never_moves_between_versions(ground: Ground) -> None:
    # golden: raw Philox bits; if this changes, a run that was killed cannot go on to the same weights
    _, plan = ground
    _, order = schedule(TrainSettings(curriculum=False, seed=3), plan, 4)
    bits = np.random.Philox(key=np.array([3, 4], np.uint64)).random_raw(len(order))
    ranked = sorted(range(len(order)), key=lambda place: bits[place])
    assert order.tolist() == [plan.round(1)[place] for place in ranked]


def test_curriculum_epochs_ask_the_teachers_about_easy_batches_only(ground: Ground) -> None:
    trial = Trial(ground, teachers=3, epochs=2)
    asked: list[list[int]] = []

    def on_epoch(state: RunState) -> None:
        assert all(reader.asked == trial.readers[0].asked for reader in trial.readers)
        asked.append(list(trial.readers[0].asked))
        for reader in trial.readers:
            reader.asked.clear()

    state = trial.run(
        on_epoch=on_epoch, kept=Kept(limit=0)
    )  # so that each epoch asks for all it needs
    plan = trial.plan
    easy = [index for index in range(len(plan)) if plan[index].bucket == 0]
    both = [index for index in range(len(plan)) if plan[index].round == 0]
    assert [sorted(one) for one in asked] == [
        easy,
        both,
        plan.round(1).tolist(),
        plan.round(2).tolist(),
    ]
    for epoch, one in enumerate(asked):
        assert one == schedule(trial.settings, plan, epoch)[1].tolist()
    assert [record.stage for record in state.history] == [
        "stage 1/2",
        "stage 2/2",
        "round 1",
        "round 2",
    ]
    half = (plan.num_instances + 1) // 2
    assert [record.instances for record in state.history] == [half] + 3 * [plan.num_instances]
    steps = sum(map(len, asked))
    assert state.step == steps


# ------------------------------------------------------------------------------------- when it stops


def test_patience_counts_standard_epochs_only(ground: Ground) -> None:
    # best in epoch 0; six curriculum epochs (0..5) are never counted, then patience of two ends it after epoch 7
    trial = Trial(
        ground,
        values=lambda epoch: 0.5 if epoch == 0 else 0.4,
        epochs_per_stage=3,
        epochs=50,
        patience=2,
    )
    state = trial.run()
    assert state.epoch == 8
    assert (state.finished, state.stale, state.best, state.best_epoch) == (True, 2, 0.5, 0)


def test_a_better_epoch_gives_new_patience_and_an_equal_one_does_not(ground: Ground) -> None:
    script = [0.1, 0.1, 0.2, 0.2, 0.1, 0.3, 0.3, 0.3, 0.3, 0.9]
    trial = Trial(ground, values=script.__getitem__, curriculum=False, epochs=50, patience=3)
    state = trial.run()
    assert state.epoch == 9  # 0.3 in epoch 5, then three that are not better
    assert state.best_epoch == 5
    assert [record.validation for record in state.history] == script[:9]
    assert [record.epoch for record in state.history] == list(range(9))


def test_only_every_third_epoch_is_validated_and_patience_still_counts_epochs(
    ground: Ground,
) -> None:
    # 2, 5, 8, 11 are validated, 5 is the best; after 8 three epochs were no better, after 11 six: more than four
    script = {2: 0.1, 5: 0.3, 8: 0.3, 11: 0.2}
    trial = Trial(
        ground,
        values=script.__getitem__,
        curriculum=False,
        epochs=50,
        patience=4,
        validate_every=3,
    )
    state = trial.run()
    assert (state.epoch, state.stale, state.best, state.best_epoch) == (12, 6, 0.3, 5)
    assert {one.epoch: one.validation for one in state.history} == {
        epoch: script.get(epoch) for epoch in range(12)
    }
    assert same(state.best_weights, trial.seen[1])


def test_the_last_epoch_is_validated_whatever_its_number(ground: Ground) -> None:
    trial = Trial(ground, curriculum=False, epochs=4, validate_every=3)
    state = trial.run()
    assert [one.validation for one in state.history] == [None, None, 0.02, 0.03]
    trial = Trial(ground, curriculum=False, epochs=2, validate_every=9)
    assert [one.validation for one in trial.run().history] == [None, 0.01]


def test_the_number_of_epochs_is_a_bound(ground: Ground) -> None:
    trial = Trial(ground, epochs=2)
    state = trial.run()
    assert (state.epoch, state.finished, state.stale) == (4, True, 0)
    before = trial.weights()
    assert trial.run() is state  # finished: nothing more happens
    assert same(trial.weights(), before)
    assert len(trial.seen) == 4


def test_the_best_weights_are_kept_as_they_were(ground: Ground) -> None:
    script = [0.1, 0.2, 0.5, 0.3, 0.4]
    trial = Trial(ground, values=script.__getitem__)
    state = trial.run()
    assert state.best_epoch == 2
    assert same(state.best_weights, trial.seen[2])
    assert not same(trial.weights(), trial.seen[2])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("teachers", [0, 2])
def test_a_loss_that_is_no_number_ends_the_run_and_nothing_is_kept(
    ground: Ground, bad: float, teachers: int
) -> None:
    trial = Trial(ground, teachers=teachers)
    with torch.no_grad():
        trial.model.item_embedding.weight[0] = bad
    kept: list[RunState] = []
    with pytest.raises(TeacherError, match="epoch 0: the loss is not a number") as told:
        trial.run(on_epoch=kept.append)
    assert told.value.code == "model.not_finite"
    assert kept == []
    assert trial.seen == []


def test_a_rate_that_blows_the_model_up_is_refused(ground: Ground) -> None:
    trial = Trial(ground, learning_rate=1e30, epochs=20, dropout=0.0)
    with pytest.raises(TeacherError, match="smaller --learning-rate"):
        trial.run()


def test_a_damaged_score_set_ends_the_run(ground: Ground) -> None:
    trial = Trial(ground, teachers=1)
    index = int(trial.plan.round(1)[2])
    trial.readers[0].answers[index] = StoreError("bytes have changed", code="store.wrong_checksum")
    with pytest.raises(StoreError, match="bytes have changed"):
        trial.run()
    assert trial.state.epoch == 2  # both stages were fine


def test_only_a_module_can_be_trained(ground: Ground) -> None:
    trial = Trial(ground)
    trial.model = object()
    with pytest.raises(TypeError, match=r"torch\.nn\.Module expected, found object"):
        trial.run()


# ------------------------------------------------------------------------------------- what a step is


def test_the_same_seed_gives_the_same_weights_whatever_drew_before(ground: Ground) -> None:
    one, other = Trial(ground, teachers=2), Trial(ground, teachers=2)
    torch.manual_seed(1)
    one.run()
    torch.manual_seed(2)
    other.run(on_step=lambda done, total: torch.rand(1))
    assert same(one.weights(), other.weights())


def test_seeds_differ_in_dropout_too_not_only_in_the_order(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, plan = ground
    orders = schedule(TrainSettings(), plan, 0)
    monkeypatch.setattr(
        "student.schedule.schedule", lambda settings, plan, epoch: None if epoch else orders
    )
    trials = [Trial((dataset, plan), seed=seed) for seed in (0, 1)]
    for trial in trials:
        trial.run()
    assert not same(trials[0].weights(), trials[1].weights())
    still = [Trial((dataset, plan), seed=seed, dropout=0.0) for seed in (0, 1)]
    for trial in still:
        trial.run()
    assert same(still[0].weights(), still[1].weights())


MODES = pytest.mark.parametrize(
    ("teachers", "settings"),
    [
        (teachers, {"ce": ce, "kl": kl})
        for teachers in (0, 1, 3)
        for ce in ("full", "in-batch")
        for kl in ("teacher-student", "student-teacher")
    ],
)


def plain_losses(trial: Trial, index: int) -> tuple[Tensor, Tensor]:
    """(cross-entropy, divergence) of a batch from their published parts."""
    (batch,) = prepared(trial.dataset, trial.plan, [index], trial.readers, trial.settings.join)
    logits_TV = trial.model.encode(batch.packed) @ trial.model.item_table().T
    logits_TC = logits_TV[:, batch.items_C]
    full = trial.settings.ce == "full"
    ce = cross_entropy(*((logits_TV, batch.rows_T) if full else (logits_TC, batch.columns_T)))
    if batch.target is None:
        return ce, torch.zeros(())
    return ce, distillation_loss(logits_TC, batch.target.q_TC, trial.settings.kl)


@MODES
def test_a_step_follows_eq_10(ground: Ground, teachers: int, settings: dict[str, Any]) -> None:
    trial = Trial(ground, teachers=teachers, dropout=0.0, **settings)
    index = 3
    ce, kd = plain_losses(trial, index)
    expected = torch.autograd.grad(
        ce + trial.settings.kd_weight * kd, list(trial.model.parameters())
    )
    (batch,) = prepared(trial.dataset, trial.plan, [index], trial.readers, trial.settings.join)
    total, got_ce, got_kd = step_loss(trial.model, batch, trial.settings)
    assert got_ce.item() == pytest.approx(ce.item(), rel=1e-5)
    assert got_kd.item() == pytest.approx(kd.item(), rel=1e-4, abs=1e-6)
    got = torch.autograd.grad(total, list(trial.model.parameters()))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@MODES
def test_an_epochs_record_is_the_mean_over_instances_not_over_batches(
    ground: Ground, teachers: int, settings: dict[str, Any]
) -> None:
    # nothing is learnt, so every batch meets the same model
    trial = Trial(
        ground,
        teachers=teachers,
        dropout=0.0,
        learning_rate=0.0,
        epochs=1,
        curriculum=False,
        **settings,
    )
    record = trial.run().history[0]
    order = schedule(trial.settings, trial.plan, 0)[1]
    sizes = [len(trial.plan[int(index)].instances) for index in order]
    assert len(set(sizes)) > 1
    with torch.no_grad():
        losses = [plain_losses(trial, int(index)) for index in order]
    ce = sum(n * ce.item() for n, (ce, _) in zip(sizes, losses, strict=True)) / sum(sizes)
    kd = sum(n * kd.item() for n, (_, kd) in zip(sizes, losses, strict=True)) / sum(sizes)
    assert record.ce == pytest.approx(ce, rel=1e-5)
    assert record.kd == pytest.approx(kd, rel=1e-4, abs=1e-6)


def test_training_learns_and_the_teachers_are_heard(ground: Ground) -> None:
    common = {"dropout": 0.0, "epochs": 8, "learning_rate": 0.02, "curriculum": False}
    base = Trial(ground, **common).run().history
    taught = Trial(ground, teachers=1, **common).run().history
    assert base[-1].ce < base[0].ce - 0.1
    assert {record.kd for record in base} == {0.0}
    assert taught[-1].kd < taught[0].kd
    deaf = Trial(ground, teachers=1, kd_weight=0.0, **common).run().history
    assert [record.ce for record in deaf] == pytest.approx([record.ce for record in base])
    assert taught[-1].kd < deaf[-1].kd / 2


def test_the_model_trains_in_training_mode_and_progress_is_told(ground: Ground) -> None:
    trial = Trial(ground, epochs=1, curriculum=False)
    told: list[tuple[int, int]] = []

    def on_step(done: int, total: int) -> None:
        assert trial.model.training
        told.append((done, total))

    trial.run(on_step=on_step)
    count = len(trial.plan.round(1))
    assert told == [(done, count) for done in range(1, count + 1)]


@pytest.mark.parametrize("settings", [{}, {"ce": "in-batch"}, {"kl": "student-teacher"}])
def test_bfloat16_autocast_trains_on_the_processor_too(
    ground: Ground, settings: dict[str, Any]
) -> None:
    exact = Trial(ground, teachers=2, dropout=0.0, **settings).run().history
    rounded = Trial(ground, teachers=2, dropout=0.0, amp=True, **settings).run().history
    for one, other in zip(rounded, exact, strict=True):
        assert one.ce == pytest.approx(other.ce, rel=1e-2)
        assert one.kd == pytest.approx(other.kd, rel=5e-2, abs=1e-3)


def test_adam_gets_the_settings(ground: Ground) -> None:
    trial = Trial(ground, learning_rate=0.5, weight_decay=0.25)
    (group,) = trial.optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.25)
    assert len(group["params"]) == len(list(trial.model.parameters()))
