"""Three kinds of teacher in one store, from the command line: pre-trained elsewhere, tuned, built, compared, joined."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cache.dataset import open_dataset
from cache.vectors import write_vectors
from tests.journeys.shell import cells, quick

SHORT = "--history-tokens 32 --attribute-tokens 8 --limit 16 --threads 1"
RECFORMER = f"kd-teacher tune recformer --data data/toys --epochs 1 --second-epochs 0 {SHORT}"
UNIM2REC = "kd-teacher tune unim2rec --data data/toys --epochs 1 --threads 1"


def give_eyes(home: Path) -> None:
    """Half of the shop's items get an image vector."""
    dataset = open_dataset(home / "data/toys")
    images = np.random.default_rng(0).normal(size=(dataset.num_items, 8)).astype(np.float32)
    images[::2] = 0
    write_vectors(dataset, "image", images, {"origin": "ingested"})


def test_three_kinds_are_shown_side_by_side_and_distilled_together(home: Path) -> None:
    give_eyes(home)
    source = "--data data/other --epochs 1 --threads 1"
    quick(home, "kd-cache sample --out other --users 60 --items 96 --seed 3")
    quick(home, "kd-cache ingest other --out data/other")
    told = quick(home, f"kd-teacher pretrain unim2rec {source} --limit 64 --batch-size 32")
    assert "data/other: has no image vectors; all its images are missing" in told.err
    quick(home, f"kd-teacher pretrain recformer {source} {SHORT} --batch-size 8")
    for line, name in ((RECFORMER, "recformer"), (UNIM2REC, "unim2rec")):
        quick(home, f"{line} --from pretrained/{name}")
        assert "valid" in quick(home, f"kd-teacher evaluate {name} --data data/toys").out
        assert name in quick(home, f"kd-cache build --teacher {name}").out

    shown = {row[0]: row[1:] for row in cells(quick(home, "kd-cache show").out)}
    names = ["recformer", "unim2rec", "unisrec"]
    for row, key in (("valid ndcg@10", "ndcg@10"), ("test recall@10", "test recall@10")):
        for name, told_value in zip(names, shown[row], strict=True):
            manifest = json.loads((home / f"cache/toys/scores/{name}/manifest.json").read_bytes())
            assert told_value == f"{manifest['settings']['quality'][key]:.4f}"
    for pair in ("recformer, unim2rec", "recformer, unisrec", "unim2rec, unisrec"):
        assert -1 <= float(shown[pair][0]) <= 1
    # at 0.8q one pair in five loses one of its three teachers
    assert sum(float(share.rstrip("%")) for share in shown["all pairs"]) == pytest.approx(20, abs=1)
    groups = [name for name in shown if name.startswith(("items of ", "histories of "))]
    assert 4 <= len(groups) <= 6
    never = quick(home, "kd-cache show --consistency off --batches 2").out
    assert "how often each is dropped" not in never
    assert "2 of 8 batches read" in never

    fitted = quick(home, "kd-student fit --cache cache/toys --epochs 1 --threads 1 --out runs/all")
    assert "runs/all" in fitted.out + fitted.err


def test_a_recformer_stopped_goes_on_and_a_finished_one_stays(home: Path) -> None:
    first = quick(home, RECFORMER)
    assert "texts alone, 1 epoch" in first.out
    assert "tuned before" in quick(home, RECFORMER).out


@pytest.mark.parametrize(
    ("line", "fragment"),
    [
        (f"{RECFORMER} --pooling cls", "--pooling is of unisrec and unim2rec, and means nothing"),
        (f"{RECFORMER} --vectors x", "--vectors is of unisrec and unim2rec"),
        ("kd-teacher tune unisrec --limit 9", "--limit is of recformer, and means nothing to unis"),
        ("kd-teacher tune unisrec --image x", "--image is of unim2rec"),
        ("kd-teacher pretrain unisrec --data data/toys --word-weight 1", "--word-weight is of rec"),
        (f"{UNIM2REC} --pictures x", "--pictures and --image belong together"),
        (UNIM2REC, "data/toys: needs image vectors"),
        (f"{RECFORMER} --from tuned/toys/unisrec", "holds no pre-trained Recformer"),
    ],
)
def test_what_a_kind_does_not_know_is_refused(road: object, line: str, fragment: str) -> None:
    path: Path = road.path  # type: ignore[attr-defined]
    done = quick(path, line, expect=2)
    assert fragment in done.err
    assert len(done.lines) == 1


def test_an_official_recformer_that_is_none_is_refused(home: Path) -> None:
    (home / "bad.bin").write_bytes(b"no zip at all")
    done = quick(home, "kd-teacher import bad.bin --teacher recformer", expect=4)
    assert "bad.bin: " in done.err
    assert not (home / "pretrained").exists()
