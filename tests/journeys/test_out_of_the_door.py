"""What leaves with a trained student: lists of items, a model card, and exported files that others can serve."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.fakes import tree
from tests.journeys.conftest import Road
from tests.journeys.shell import cells, quick

RUN = "runs/toys/sasrec-distilled/seed-0"


def test_recommend_writes_everybodys_list_and_prints_a_few(road: Road, tmp_path: Path) -> None:
    out = tmp_path / "top.parquet"
    done = quick(road.path, f"kd-student recommend {RUN} --out {out} --top 3 --titles")
    rows = pq.read_table(out).to_pylist()
    users = json.loads((road.store / "dataset/manifest.json").read_bytes())["counts"]["users"]
    assert len(rows) == 3 * users
    assert done.out.startswith(f"{out}: {3 * users} rows of {users} users, top 3, history included")
    (tmp_path / "users").write_text(f"{rows[-1]['user']}\n")
    few = (
        f"--user {rows[3]['user']} --users {tmp_path / 'users'} --top 2 --out {tmp_path}/few.jsonl"
    )
    quick(road.path, f"kd-student recommend {RUN} {few}")
    lines = [json.loads(line) for line in (tmp_path / "few.jsonl").read_text().splitlines()]
    assert [row["item"] for row in lines] == [rows[at]["item"] for at in (3, 4, -3, -2)]
    shown = quick(road.path, f"kd-student recommend {RUN} --user {rows[3]['user']} --top 2")
    head, *found = cells(shown.out)
    assert head == ["user", "item", "rank", "score"]
    assert [row[1] for row in found] == [rows[3]["item"], rows[4]["item"]]


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        ("--user nobody --user x", "has no user 'nobody', 'x' (of 2 asked for"),
        ("--out lists.txt", "ends in none of .parquet, .csv and .jsonl; add --format."),
        ("--users a-file-not-there", "No such file"),
        ("--top 0", "'--top'"),
    ],
)
def test_recommend_refuses_in_one_line(road: Road, words: str, fragment: str) -> None:
    before = tree(road.path)
    done = quick(road.path, f"kd-student recommend {RUN} {words}", expect=None)
    assert done.status in (2, 5)
    assert len(done.lines) == 1
    assert fragment in done.err
    assert tree(road.path) == before


def test_what_is_exported_is_judged_and_recommends_as_the_run_does(
    road: Road, tmp_path: Path
) -> None:
    out = tmp_path / "served"
    done = quick(road.path, f"kd-student export {RUN} --out {out}")
    assert done.out.startswith(f"{out}: SASRec as model.onnx, ")
    assert done.lines == [f"next: kd-student evaluate {out}"]
    judged = quick(road.path, f"kd-student evaluate {out}").out.splitlines()
    assert judged[1:] == quick(road.path, f"kd-student evaluate {RUN}").out.splitlines()[1:]
    for name, folder in (("run", RUN), ("export", out)):
        line = (
            f"kd-student recommend {folder} --top 3 --exclude-history --out {tmp_path / name}.csv"
        )
        quick(road.path, line)
    lists = [
        [line.rpartition(",")[0] for line in (tmp_path / f"{name}.csv").read_text().splitlines()]
        for name in ("run", "export")
    ]
    assert lists[0] == lists[1]
    assert quick(road.path, f"kd-student show {out}").out == (out / "README.md").read_text()
    again = quick(road.path, f"kd-student export {RUN} --out {out}", expect=3)
    assert "is already there and is never overwritten" in again.err


def test_show_prints_the_card_and_writes_it(road: Road, tmp_path: Path) -> None:
    said = quick(road.path, f"kd-student show {RUN}").out
    quick(road.path, f"kd-student show {RUN} --out {tmp_path / 'CARD.md'}")
    assert (tmp_path / "CARD.md").read_text() == said
    assert said.startswith("# SASRec, distilled\n")
    manifest = json.loads((road.store / "scores/unisrec/manifest.json").read_bytes())
    assert f"`{manifest['settings']['teacher_digest']}`" in said
    assert f"{manifest['settings']['quality']['ndcg@10']:.4f}" in said


def test_a_base_trained_by_user_with_its_scalars(road: Road, tmp_path: Path) -> None:
    done = quick(
        road.path,
        "kd-student fit --cache cache/toys --no-distill --batching user --ce in-batch --batch-size 256 "
        f"--epochs 2 --validate-every 2 --threads 1 --out {tmp_path / 'runs'} --log-dir {tmp_path / 'logs'}",
    )
    assert "SASRec base" in done.out
    run = tmp_path / "runs" / "sasrec-base" / "seed-0"
    record = json.loads((run / "run.json").read_bytes())
    assert record["identity"]["train.batching"] == "user"
    assert record["identity"]["train.validate_every"] == 2
    assert [one["stage"] for one in record["history"]] == ["fresh", "fresh"]
    assert record["history"][0]["validation"] is None
    assert record["history"][1]["validation"] == record["validation"]["ndcg@10"]
    written = list((tmp_path / "logs" / "sasrec-base" / "seed-0").glob("events.out.tfevents.*"))
    assert len(written) == 1
    assert b"validation/ndcg_at_10" in written[0].read_bytes()
    compared = quick(road.path, f"kd-student compare {run} {RUN}").out
    other = json.loads((road.path / RUN / "run.json").read_bytes())
    (row,) = [one for one in cells(compared) if one[0] == "ndcg@10" and one[1]]
    assert row[1:3] == [f"{one['test']['ndcg@10']:.4f}" for one in (record, other)]
    assert str(run) in compared
