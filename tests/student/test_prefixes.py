"""Batches by user: who meets, that one causal pass gives each prefix its state, and whose items are no negatives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from cache.errors import UsageError
from cache.plan import Batch
from encoder.packed import Packed
from student.batches import FreshBatches
from student.loop import train
from student.losses import fused_loss
from student.prefixes import own_items, shared
from student.prepared import prepared
from student.registry import find_student
from student.steps import step_loss
from tests.student.known import Ground, student
from tests.student.trial import Trial

MODES = pytest.mark.parametrize("ce", ["full", "in-batch"])


def by_user(ground: Ground, size: int, epoch: int = 0) -> list[Batch]:
    _, plan = ground
    everything = np.arange(plan.num_instances, dtype=np.int32)
    batches = FreshBatches(plan, everything, size, seed=3, epoch=epoch, by_user=True)
    return [batches[index] for index in range(len(batches))]


@given(size=st.integers(1, 40), epoch=st.integers(0, 3))
def test_every_instance_comes_once_and_a_users_stand_together_by_time(ground, size, epoch):
    _, plan = ground
    batches = by_user(ground, size, epoch)
    met = np.concatenate([batch.instances for batch in batches])
    assert sorted(met) == list(range(plan.num_instances))
    assert all(1 <= len(batch.instances) <= size for batch in batches)
    counts = np.bincount(plan.instance_users)
    for user in range(len(counts)):
        places = np.flatnonzero(plan.instance_users[met] == user)
        assert (np.diff(plan.instance_ends[met[places]]) > 0).all() or counts[user] > size
        homes = [index for index, batch in enumerate(batches) if user in batch.users]
        # a user is cut only where one batch cannot hold all
        assert len(homes) <= -(-counts[user] // size)
    assert [b.instances.tolist() for b in batches] == [
        b.instances.tolist() for b in by_user(ground, size, epoch)
    ]


def test_another_epoch_has_another_order(ground):
    assert (
        len({str([b.users.tolist() for b in by_user(ground, 6, epoch)]) for epoch in range(4)}) == 4
    )


@pytest.mark.parametrize("longest", [2, 3, 50])
def test_one_pass_gives_each_prefix_the_state_of_its_own_history(ground, longest):
    dataset, _ = ground
    dataset = replace(
        dataset,
        manifest=replace(
            dataset.manifest, settings={**dataset.manifest.settings, "max_length": longest}
        ),
    )
    assert dataset.max_length == longest
    model = student(dataset).eval()
    shorter = False
    for batch in by_user(ground, 12):
        packed = shared(dataset, batch)
        one_by_one = Packed.of(*dataset.histories(batch.users, batch.ends))
        torch.testing.assert_close(
            model.encode(packed), model.encode(one_by_one), rtol=1e-5, atol=1e-6
        )
        assert packed.users is not None
        assert packed.users.tolist() == batch.users.tolist()
        shorter |= len(packed.items) < len(one_by_one.items)
    assert shorter


def test_own_items_by_hand(ground):
    dataset, _ = ground
    for batch in by_user(ground, 9):
        own_TC = own_items(dataset, batch)
        for slot, (user, column) in enumerate(zip(batch.users, batch.columns, strict=True)):
            ends = batch.ends[batch.users == user]
            sequence = dataset.sequence(int(user))
            window = sequence[max(max(ends) - dataset.max_length, 0) : max(ends)]
            own = {*window.tolist(), *sequence[ends].tolist()}
            wanted = [
                item in own and place != column for place, item in enumerate(batch.items.tolist())
            ]
            assert own_TC[slot].tolist() == wanted


def test_what_is_left_out_is_no_negative():
    torch.manual_seed(0)
    users = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    table = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([0, 4, 2])
    left_out = torch.zeros(3, 5, dtype=torch.bool)
    left_out[0, 1] = left_out[0, 4] = left_out[2, 0] = True
    expected = F.cross_entropy((users @ table.T).masked_fill(left_out, -torch.inf), rows)
    total, ce, _ = fused_loss(users, table, rows, left_out_TV=left_out)
    assert ce.item() == pytest.approx(expected.item(), rel=1e-12)
    for one, other in zip(
        torch.autograd.grad(total, (users, table)),
        torch.autograd.grad(expected, (users, table)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@MODES
@pytest.mark.parametrize("teachers", [0, 1])
def test_a_step_by_user_is_the_step_over_its_instances(ground, ce, teachers):
    """Without dropout a batch by user has the loss and the gradients of the same instances one by one."""
    trial = Trial(ground, teachers=teachers, factors=True, dropout=0.0, ce=ce)
    dataset, plan = ground
    everything = np.arange(plan.num_instances, dtype=np.int32)
    batches = FreshBatches(plan, everything, 10, seed=0, epoch=0, by_user=True)
    join = trial.settings.join
    (made,) = prepared(dataset, batches, [1], trial.readers, join, own=ce == "in-batch")
    (plain,) = prepared(
        dataset, [batches[index] for index in range(len(batches))], [1], trial.readers, join
    )
    assert (made.own_TC is not None) == (ce == "in-batch")
    model = trial.model.eval()
    found = []
    for batch in (made, replace(plain, own_TC=made.own_TC)):
        total, *_ = step_loss(model, batch, trial.settings)
        model.zero_grad()
        total.backward()
        found.append([total.detach(), *(p.grad.clone() for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_training_goes_by_user(ground):
    trial = Trial(ground, teachers=1, factors=True, batch_size=8, batching="user", epochs=2)
    state = trial.run()
    assert [record.instances for record in state.history] == [16, 31, 31, 31]
    users = ground[1].instance_users
    for met in trial.readers[0].met:
        assert len(set(users[met].tolist())) == (np.diff(users[met], prepend=-1) != 0).sum()


def test_a_student_without_states_along_a_sequence_is_refused(ground):
    dataset, plan = ground
    kind = find_student("gru4rec")
    model = kind.make(kind.config(), dataset)
    settings = replace(Trial(ground, batch_size=8).settings, batching="user")
    with pytest.raises(UsageError, match="--batching user: GRU4Rec gives no states") as caught:
        train(model, dataset, plan, (), settings, validate=lambda: 0.0)
    assert caught.value.code == "fit.not_causal"


def test_no_instances_make_no_batches(ground):
    for by_user in (True, False):
        nobody = np.empty(0, np.int32)
        assert len(FreshBatches(ground[1], nobody, 4, seed=0, epoch=0, by_user=by_user)) == 0


def test_own_items_are_no_negatives_of_a_student_that_scores_by_itself(ground):
    """As of one that scores by vectors: the same model, behind `logits` alone."""
    dataset, plan = ground
    trial = Trial(ground, dropout=0.0, ce="in-batch")

    class Behind(torch.nn.Module):
        def logits(self, packed, items_C=None):
            return trial.model.encode(packed) @ trial.model.item_table()[items_C].T

    everything = np.arange(plan.num_instances, dtype=np.int32)
    batches = FreshBatches(plan, everything, 10, seed=0, epoch=0, by_user=True)
    (batch,) = prepared(dataset, batches, [1], (), None, own=True)
    trial.model.eval()
    by_vectors, by_itself = (
        step_loss(one, batch, trial.settings)[0].item() for one in (trial.model, Behind())
    )
    assert by_itself == pytest.approx(by_vectors, rel=1e-5)
    unmasked = step_loss(trial.model, replace(batch, own_TC=None), trial.settings)[0].item()
    assert unmasked > by_vectors + 1e-3
