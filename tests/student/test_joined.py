"""Joined targets are kept: read once, the same bits, never more than the limit."""

from __future__ import annotations

import pytest
import torch

from student.batches import UNPLANNED
from student.joined import Joined
from student.prepared import prepared
from student.targets import Target, join_settings
from tests.student.known import Ground, KnownScores
from tests.student.trial import Trial, same


def target(slots: int, columns: int, *, all_items: bool = False) -> Target:
    return Target(q_TC=torch.ones(slots, columns), entropy=0.0, all_items=all_items)


@pytest.mark.parametrize("count", [1, 3])
def test_every_batch_is_read_once_however_many_epochs_come(ground: Ground, count: int) -> None:
    # two curriculum stages of round 0, then rounds 1, 2, 1, 2: every batch of the plan, some three times
    trial = Trial(ground, teachers=count, epochs=4)
    state = trial.run()
    assert state.epoch == 6
    for reader in trial.readers:
        assert sorted(reader.asked) == list(range(len(trial.plan)))


def test_a_run_ends_in_the_same_bits_whether_targets_are_kept_or_not(ground: Ground) -> None:
    kept, anew = Trial(ground, teachers=3, epochs=4), Trial(ground, teachers=3, epochs=4)
    histories = [one.run(kept=Joined(limit)).history for one, limit in ((kept, 1 << 20), (anew, 0))]
    assert len(anew.readers[0].asked) > len(kept.readers[0].asked)
    assert histories[0] == histories[1]
    assert same(kept.weights(), anew.weights())


def test_up_to_the_limit_the_first_batches_are_kept() -> None:
    # 3 x 5 numbers of 4 bytes take 60; 130 bytes hold two of them, and 10 are left: enough for 2 numbers
    joined = Joined(limit=130)
    targets = {index: target(3, 5) for index in (7, 2, 5)}
    for index, one in targets.items():
        joined.put(index, one)
    joined.put(9, target(1, 2))
    joined.put(9, target(1, 2))  # again: takes no more room
    assert joined.get(7) is targets[7]
    assert joined.get(2) is targets[2]
    assert joined.get(5) is None
    assert len(joined) == 3
    joined.put(4, target(1, 1))
    assert joined.get(4) is None  # 2 bytes are left


def test_what_would_not_come_again_is_not_kept() -> None:
    joined = Joined()
    joined.put(UNPLANNED, target(1, 1))
    joined.put(3, target(1, 1, all_items=True))
    assert len(joined) == 0


def test_without_room_every_epoch_reads_anew(ground: Ground) -> None:
    dataset, plan = ground
    reader = KnownScores(plan)
    joined = Joined(limit=0)
    for _ in range(2):
        list(prepared(dataset, plan, [1, 2], [reader], join_settings([reader]), kept=joined))
    assert reader.asked == [1, 2, 1, 2]
