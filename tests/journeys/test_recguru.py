"""RecGURU from the command line: two domains, base and distilled; one domain is refused."""

from __future__ import annotations

import json
from pathlib import Path

from tests.journeys.shell import cells, quick

FIT = (
    "kd-student fit --student recguru --epochs 1 --hidden 16 --layers 1 --no-curriculum --threads 1"
)


def test_two_domains_teach_it_and_one_is_refused(home: Path) -> None:
    quick(home, "kd-cache sample --out rows-b --users 60 --items 96 --seed 3")
    quick(home, "kd-cache ingest rows-b --out other/books")
    for line, said in (
        ("", "recguru learns from two domains and one was given; name another dataset"),
        ("--source data/toys", "is the very dataset of the store"),
        ("--student sasrec --source other/books", "--source means nothing to sasrec"),
    ):
        refused = quick(home, f"{FIT} {line}", expect=2)
        assert said in refused.err
        assert len(refused.lines) == 1
    done = quick(home, f"{FIT} --source other/books --compare")
    assert cells(done.out)[0] == ["", "RecGURU base", "RecGURU distilled", "change", "p"]
    run = home / "runs/toys/recguru-distilled/seed-0"
    tested = json.loads((run / "run.json").read_bytes())["test"]
    # a trained one needs the other domain no more
    (home / "other").rename(home / "gone")
    shown = quick(home, f"kd-student evaluate {run}").out
    assert f"{tested['ndcg@10']:.4f}" in shown
