"""Joining teachers as HetComp does: who stands where, who moves on, and a run that was killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.errors import StoreError, UsageError
from cache.plan import Batch
from cache.store import Store
from pipeline.fit import fit
from pipeline.runs import Run
from student.hetcomp import HetComp, HetCompSettings
from student.permutations import top_columns
from student.schedule import TrainSettings
from student.state import RunState
from tests.fakes import tree
from tests.student.known import Ground, KnownFactors, KnownScores
from tests.student.small import Answers, shop, small

STATES = (3, 1)  # two checkpoints and the teacher, and a teacher without any


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return shop(tmp_path_factory.mktemp("shop") / "store")


def joined(
    ground: Ground, *, kind: Any = KnownScores, **settings: Any
) -> tuple[HetComp, list[Any]]:
    dataset, plan = ground
    more = {"items": dataset.num_items} if kind is KnownFactors else {}
    readers = [kind(plan, seed=seed, name=f"t{seed}", **more) for seed in range(sum(STATES))]
    given = HetCompSettings(**{"states": STATES, "top": 4, **settings})
    return HetComp(plan, readers, given, num_items=dataset.num_items), readers


def numbers_of(join: HetComp, batch: Batch) -> list[list[int]]:
    return join.memory["states"][torch.from_numpy(batch.instances.astype(np.int64))].tolist()


def answered(reader: KnownScores, batch: Batch, size: int) -> Any:
    return top_columns(torch.from_numpy(reader[batch.index].astype(np.float32)), size)


def agreeing(list_TL: torch.Tensor, columns: int) -> torch.Tensor:
    """Logits of a student whose ranking begins with the list."""
    logits = torch.zeros(len(list_TL), columns)
    size = list_TL.shape[1]
    return logits.scatter(1, list_TL, torch.arange(size, 0, -1.0).expand(list_TL.shape))


def test_a_teacher_moves_on_where_the_student_is_nearer_to_its_next_state(ground: Ground) -> None:
    join, readers = joined(ground)
    batch = ground[1][0]
    lists = join.lists(batch)
    size = len(batch.items) // 2
    assert torch.equal(lists.now_KTL[0], answered(readers[0], batch, size))
    assert torch.equal(lists.next_KTL[0], answered(readers[1], batch, size))
    # who has one state only stays there
    assert torch.equal(lists.now_KTL[1], answered(readers[3], batch, size))
    assert torch.equal(lists.next_KTL[1], lists.now_KTL[1])
    assert not lists.final_T.any()

    near, far = (agreeing(one, len(batch.items)) for one in (lists.next_KTL[0], lists.now_KTL[0]))
    rows = torch.tensor([True] + [False] * (len(near) - 1))[:, None]
    apart = ~torch.isclose(near, far).all(dim=1)
    assert apart[0]
    join.hear(lists, torch.where(rows, near, far), epoch=0)
    assert numbers_of(join, batch)[0] == [0, 0]  # not within the epoch
    join.turn()
    assert numbers_of(join, batch) == [[1, 0]] + [[0, 0]] * (len(near) - 1)
    again = join.lists(batch)
    assert torch.equal(again.now_KTL[0, 0], lists.next_KTL[0, 0])
    assert torch.equal(again.now_KTL[0, 1:], lists.now_KTL[0, 1:])
    assert torch.equal(again.next_KTL[0, :1], answered(readers[2], batch, size)[:1])


def test_every_teacher_comes_to_its_end_once_alpha_has_fallen_below_one(ground: Ground) -> None:
    # 1.05 * 0.995^9 = 1.0037 and 1.05 * 0.995^10 = 0.9987
    join, _ = joined(ground)
    batch = ground[1][0]
    stubborn = agreeing(join.lists(batch).now_KTL[0], len(batch.items))
    for epoch in range(10):
        join.hear(join.lists(batch), stubborn, epoch)
        join.turn()
    assert numbers_of(join, batch) == [[0, 0]] * len(stubborn)
    for epoch in (10, 11, 12):
        join.hear(join.lists(batch), stubborn, epoch)
        join.turn()
    assert numbers_of(join, batch) == [[2, 0]] * len(stubborn)
    assert join.lists(batch).final_T.all()
    assert join.progress == pytest.approx(len(stubborn) / ground[1].num_instances)


def test_it_decides_every_so_many_epochs(ground: Ground) -> None:
    join, _ = joined(ground, every=3, alpha=0.5)
    batch = ground[1][0]
    moved = []
    for epoch in range(7):
        lists = join.lists(batch)
        join.hear(lists, torch.zeros(len(batch.instances), len(batch.items)), epoch)
        join.turn()
        moved.append(numbers_of(join, batch)[0][0])
    assert moved == [0, 0, 1, 1, 1, 2, 2]


def test_over_all_items_lists_name_rows_of_the_dataset(ground: Ground) -> None:
    join, readers = joined(ground, kind=KnownFactors, items="all", top=3)
    batch = ground[1][1]
    lists = join.lists(batch)
    raw = readers[0].histories_ND[batch.instances].astype(np.float32) @ readers[
        0
    ].items_VD.T.astype(np.float32)
    assert lists.all_items
    assert lists.now_KTL[0].tolist() == np.argsort(-raw, axis=1)[:, :3].tolist()


def test_scores_alone_know_nothing_of_all_items_and_damage_is_named(ground: Ground) -> None:
    join, _ = joined(ground, items="all")
    with pytest.raises(UsageError, match="of t0 only the scores of the plan's batches are kept"):
        join.lists(ground[1][0])
    join, readers = joined(ground)
    batch = ground[1][0]
    readers[3].answers[0] = np.full((len(batch.instances), len(batch.items)), np.nan, np.float16)
    with pytest.raises(StoreError, match="batch 0: the scores of t3 hold something that is not"):
        join.lists(batch)


def test_teachers_without_checkpoints_are_refused(ground: Ground) -> None:
    with pytest.raises(UsageError, match="--join hetcomp needs checkpoints") as caught:
        HetComp(
            ground[1],
            [KnownScores(ground[1])],
            HetCompSettings(states=(1,)),
            num_items=ground[0].num_items,
        )
    assert caught.value.code == "fit.no_trajectory"


def taught(
    store: Store, folder: Path, student: str = "sasrec", *, stop_after: int = 0, **settings: Any
) -> Run:
    """A run whose teachers know what comes next: the last item's successor, ever more surely."""
    readers: list[Any] = []
    for noise in (2.0, 0.5, 0.1):
        one = Answers(store.plan, name=f"t@{noise}", seed=int(noise * 10))
        one.raw_UV *= noise
        for index in range(len(store.plan)):
            batch = store.plan[index]
            last = store.dataset.flat[store.dataset.offsets[batch.users] + batch.ends - 1]
            hit = (last[:, None] + 1) % store.dataset.num_items == batch.items
            one.answers[index] = (one[index].astype(np.float32) + 4 * hit).astype(np.float16)
        readers.append(one)
    join = HetCompSettings(states=(3,), top=6, every=settings.pop("every", 1))

    def watch(state: RunState, rate: float) -> None:
        if state.epoch == stop_after:
            raise KeyboardInterrupt

    given = TrainSettings(
        **{"join": join, "epochs": 6, "curriculum": False, "learning_rate": 0.01, **settings}
    )
    config = small(student, hidden=16, dropout=0.1)
    return fit(store, readers, folder, config, given, student=student, watch=watch)


def test_the_student_learns_the_teachers_rankings_and_ranks_better_than_chance(
    store: Store, tmp_path: Path
) -> None:
    history = taught(store, tmp_path / "a", every=99, epochs=8).record["history"]
    # the teachers do not move, so the losses can be compared
    assert {one["stage"] for one in history} == {"round 1, teachers at 0%"}
    assert history[-1]["kd"] < history[0]["kd"] * 0.9
    assert history[-1]["ce"] < history[0]["ce"] * 0.95
    # of 24 items in random order the mean NDCG@10 is sum over ranks 1..10 of 1 / log2(1 + rank), over 24
    chance = sum(1 / np.log2(1 + rank) for rank in range(1, 11)) / 24
    assert history[-1]["validation"] > 1.5 * chance


@pytest.mark.parametrize("student", ["sasrec", "bert4rec", "deepfm"])
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(
    store: Store, tmp_path: Path, student: str
) -> None:
    whole = taught(store, tmp_path / "whole", student, epochs=4)
    shares = [int(one["stage"].split()[-1].rstrip("%")) for one in whole.record["history"]]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[1] > 0  # there is something to remember
    for epochs in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            taught(store, tmp_path / "cut", student, epochs=4, stop_after=epochs)
        torch.manual_seed(99)
    taught(store, tmp_path / "cut", student, epochs=4)
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")


def test_what_the_join_remembers_is_no_weight() -> None:
    state = RunState(best_weights={"a": torch.ones(1)}, memory={"states": torch.zeros(2)})
    again = RunState.of(state.to_json(), state.tensors())
    assert again.best_weights == {"a": torch.ones(1)}
    assert list(again.memory) == ["states"]
