"""HetComp from the command line: a teacher's way is kept, asked, and distilled; consistency does not see it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.fakes import tree
from tests.journeys.shell import cells, quick

TUNE = (
    "kd-teacher tune unisrec --data data/toys --out way/unisrec --epochs 3 --patience 3 "
    "--batch-size 1024 --learning-rate 0.0003 --threads 1 --keep-trajectory 2"
)
FIT = "kd-student fit --cache cache/toys --epochs 1 --hidden 16 --no-curriculum --threads 1"


def test_a_teachers_way_is_kept_asked_and_distilled(home: Path) -> None:
    without = quick(home, f"{FIT} --join hetcomp", expect=2)
    assert "cache/toys: keeps no checkpoints of unisrec (such as unisrec@1)" in without.err
    assert len(without.lines) == 1

    tuned = quick(home, TUNE)
    told = cells(tuned.out)
    assert tuned.lines[-1] == (
        "next: kd-cache build --teacher way/unisrec --keep factors --cache cache/toys"
    )
    assert [row[:2] for row in told[-2:]] == [["unisrec@1", "1"], ["unisrec@2", "2"]]
    way = tree(home / "way")
    assert cells(quick(home, TUNE).out)[-2:] == told[-2:]
    assert tree(home / "way") == way

    for number in (1, 2):
        line = f"kd-cache build --teacher way/unisrec@{number} --keep factors"
        assert f"cache/toys/factors/unisrec@{number}" in quick(home, line).out
    # who joins by consistency has one teacher as before
    quick(home, f"{FIT} --out alone")
    alone = json.loads((home / "alone/sasrec-distilled/seed-0/run.json").read_bytes())["identity"]
    assert [key for key in alone if key.startswith(("scores.", "factors."))] == ["scores.unisrec"]
    assert "rank correlation" not in quick(home, "kd-cache show").out

    done = quick(home, f"{FIT} --join hetcomp --compare --top 20")
    assert cells(done.out)[0] == ["", "SASRec base", "SASRec hetcomp", "change", "p"]
    run = home / "runs/toys/sasrec-hetcomp/seed-0"
    record = json.loads((run / "run.json").read_bytes())
    assert record["identity"]["join.states"] == [3]
    assert {"factors.unisrec@1", "factors.unisrec@2", "scores.unisrec"} <= record["identity"].keys()
    assert record["history"][0]["stage"] == "round 1, teachers at 0%"

    for line, said in (
        ("--join hetcomp --epsilon 1", "--epsilon is of --join consistency, and means nothing"),
        ("--top 3", "--top is of --join hetcomp, and means nothing to --join consistency"),
        ("--join hetcomp --kd-items all", "keeps no factors of unisrec, which --kd-items all"),
    ):
        refused = quick(home, f"{FIT} {line}", expect=2)
        assert said in refused.err
        assert len(refused.lines) == 1
