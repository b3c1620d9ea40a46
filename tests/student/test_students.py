"""What every built-in student must do: learn, hear its teachers, be saved, loaded and judged, and go on after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cache.errors import UsageError
from cache.store import Store
from encoder.packed import Packed
from pipeline.evaluate import rank_student
from pipeline.metrics import metrics_of_ranks
from pipeline.runs import load_student
from student.kept import KEPT_BYTES, Kept
from student.loop import train
from student.protocol import Scorer, Student
from student.registry import find_student
from student.schedule import TrainSettings
from student.steps import step_loss
from student.targets import join_settings
from tests.fakes import tree
from tests.student.known import KnownFactors
from tests.student.small import NAMES, first_batch, made, packed, shop, trained
from tests.student.trial import same

STILL = {"dropout": 0.0, "hidden": 16}  # what is learnt is seen within a few epochs

every_student = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return shop(tmp_path_factory.mktemp("shop") / "store")


@every_student
def test_it_learns_without_teachers_and_is_judged_again_as_it_was(
    store: Store, tmp_path: Path, name: str
) -> None:
    run = trained(store, tmp_path / "run", name, sizes=STILL, epochs=7, learning_rate=0.01)
    first, *_, last = run.record["history"]
    assert last["ce"] < first["ce"] * 0.95
    assert {epoch["kd"] for epoch in run.record["history"]} == {0.0}
    model = load_student(run.folder, store)
    assert isinstance(model, nn.Module)
    assert not model.training
    ranks = rank_student(model, store.dataset, store.dataset.held_out("test"))
    assert np.array_equal(ranks, run.test_ranks)
    assert metrics_of_ranks(ranks) == run.test


@every_student
def test_it_hears_its_teachers(store: Store, tmp_path: Path, name: str) -> None:
    common: dict[str, Any] = {"teachers": 2, "epochs": 5, "learning_rate": 0.03, "sizes": STILL}
    taught = trained(store, tmp_path / "taught", name, **common).record["history"]
    deaf = trained(store, tmp_path / "deaf", name, kd_weight=0.0, **common).record["history"]
    assert taught[-1]["kd"] < taught[0]["kd"]
    assert taught[-1]["kd"] < deaf[-1]["kd"]


@every_student
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    store: Store, tmp_path: Path, name: str
) -> None:
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.manual_seed(len(folder) + seed)  # nobody's generator has a say
        trained(store, tmp_path / folder, name, teachers=1, epochs=2, seed=seed)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    weights = [(tmp_path / one / "model.safetensors").read_bytes() for one in "ac"]
    assert weights[0] != weights[1]


@every_student
@pytest.mark.parametrize("teachers", [0, 2])
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(
    store: Store, tmp_path: Path, name: str, teachers: int
) -> None:
    trained(store, tmp_path / "whole", name, teachers=teachers, epochs=4)
    for epochs in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            trained(store, tmp_path / "cut", name, teachers=teachers, epochs=4, stop_after=epochs)
        torch.manual_seed(99)
    trained(store, tmp_path / "cut", name, teachers=teachers, epochs=4)
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")


@every_student
@torch.no_grad()
def test_the_ranking_is_that_of_its_scores(store: Store, name: str) -> None:
    dataset = store.dataset
    model = made(name, dataset)
    users, ends = dataset.held_out("test")
    found = rank_student(model, dataset, (users, ends))
    masked = rank_student(model, dataset, (users, ends), mask_history=True)
    for place, (user, end) in enumerate(zip(users, ends, strict=True)):
        whole, target = dataset.sequence(user), int(dataset.sequence(user)[end])
        one = packed([whole[:end][-dataset.max_length :].tolist()], [user])
        scores = (
            model.encode(one) @ model.item_table().T
            if isinstance(model, Student)
            else model.logits(one)
        )[0]
        others = scores.clone()
        others[target] = -torch.inf
        gap = (others - scores[target]).abs().min()
        if gap < 1e-5:  # rounding decides
            continue
        assert found[place] == 1 + int((others > scores[target]).sum())
        others[torch.from_numpy(whole[:end].astype(np.int64))] = -torch.inf
        assert masked[place] == 1 + int((others > scores[target]).sum())


@every_student
@pytest.mark.parametrize("kl", ["teacher-student", "student-teacher"])
def test_every_parameter_is_reached_by_a_step(store: Store, name: str, kl: str) -> None:
    batch = first_batch(store)
    model = made(name, store.dataset).train()
    reached: set[str] = set()
    for draw in range(6):  # students that mask or sample see other items in other steps
        model.zero_grad()
        torch.manual_seed(draw)
        total, base, kd = step_loss(model, batch, TrainSettings(kl=kl))
        assert total.item() == pytest.approx(base.item() + 5 * kd.item(), rel=1e-5)
        total.backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), key
            if parameter.grad is not None and parameter.grad.abs().max() > 0:
                reached.add(key)
    assert reached == {key for key, _ in model.named_parameters()}


class Indirect(nn.Module):
    """A SASRec that does not say that its scores are dot products."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def logits(self, packed: Packed, items_C: Tensor | None = None) -> Tensor:
        scores = self.model.encode(packed) @ self.model.item_table().T
        return scores if items_C is None else scores[:, items_C]


@pytest.mark.parametrize("kl", ["teacher-student", "student-teacher"])
@pytest.mark.parametrize(
    ("items", "ce"), [("in-batch", "full"), ("in-batch", "in-batch"), ("all", "full")]
)
def test_scores_of_any_kind_have_the_loss_of_dot_products(
    store: Store, kl: Any, items: Any, ce: Any
) -> None:
    batch = first_batch(store, teachers=2, items=items)
    model = made("sasrec", store.dataset)
    settings = TrainSettings(kl=kl, ce=ce)
    for one, other in zip(
        step_loss(model, batch, settings),
        step_loss(Indirect(model), batch, settings),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_teachers_of_all_items_and_a_loss_over_a_batchs_are_refused_of_any_scores(
    store: Store,
) -> None:
    batch = first_batch(store, items="all")
    model = made("sasrec", store.dataset)
    for one in (model, Indirect(model)):
        with pytest.raises(UsageError) as caught:
            step_loss(one, batch, TrainSettings(ce="in-batch"))
        assert caught.value.code == "fit.mixed_items"


class Wide(nn.Module):
    """A plug-in that counts in float64."""

    def __init__(self, items: int) -> None:
        super().__init__()
        self.items = nn.Embedding(items, 4, dtype=torch.float64)

    def encode(self, packed: Packed) -> Tensor:
        return self.items(packed.items[packed.last])

    def item_table(self) -> Tensor:
        return self.items.weight


def test_a_student_of_float64_is_trained(store: Store) -> None:
    settings = TrainSettings(epochs=1, curriculum=False)
    model = Wide(store.dataset.num_items)
    state = train(model, store.dataset, store.plan, [], settings, validate=lambda: 0.0)
    assert state.history[0].ce > 0


@every_student
def test_it_ends_in_the_same_bits_whether_batches_are_kept_or_not(store: Store, name: str) -> None:
    """Nobody writes to a batch: it comes again in the next epoch."""
    settings = TrainSettings(epochs=3, curriculum=False)
    weights = []
    for limit in (KEPT_BYTES, 0):
        torch.manual_seed(0)
        model = made(name, store.dataset)
        kept = Kept(limit)
        train(model, store.dataset, store.plan, [], settings, validate=lambda: 0.0, kept=kept)
        assert len(kept) == (len(store.plan.round(1)) if limit else 0)
        weights.append(model.state_dict())
    assert same(*weights)


@every_student
def test_it_learns_under_bfloat16_autocast_what_it_learns_without(
    store: Store, tmp_path: Path, name: str
) -> None:
    common: dict[str, Any] = {"teachers": 2, "epochs": 2, "sizes": STILL}
    rounded = trained(store, tmp_path / "rounded", name, amp=True, **common).record["history"]
    exact = trained(store, tmp_path / "exact", name, **common).record["history"]
    for one, other in zip(rounded, exact, strict=True):
        assert one["ce"] == pytest.approx(other["ce"], rel=1e-2)
        assert one["kd"] == pytest.approx(other["kd"], rel=5e-2, abs=1e-3)


@pytest.mark.parametrize("name", ["bert4rec", "recguru", "lightgcn", "fm", "deepfm"])
def test_under_bfloat16_autocast_a_loss_of_ones_own_stays_in_float32(
    store: Store, name: str
) -> None:
    """An encoder may be rounded; what is made of its vectors, and all of a model without one, is not."""
    batch, model = first_batch(store), made(name, store.dataset)
    found = []
    for rounded in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            base, logits = model.own_loss(batch, logits=True)
        assert {base.dtype, logits.dtype} == {torch.float32}
        assert not torch.equal(logits, logits.bfloat16().float())
        found.append((base, logits))
    if name in ("lightgcn", "fm"):
        (base, logits), (again, there) = found
        assert base.item() == again.item()
        assert torch.equal(logits, there)


def test_a_loss_of_ones_own_knows_no_teachers_of_all_items(store: Store) -> None:
    readers = [KnownFactors(store.plan, items=store.dataset.num_items)]
    join = join_settings(readers, items="all")
    with pytest.raises(UsageError, match="--kd-items all: BERT4Rec scores the items of a batch"):
        train(
            made("bert4rec", store.dataset),
            store.dataset,
            store.plan,
            readers,
            TrainSettings(join=join),
            validate=lambda: 0.0,
        )


@every_student
def test_it_is_known_by_its_title_and_scores_in_exactly_one_way(store: Store, name: str) -> None:
    kind = find_student(name)
    assert kind.title.lower().replace("-", "") == name
    model = made(name, store.dataset)
    assert isinstance(model, Student) != isinstance(model, Scorer)


@every_student
def test_what_is_saved_is_what_is_learnt(store: Store, name: str) -> None:
    # graphs, masks and lists of negatives are made from the dataset again
    model = made(name, store.dataset)
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()
