"""A shop in May and in June: one store goes on from the other, its teacher a real one that was tuned in May."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from cache.digest import canonical_json
from cache.store import Store
from tests.fakes import tree
from tests.journeys.shell import cells, quick

TUNE = "kd-teacher tune unisrec --data data/toys --epochs 1 --batch-size 256 --threads 1"


@pytest.fixture(scope="module")
def may(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store of May, scores and factors, and the dataset of June."""
    folder = tmp_path_factory.mktemp("shop") / "home"
    folder.mkdir()
    quick(folder, "kd-cache sample --out june --users 120 --items 96")
    rows = pq.read_table(folder / "june/interactions.parquet")
    cut = np.quantile(rows["timestamp"].to_numpy(), 0.7)
    (folder / "may").mkdir()
    shutil.copy(folder / "june/items.parquet", folder / "may")
    pq.write_table(rows.filter(pc.less(rows["timestamp"], cut)), folder / "may/interactions.parquet")  # fmt: skip
    for line in (
        "kd-cache ingest may --out data/toys",
        "kd-cache ingest june --out data/june",
        "kd-cache plan --data data/toys --batch-size 64",
        f"{TUNE} --mode inductive",
        "kd-cache build --teacher unisrec --keep both",
    ):
        quick(folder, line)
    return folder


def test_a_store_goes_on_and_its_teacher_is_asked_about_what_is_new(may: Path) -> None:
    before = tree(may / "cache/toys")
    line = "kd-cache extend cache/toys --data data/june --out cache/june"
    dry = quick(may, f"{line} --dry-run")
    assert not (may / "cache/june").exists()
    done = quick(may, line)
    said = cells(done.out)
    assert cells(dry.out) == said
    old, new = Store.open(may / "cache/toys"), Store.open(may / "cache/june")
    counts = {row[0]: [int(cell.replace(",", "")) for cell in row[1:]] for row in said[1:6]}
    kinds = {"dataset": ["users", "items", "interactions"], "plan": ["instances", "batches"]}
    for part, names in kinds.items():
        for name in names:
            olds, news = (getattr(one, part).manifest.counts[name] for one in (old, new))
            assert counts[name] == [olds, news - olds]
            assert counts[name][1] > 0
    asked = {row[0]: row[1] for row in said[7:]}
    assert asked["histories"] == f"{counts['instances'][1]:,}"
    assert asked["items"] == f"{counts['items'][1]:,}"
    # the old texts were encoded when the teacher was tuned
    assert f": {counts['items'][1]} texts to encode" in dry.err
    assert done.lines[-1] == "next: kd-student fit --cache cache/june --compare"
    assert tree(may / "cache/toys") == before
    for index in range(len(old.plan)):
        for kind in ("scores", "factors"):
            ours, theirs = (getattr(one, kind)("unisrec")[index] for one in (new, old))
            assert ours.tobytes() == theirs.tobytes()
    # every batch, asked anew of the whole teacher, is what is stored
    sample = f"--teacher tuned/toys/unisrec --sample {len(new.plan)}"
    verified = quick(may, f"kd-cache verify --cache cache/june {sample}")
    assert f"{len(new.plan)} batches of tuned/toys/unisrec asked again" in verified.out
    after = tree(may / "cache/june")
    quick(may, line)
    assert tree(may / "cache/june") == after
    for told in (dry, done):
        assert all(len(text) <= 80 for text in told.out.splitlines())
    shown = quick(may, "kd-cache show --cache cache/june")
    assert ["goes on from plan", old.plan.digest[:19]] in cells(shown.out)
    quick(may, "kd-student fit --cache cache/june --epochs 1 --hidden 16 --threads 1")
    build = "kd-cache build --teacher tuned/toys/unisrec --cache cache/june --keep both --dry-run"
    costs = {row[0]: row[1] for row in cells(quick(may, build).out)}
    # zarr.json is not estimated, and factors have none
    assert ["factors", costs["factors"]] in cells(shown.out)
    assert costs["scores"].endswith(" kB")
    assert costs["time"].startswith("about ")


def test_what_cannot_be_extended_is_said_in_a_line_and_nothing_is_written(
    may: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(may, home)
    shutil.rmtree(home / "cache/june", ignore_errors=True)
    line = "kd-cache extend cache/toys --data data/june --out cache/next"

    def refused(more: str = "", data: str = "data/june", status: int = 3) -> str:
        done = quick(home, line.replace("data/june", data) + more, expect=status)
        assert len(done.lines) == 1
        assert not (home / "cache/next").exists()
        return done.err

    shutil.copytree(home / "tuned/toys/unisrec", home / "tuned/other")
    config = json.loads((home / "tuned/other/config.json").read_bytes())
    (home / "tuned/other/config.json").write_bytes(canonical_json({**config, "epochs": 9}))
    assert "[extend.other_teacher]" in refused(" --teacher tuned/other")
    assert "[extend.nothing_new]" in refused(data="data/toys")
    quick(home, "kd-cache ingest june --out data/nobody --anonymise")
    assert "[extend.anonymous]" in refused(data="data/nobody")
    (home / "tuned/toys").rename(home / "tuned/away")
    assert "[extend.no_teacher]" in refused(status=2)
