"""Batches made ready ahead: the same in any case, errors where they belong, no thread left behind."""

from __future__ import annotations

import gc
import math
import queue
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cache import thread
from cache.errors import StoreError
from cache.plan import Batch, Plan
from student.consistency import join, retemper
from student.prepared import prepared
from student.ready import Prepared
from student.targets import join_settings, target_of
from tests.student.known import Ground, KnownScores


def workers() -> list[thread.Thread]:
    """The threads that prepare batches and have not ended."""
    return [one for one in thread._threads if not one.ended]


@pytest.fixture(autouse=True)
def no_thread_is_left_behind() -> Iterator[None]:
    assert not workers()
    yield
    assert not workers()


def teachers(plan: Plan, count: int) -> list[KnownScores]:
    return [
        KnownScores(plan, name=f"teacher{k}", seed=k, tau=0.3 + 0.1 * k, quality=0.1 * (k + 1))
        for k in range(count)
    ]


def tensors(batch: Prepared) -> list[Tensor]:
    packed = batch.packed
    found = [packed.items, packed.positions, packed.last, packed.untiled]
    found += [part for tile in packed.tiles for part in (tile.tokens, tile.places, tile.mask)]
    found += [batch.items_C, batch.columns_T, batch.rows_T]
    return found + ([batch.target.q_TC] if batch.target else [])


def equal(one: Prepared, other: Prepared) -> bool:
    entropies = [batch.target and batch.target.entropy for batch in (one, other)]
    return entropies[0] == entropies[1] and all(map(torch.equal, tensors(one), tensors(other)))


# ------------------------------------------------------------------------------------- what a batch is


def test_a_batch_holds_what_the_plan_says(ground: Ground) -> None:
    dataset, plan = ground
    for index, batch in enumerate(prepared(dataset, plan, range(len(plan)), (), None)):
        planned = plan[index]
        assert batch.slots == len(planned.instances)
        assert batch.items_C.tolist() == planned.items.tolist()
        assert batch.rows_T.tolist() == dataset.targets(planned.users, planned.ends).tolist()
        assert torch.equal(batch.items_C[batch.columns_T], batch.rows_T)
        histories = [
            dataset.sequence(user)[max(0, end - 4) : end].tolist()  # cut at four items
            for user, end in zip(planned.users, planned.ends, strict=True)
        ]
        assert batch.packed.items.tolist() == [item for one in histories for item in one]
        assert (
            batch.packed.last.tolist() == (np.cumsum([len(one) for one in histories]) - 1).tolist()
        )
        assert batch.target is None


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_target_is_the_join_of_what_the_teachers_said_of_that_batch(
    ground: Ground, count: int
) -> None:
    dataset, plan = ground
    readers = teachers(plan, count)
    settings = join_settings(readers, tau=0.2, epsilon=0.1)
    order = [5, 0, len(plan) - 1]
    for index, batch in zip(order, prepared(dataset, plan, order, readers, settings), strict=True):
        planned = plan[index]
        scores = [
            torch.softmax(
                torch.from_numpy(r.raw_UV[np.ix_(planned.users, planned.items)] / 0.2), dim=-1
            )
            for r in readers
        ]
        weights = torch.tensor(settings.weights, dtype=torch.float64)
        expected = join(torch.stack(scores), weights, epsilon=0.1)
        assert batch.target is not None
        # stored at half precision and retempered: a few per mille
        torch.testing.assert_close(batch.target.q_TC.double(), expected, rtol=2e-2, atol=1e-4)
        torch.testing.assert_close(batch.target.q_TC.sum(dim=-1), torch.ones(batch.slots))
        entropy = torch.special.entr(batch.target.q_TC.double()).sum(dim=-1).mean()
        assert batch.target.entropy == pytest.approx(entropy.item(), abs=1e-5)


def batch_of(slots: int, columns: int, index: int = 0) -> Batch:
    ids = np.arange(slots, dtype=np.int32)
    return Batch(
        index=index,
        round=1,
        bucket=-1,
        instances=ids,
        users=ids,
        ends=ids + 1,
        items=np.arange(columns, dtype=np.int32),
        columns=ids % columns,
    )


def says(plan: Plan, rows: Any, **more: Any) -> KnownScores:
    reader = KnownScores(plan, **{"tau": 1.0, **more})
    with np.errstate(divide="ignore"):
        reader.answers[0] = np.log(np.array(rows)).astype(np.float16)
    return reader


def test_targets_and_entropy_by_hand(ground: Ground) -> None:
    _, plan = ground
    batch = batch_of(2, 2)
    reader = says(plan, [[0.5, 0.5], [0.75, 0.25]])
    target = target_of([reader], batch, join_settings([reader]))
    torch.testing.assert_close(
        target.q_TC, torch.tensor([[0.5, 0.5], [0.75, 0.25]]), rtol=0, atol=1e-3
    )
    # log 2, and 3/4 log 4/3 + 1/4 log 4
    entropy = (math.log(2) + 0.75 * math.log(4 / 3) + 0.25 * math.log(4)) / 2
    assert target.entropy == pytest.approx(entropy, abs=1e-3)
    # two teachers of equal weight: the second row is the mean of (3/4, 1/4) and (1/4, 3/4)
    other = says(plan, [[0.5, 0.5], [0.25, 0.75]])
    target = target_of([reader, other], batch, join_settings([reader, other]))
    torch.testing.assert_close(target.q_TC, torch.full((2, 2), 0.5), rtol=0, atol=1e-3)
    assert target.entropy == pytest.approx(math.log(2), abs=1e-3)
    # half the temperature squares the odds: 3 : 1 becomes 9 : 1
    target = target_of([reader], batch, join_settings([reader], tau=0.5))
    torch.testing.assert_close(
        target.q_TC, torch.tensor([[0.5, 0.5], [0.9, 0.1]]), rtol=0, atol=2e-3
    )


def test_each_teacher_is_retempered_from_its_own_temperature(ground: Ground) -> None:
    # one scores at tau 1/2, where odds of 3 : 1 are 9 : 1; asked at tau 1 both say the same
    _, plan = ground
    one, other = says(plan, [[0.75, 0.25]]), says(plan, [[0.9, 0.1]], tau=0.5)
    target = target_of([one, other], batch_of(1, 2), join_settings([one, other], tau=1.0))
    torch.testing.assert_close(target.q_TC, torch.tensor([[0.75, 0.25]]), rtol=0, atol=2e-3)


def test_the_settings_reach_the_join(ground: Ground) -> None:
    # Fig. 2's numbers made rows of three items: pair by pair, by user and never drop differently
    _, plan = ground
    said = [[0.3, 0.3, 0.4], [0.32, 0.05, 0.63], [0.1, 0.1, 0.8]]
    readers = [says(plan, [row], name=f"t{k}") for k, row in enumerate(said)]
    stored = [retemper(torch.from_numpy(np.float32(r.answers[0])), 1, 1).exp() for r in readers]
    found = []
    for consistency in ("pair", "user", "off"):
        for epsilon in (0.0, "1q"):
            settings = join_settings(
                readers,
                weights={"t0": 0.5, "t1": 0.3, "t2": 0.2},
                consistency=consistency,
                epsilon=epsilon,
            )
            target = target_of(readers, batch_of(1, 3), settings)
            expected = join(
                torch.stack(stored),
                torch.tensor([0.5, 0.3, 0.2]),
                epsilon=epsilon,
                by=consistency,
            )
            torch.testing.assert_close(target.q_TC, expected)
            found.append(tuple(target.q_TC[0].tolist()))
    assert len(set(found)) == 3  # pair, user, and all kept


@pytest.mark.parametrize("count", [1, 2])
def test_a_target_has_no_zero_however_sure_the_teacher(ground: Ground, count: int) -> None:
    _, plan = ground
    readers = [says(plan, [[1.0, 1e-7]], tau=10.0, name=f"t{k}") for k in range(count)]
    target = target_of(readers, batch_of(1, 2), join_settings(readers, tau=0.1))
    assert target.q_TC.min().item() == pytest.approx(1e-8, rel=1e-3)
    assert 0 <= target.entropy < 1e-6


# ------------------------------------------------------------------------------------- in what order


@given(st.data(), st.sampled_from([0, 1, 2, 7]), st.integers(0, 3))
def test_batches_come_as_ordered_however_far_ahead(
    ground: Ground, data: Any, ahead: int, count: int
) -> None:
    dataset, plan = ground
    order = data.draw(st.lists(st.integers(0, len(plan) - 1), max_size=12))
    readers = teachers(plan, count)
    settings = join_settings(readers, tau=0.3) if readers else None
    found = list(prepared(dataset, plan, order, readers, settings, most=ahead))
    assert len(found) == len(order)
    for index, batch in zip(order, found, strict=True):
        (alone,) = prepared(dataset, plan, [index], readers, settings)
        assert equal(batch, alone)
    assert all(reader.asked == order + order for reader in readers)


@pytest.mark.parametrize("most", [0, 1, 3])
def test_no_more_than_asked_for_is_held(
    ground: Ground, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, plan = ground
    full = threading.Event()

    class Watched(queue.SimpleQueue):
        def get(self, *args: Any, **named: Any) -> object:
            try:
                return super().get(*args, **named)
            except queue.Empty:  # the thread waits for room
                full.set()
                raise

    monkeypatch.setattr("student.ahead.queue.SimpleQueue", Watched)
    (reader,) = teachers(plan, 1)
    batches = prepared(
        dataset, plan, range(len(plan)), [reader], join_settings([reader]), most=most
    )
    for taken in range(1, 4):
        next(batches)
        full.clear()
        assert full.wait(timeout=20)
        # those taken and those that wait
        assert len(reader.asked) == taken + max(1, most)
    batches.close()


def test_nothing_runs_before_the_first_batch_is_asked_for(ground: Ground) -> None:
    dataset, plan = ground
    (reader,) = teachers(plan, 1)
    batches = prepared(dataset, plan, [0], [reader], join_settings([reader]))
    assert not workers()
    assert not reader.asked
    assert len(list(batches)) == 1


def test_a_batch_goes_whole_to_the_device_asked_for(ground: Ground) -> None:
    dataset, plan = ground
    (reader,) = teachers(plan, 1)
    settings = join_settings([reader])
    for batch in prepared(dataset, plan, [0, 5], [reader], settings, device="meta"):
        assert all(tensor.is_meta for tensor in tensors(batch))
        assert math.isfinite(batch.target.entropy)


# ------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    "error",
    [
        StoreError("c.0.0.0: the bytes have changed", code="store.wrong_checksum"),
        ValueError("an error nobody foresaw"),
        KeyboardInterrupt(),
    ],
)
@pytest.mark.parametrize("ahead", [1, 2, 9])
def test_an_error_surfaces_at_the_batch_it_belongs_to(
    ground: Ground, error: BaseException, ahead: int
) -> None:
    dataset, plan = ground
    (reader,) = teachers(plan, 1)
    reader.answers[7] = error
    batches = prepared(dataset, plan, [3, 1, 7, 2], [reader], join_settings([reader]), most=ahead)
    assert next(batches).slots == len(plan[3].instances)
    assert next(batches).slots == len(plan[1].instances)
    with pytest.raises(type(error)) as told:
        next(batches)
    assert told.value is error
    assert not workers()
    with pytest.raises(StopIteration):  # it is over, not stuck
        next(batches)
    assert reader.asked == [3, 1, 7]


def test_a_batch_that_the_plan_does_not_have_is_an_error_in_its_turn(ground: Ground) -> None:
    dataset, plan = ground
    batches = prepared(dataset, plan, [0, len(plan)], (), None)
    next(batches)
    with pytest.raises(IndexError, match=f"batch {len(plan)} of a plan of {len(plan)} batches"):
        next(batches)


@pytest.mark.parametrize("taken", [1, 2])
def test_closing_the_iterator_ends_its_thread(ground: Ground, taken: int) -> None:
    dataset, plan = ground
    batches = prepared(dataset, plan, range(len(plan)), (), None)
    for _ in range(taken):
        next(batches)
    assert len(workers()) == 1
    batches.close()
    assert not workers()


def test_what_is_next_to_nothing_starts_no_thread(ground: Ground) -> None:
    dataset, plan = ground
    order = [2, 0, 1]
    by_thread = list(prepared(dataset, plan, order, (), None))
    batches = prepared(dataset, plan, order, (), None, tiled=False)
    for expected in by_thread:
        batch = next(batches)
        assert not workers()
        for name in ("items_C", "columns_T", "rows_T"):
            assert torch.equal(getattr(batch, name), getattr(expected, name))
        for name in ("items", "positions", "last", "users"):
            assert torch.equal(getattr(batch.packed, name), getattr(expected.packed, name))
    with pytest.raises(StopIteration):
        next(batches)


def test_leaving_the_loop_ends_its_thread(ground: Ground) -> None:
    dataset, plan = ground
    for _ in prepared(dataset, plan, range(len(plan)), (), None):
        break
    assert not workers()


def test_an_error_in_the_loop_ends_its_thread(ground: Ground) -> None:
    dataset, plan = ground

    def loop() -> None:
        for batch in prepared(dataset, plan, range(len(plan)), (), None):
            raise RuntimeError(f"{batch.slots} slots")

    with pytest.raises(RuntimeError, match="4 slots"):
        loop()
    gc.collect()  # the traceback held it


def test_an_iterator_lost_in_a_cycle_may_be_collected_by_its_own_thread(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, plan = ground
    complaints: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    lost = threading.Event()

    class Order(list):  # read by the thread
        def __iter__(self) -> Iterator[int]:
            yield 0
            assert lost.wait(timeout=20)
            gc.collect()
            yield 1

    gc.disable()  # so that nobody else collects it
    try:
        batches = prepared(dataset, plan, Order(), (), None)
        next(batches)
        (worker,) = workers()
        cycle: list[Any] = [batches]
        cycle.append(cycle)
        del batches, cycle
        lost.set()
        for _ in range(2000):
            time.sleep(0 if worker.ended else 0.01)
    finally:
        gc.enable()
    assert worker.ended
    assert complaints == []


@pytest.mark.parametrize("shape", [(1, 1), (4, 4, 1), (4,), (5, 4)])
@pytest.mark.parametrize("wrong", [0, 1])
def test_scores_of_another_shape_are_refused_by_batch_and_teacher(
    ground: Ground, shape: tuple[int, ...], wrong: int
) -> None:
    dataset, plan = ground
    readers = teachers(plan, 2)
    readers[wrong].answers[2] = np.zeros(shape, np.float16)
    expected = (len(plan[2].instances), len(plan[2].items))
    batches = prepared(dataset, plan, [1, 2], readers, join_settings(readers, tau=0.3))
    next(batches)
    with pytest.raises(StoreError) as told:
        next(batches)
    assert told.value.code == "store.wrong_shape"
    assert f"batch 2: scores of shape {shape} by teacher{wrong} found, {expected} expected" in str(
        told.value
    )


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_refused_not_blamed_on_the_student(
    ground: Ground, count: int, bad: float
) -> None:
    dataset, plan = ground
    readers = teachers(plan, count)
    scores = readers[0][2].copy()
    scores[1, 0] = bad
    readers[0].answers[2] = scores
    with pytest.raises(StoreError, match=r"batch 2: the scores of teacher0.* not a number") as told:
        list(prepared(dataset, plan, [1, 2], readers, join_settings(readers, tau=0.3)))
    assert told.value.code == "store.not_finite"
