"""The model card: what a run says of itself, and of the base beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cache.describe import store_digest
from cache.errors import StoreError, UsageError
from cache.store import Store
from pipeline.card import base_beside, card
from pipeline.fit import fit
from pipeline.runs import Run, open_run
from student.hetcomp import HetCompSettings
from student.schedule import TrainSettings
from tests.student.small import Answers, shop, small, trained


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Run, Run]:
    folder = tmp_path_factory.mktemp("card")
    store = shop(folder / "store")
    ours = trained(store, folder / "gru4rec-distilled/seed-0", "gru4rec", teachers=2, epochs=1)
    return store, ours, trained(store, folder / "gru4rec-base/seed-0", "gru4rec", epochs=1)


def cells(text: str, first: str) -> list[str]:
    """The other cells of the only row that begins with `first`."""
    (row,) = (line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


def test_it_names_everything_by_digest(runs: tuple[Store, Run, Run]) -> None:
    store, ours, _ = runs
    text = card(ours)
    assert text.startswith("# GRU4Rec, distilled\n")
    assert "Learnt from t0 and t1" in text
    assert cells(text, "dataset") == [f"`{store.dataset.digest}`"]
    assert cells(text, "plan") == [f"`{store.plan.digest}`"]
    assert cells(text, "scores of t1") == ["`sha256:known`"]
    sets = {"t0": "sha256:known", "t1": "sha256:known"}
    whole = store_digest(store.dataset.digest, store.plan.digest, sets, {})
    assert cells(text, "all of these as one store") == [f"`{whole}`"]
    assert cells(text, "t0")[0] == "known"
    assert cells(text, "student hidden") == ["`8`"]
    assert cells(text, "train kd weight") == ["`5.0`"]
    assert cells(text, "join consistency") == ["`pair`"]
    assert ours.record["files"]["model.safetensors"] in cells(text, "weights")[0]


def test_the_metrics_are_the_records_and_the_base_stands_beside(
    runs: tuple[Store, Run, Run],
) -> None:
    _, ours, base = runs
    found = base_beside(ours)
    assert found is not None
    assert found.folder == base.folder.absolute()
    text = card(ours, found)
    now, then = ours.test["ndcg@10"], base.test["ndcg@10"]
    row = [f"{ours.record['validation']['ndcg@10']:.4f}", f"{now:.4f}", f"{then:.4f}"]
    assert cells(text, "ndcg@10") == [*row, f"{now / then - 1:+.1%}"]
    assert cells(card(ours), "ndcg@10") == row[:2]
    assert "the last item of 40 users ranked among all 24 items" in text


def test_a_base_of_other_data_or_another_seed_is_not_set_beside(
    runs: tuple[Store, Run, Run], tmp_path: Path
) -> None:
    store, _, base = runs
    assert base_beside(base) is None
    for seed, there in ((0, True), (1, False)):
        folder = tmp_path / str(seed)
        other = trained(
            store, folder / "gru4rec-distilled/x", "gru4rec", teachers=1, epochs=1, seed=seed
        )
        trained(store, folder / "gru4rec-base/x", "gru4rec", epochs=1)
        assert (base_beside(other) is not None) == there


@pytest.mark.parametrize(
    ("more", "there"),
    [
        ({}, True),
        ({"sizes": {"hidden": 4}}, False),
        ({"learning_rate": 0.5}, False),
        # what only the teachers' part reads
        ({"kd_weight": 3.0, "kl": "student-teacher", "curriculum": True}, True),
    ],
)
def test_a_base_of_other_sizes_or_settings_is_not_set_beside(
    runs: tuple[Store, Run, Run], tmp_path: Path, more: dict[str, Any], there: bool
) -> None:
    store, _, base = runs
    shutil.copytree(base.folder, tmp_path / "gru4rec-base/x")
    folder = tmp_path / "gru4rec-distilled/x"
    other = trained(store, folder, "gru4rec", teachers=1, epochs=1, **more)
    assert (base_beside(other) is not None) == there


def test_the_way_that_it_learnt_is_told(runs: tuple[Store, Run, Run], tmp_path: Path) -> None:
    store, ours, base = runs
    assert "Learnt from t0 and t1 by distillation without a curriculum (CKD-MDSR);" in card(ours)
    assert "Trained without teachers.\n" in card(base)
    staged = trained(store, tmp_path / "staged", "gru4rec", teachers=1, epochs=1, curriculum=True)
    assert "Learnt from t0 by curriculum-scheduled distillation (CKD-MDSR);" in card(staged)


def test_a_hetcomp_run_says_so_and_has_its_base_beside(
    runs: tuple[Store, Run, Run], tmp_path: Path
) -> None:
    store, _, base = runs
    shutil.copytree(base.folder, tmp_path / "gru4rec-base/seed-0")
    names = ["t", "t@1", "t@2"]
    readers: list[Any] = [Answers(store.plan, name=one, seed=k) for k, one in enumerate(names)]
    for staged in (False, True):
        settings = TrainSettings(
            join=HetCompSettings(states=(3,), top=4), epochs=1, curriculum=staged
        )
        folder = tmp_path / "gru4rec-hetcomp" / ("staged" if staged else "seed-0")
        run = fit(store, readers, folder, small("gru4rec"), settings, student="gru4rec")
        text = card(run)
        assert text.startswith("# GRU4Rec, hetcomp\n")
        scheduled = "curriculum-scheduled " if staged else ""
        wanted = f"the rankings of t and of its checkpoints by {scheduled}distillation (HetComp);"
        assert f"Learnt from {wanted}" in text
        assert "CKD-MDSR" not in text
        assert (base_beside(run) is not None) == (not staged)


def test_a_run_of_before_there_were_counts_has_a_card(
    runs: tuple[Store, Run, Run], tmp_path: Path
) -> None:
    _, _, base = runs
    for name in ("model.safetensors", "test_ranks.npy"):
        (tmp_path / name).write_bytes((base.folder / name).read_bytes())
    record = json.loads((base.folder / "run.json").read_bytes())
    del record["counts"], record["teachers"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    text = card(open_run(tmp_path))
    assert text.startswith("# GRU4Rec, base\n\nRanks 24 items")
    assert "the last item ranked among all 24 items" in text


def test_no_run_and_a_damaged_run_are_refused(runs: tuple[Store, Run, Run], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no finished run; train one"):
        open_run(tmp_path)
    _, _, base = runs
    for one in base.folder.iterdir():
        (tmp_path / one.name).write_bytes(one.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(StoreError, match="is not what was written"):
        open_run(tmp_path)
