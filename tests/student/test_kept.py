"""Batches are kept: made once, the same bits, never more than the limit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from encoder.packed import Packed
from student.batches import UNPLANNED, FreshBatches, instances_of
from student.kept import Kept
from student.prepared import prepared
from student.ready import Prepared
from student.targets import Target, join_settings
from tests.student.known import Ground, KnownScores
from tests.student.trial import Trial, same


def batch(slots: int, columns: int, *, all_items: bool = False) -> Prepared:
    """4 bytes a slot and column, 8 a column for its item, and 40 a slot: the one item of its history, where that stands,
    where the history ends, its target's column and item."""
    packed = Packed.of(np.zeros(slots, np.int32), np.ones(slots, np.int32), tiled=False)
    whole = torch.zeros(slots, dtype=torch.int64)
    return Prepared(
        slots=slots,
        packed=packed,
        items_C=torch.zeros(columns, dtype=torch.int64),
        columns_T=whole,
        rows_T=whole,
        target=Target(q_TC=torch.ones(slots, columns), entropy=0.0, all_items=all_items),
    )


@pytest.mark.parametrize("count", [1, 3])
def test_every_batch_is_read_once_however_many_epochs_come(ground: Ground, count: int) -> None:
    # two curriculum stages of round 0, then rounds 1, 2, 1, 2: every batch of the plan, some three times
    trial = Trial(ground, teachers=count, epochs=4)
    state = trial.run()
    assert state.epoch == 6
    for reader in trial.readers:
        assert sorted(reader.asked) == list(range(len(trial.plan)))


def test_a_run_ends_in_the_same_bits_whether_batches_are_kept_or_not(ground: Ground) -> None:
    kept, anew = Trial(ground, teachers=3, epochs=4), Trial(ground, teachers=3, epochs=4)
    histories = [one.run(kept=Kept(limit)).history for one, limit in ((kept, 1 << 20), (anew, 0))]
    assert len(anew.readers[0].asked) > len(kept.readers[0].asked)
    assert histories[0] == histories[1]
    assert same(kept.weights(), anew.weights())


def test_up_to_the_limit_the_first_batches_are_kept() -> None:
    # 3 slots and 5 columns take 60 + 40 + 120 bytes; 510 hold two of them, and 70 are left: enough for 8 + 16 + 40
    assert [batch(3, 5).nbytes, batch(1, 2).nbytes, batch(1, 1).nbytes] == [220, 64, 52]
    kept = Kept(limit=510)
    batches = {index: batch(3, 5) for index in (7, 2, 5)}
    for index, one in batches.items():
        kept.put(index, one)
    kept.put(9, batch(1, 2))
    kept.put(9, batch(1, 2))  # again: takes no more room
    assert kept.get(7) is batches[7]
    assert kept.get(2) is batches[2]
    assert kept.get(5) is None
    assert len(kept) == 3
    kept.put(4, batch(1, 1))
    assert kept.get(4) is None  # 6 bytes are left


def test_what_attention_needs_counts_too(ground: Ground) -> None:
    dataset, plan = ground
    (tiled,) = prepared(dataset, plan, [0], (), None)
    (plain,) = prepared(dataset, plan, [0], (), None, tiled=False)
    more = sum(t.nbytes for one in tiled.packed.tiles for t in (one.tokens, one.places, one.mask))
    assert tiled.nbytes == plain.nbytes + more + tiled.packed.untiled.nbytes
    assert more > 0


def test_what_would_not_come_again_is_not_kept() -> None:
    kept = Kept()
    kept.put(UNPLANNED, batch(1, 1))
    kept.put(3, batch(1, 1, all_items=True))
    assert len(kept) == 0


def test_without_room_every_epoch_reads_anew(ground: Ground) -> None:
    dataset, plan = ground
    reader = KnownScores(plan)
    kept = Kept(limit=0)
    for _ in range(2):
        list(prepared(dataset, plan, [1, 2], [reader], join_settings([reader]), kept=kept))
    assert reader.asked == [1, 2, 1, 2]


def test_a_batch_that_is_kept_is_not_made_again(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, plan = ground
    kept = Kept()
    first = list(prepared(dataset, plan, [1, 2], (), None, kept=kept))
    monkeypatch.setattr(Packed, "of", None)  # whoever made one would fail
    again = list(prepared(dataset, plan, [2, 1], (), None, kept=kept))
    assert [id(one) for one in again] == [id(one) for one in reversed(first)]


def test_fresh_batches_are_made_each_time(ground: Ground) -> None:
    dataset, plan = ground
    fresh = FreshBatches(plan, instances_of(plan, plan.round(1)), 4, seed=0, epoch=0)
    kept = Kept()
    first, again = (list(prepared(dataset, fresh, [0, 1], (), None, kept=kept)) for _ in range(2))
    assert len(kept) == 0
    for one, other in zip(first, again, strict=True):
        assert one is not other
        assert torch.equal(one.rows_T, other.rows_T)
