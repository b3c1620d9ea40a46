"""P06: what was made from another dataset, plan, temperature or teacher is refused, with both, and nothing is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from itertools import permutations, product
from pathlib import Path

import pytest

from cache.errors import StoreError
from cache.store import Store, copy_factor_set, copy_score_set
from cache.verify import verify
from pipeline.build import build
from tests.fakes import TableTeacher, tiny_dataset, tiny_plan, tree
from tests.journeys.shell import quick
from tests.promises.ledger import all_kept
from tests.promises.stores import copied

DATASETS, PLANS, TAUS = (0, 1, 2), (0, 1, 2), (0.07, 0.2)


@pytest.fixture
def stores(memory: Path) -> dict[tuple[int, int], Store]:
    """3 datasets x 3 plans, each with scores and factors at both temperatures."""
    made = {}
    for dataset in DATASETS:
        frozen = tiny_dataset(memory / f"data{dataset}", seed=dataset)
        for plan in PLANS:
            path = memory / f"store{dataset}{plan}"
            store = Store.create(
                path, frozen, lambda folder, inside, seed=plan: tiny_plan(folder, inside, seed=seed)
            )
            for tau in TAUS:
                build(TableTeacher(), store, tau=tau, name=f"at{tau}", keep="both")
            made[dataset, plan] = store
    return made


def refused(what: str, attempt: Callable[[], object], home: Path, *both: str) -> str:
    """A complaint unless the attempt is refused with both, and changes nothing."""
    before = tree(home)
    try:
        attempt()
    except StoreError as error:
        missing = [one for one in both if one not in str(error)]
        if missing:
            return f"{what}: {missing} are not in: {error}"
        return "" if tree(home) == before else f"{what}: something was written"
    return f"{what}: was not refused"


def test_scores_and_factors_of_another_dataset_or_plan(stores, memory):
    complaints = []
    for (a, one), (b, other) in permutations(stores.items(), 2):
        kind = "dataset" if a[0] != b[0] else "plan"
        both = [getattr(store, kind).digest for store in (one, other)]
        plans = [store.plan.digest for store in (one, other)]
        complaints += [
            refused(f"{a} into {b}", partial(copy, one, "at0.07", other), other.path, *plans)
            for copy in (copy_score_set, copy_factor_set)
        ]
        for part, read in (("scores", Store.scores), ("factors", Store.factors)):
            path = copied(other.path, memory / "graft")
            shutil.copytree(one.path / part / "at0.07", path / part / "foreign")
            grafted = Store.open(path)
            complaints.append(
                refused(f"{part} {a} in {b}", partial(read, grafted, "foreign"), path, *both)
            )
            codes = [error.code for error in verify(path)]
            complaints.append("" if codes == ["scores.foreign"] else f"verify: {a} in {b}: {codes}")
    assert len(complaints) == 72 * 6
    all_kept("P06", complaints)


@pytest.mark.parametrize("part", ["dataset", "plan"])
def test_a_dataset_or_plan_of_another_store(stores, memory, part):
    complaints = []
    for (a, one), (b, other) in permutations(stores.items(), 2):
        if a[0] == b[0]:
            continue
        path = copied(other.path, memory / "graft")
        shutil.rmtree(path / part)
        shutil.copytree(one.path / part, path / part)
        both = (one.dataset.digest, other.dataset.digest)
        complaints.append(refused(f"{part} {a} in {b}", partial(Store.open, path), path, *both))
    assert len(complaints) == 54
    all_kept("P06", complaints)


def test_another_temperature_or_teacher(stores, memory):
    """Asked again under one name; begun and gone on with; factors beside scores."""
    complaints, teacher, other = [], TableTeacher(), TableTeacher(seed=1)
    for store, (old, new) in product(stores.values(), permutations(TAUS)):
        for keep in ("scores", "factors", "both"):
            for who, tau, both in (
                (teacher, new, (f"tau {old}", f"{new} asked")),
                (other, old, (teacher.digest, other.digest)),
            ):
                complaints.append(
                    refused(
                        f"{keep} {old} {tau}",
                        partial(build, who, store, tau=tau, name=f"at{old}", keep=keep),
                        store.path,
                        *both,
                    )
                )
        path = copied(store.path, memory / "graft")
        shutil.rmtree(path / f"factors/at{old}")
        shutil.copytree(path / f"factors/at{new}", path / f"factors/at{old}")
        graft = Store.open(path)
        complaints.append(
            refused("factors beside", partial(graft.factors, f"at{old}"), path, str(old), str(new))
        )
    assert len(complaints) == 18 * 7
    all_kept("P06", complaints)


def test_the_commands_refuse_before_any_step(stores, memory):
    """`kd-student fit` with scores of another plan and of another dataset: exit 3, both digests, no run."""
    complaints = []
    for source, kind in (((0, 1), "plan"), ((1, 0), "dataset")):
        home = memory / f"home-{kind}"
        path = copied(stores[0, 0].path, home / "cache/toys")
        shutil.rmtree(path / "scores/at0.07")
        shutil.copytree(stores[source].path / "scores/at0.07", path / "scores/at0.07")
        done = quick(home, "kd-student fit --cache cache/toys --teacher at0.07", expect=None)
        both = [getattr(store, kind).digest for store in (stores[0, 0], stores[source])]
        sound = done.status == 3 and all(digest in done.err for digest in both)
        complaints.append("" if sound and not (home / "runs").exists() else str(done))
    all_kept("P06", complaints)
