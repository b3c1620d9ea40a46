"""Runs set side by side: two users whose ranks are written down, so that every number can be redone by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.errors import CkdError
from pipeline.cli_student_out import compare_command
from pipeline.compare import heads
from pipeline.metrics import metrics_of_ranks
from pipeline.runs import seal_run
from tests.journeys.shell import cells


def run(folder: Path, ranks: list[int], *, validation: float = 0.5, **identity: Any) -> Path:
    """A finished run with these ranks of the test items."""
    of = np.array(ranks)
    record = {
        "identity": {"dataset": "sha256:one", "train.seed": 0, "train.kd_weight": 5.0, **identity},
        "counts": {"evaluated users": len(of), "items": 30},
        "test": metrics_of_ranks(of),
        "validation": {"ndcg@10": validation},
    }
    seal_run(folder, record, {"weight": torch.ones(1)}, {}, of)
    return folder


def refused(first: Path, second: Path) -> CkdError:
    with pytest.raises(CkdError) as told:
        compare_command(first, second)
    return told.value


def test_a_run_beside_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = run(tmp_path / "a", [1, 11]), run(tmp_path / "b", [1, 1], **{"student": "fm"})
    compare_command(first, second)
    said = capsys.readouterr().out
    assert said.startswith(f"{second} against {first}: test items of 2 users among all 30 items\n")
    head, *found = cells(said)
    assert head[:3] == ["", "a", "b"]
    rows = {row[0]: row[1:] for row in found}
    # one of two users hit, then both; differences 0 and 1: t = 0.5 / (0.7071 / sqrt 2) = 1, of which p is 0.5 at one degree
    assert rows["recall@10"] == ["0.5000", "1.0000", "+100.0%", "0.500"]
    # rank 11 is within 20: 1 / log2(12) = 0.2789, and the mean with 1 is 0.6395
    assert rows["ndcg@20"][:3] == ["0.6395", "1.0000", "+56.4%"]
    assert rows["recall@20"] == ["1.0000", "1.0000", "+0.0%", "1.000"]
    assert rows["validation ndcg@10"][:2] == ["0.5000", "0.5000"]
    assert said.rstrip().endswith("p: paired t-test over users")
    assert "seeds" not in said


def test_seeds_are_averaged_before_users_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, ranks in enumerate([[1, 11], [11, 1]]):
        run(tmp_path / "a" / "sasrec-base" / f"seed-{seed}", ranks, **{"train.seed": seed})
    for seed in range(3):
        run(tmp_path / "b" / f"seed-{seed}", [1, 1], **{"train.seed": seed, "train.kd_weight": 1.0})
    compare_command(tmp_path / "a", tmp_path / "b")
    said = capsys.readouterr().out
    rows = {row[0]: row[1:] for row in cells(said)[1:]}
    # each user of the first is hit by one seed of two: both gain 0.5, which no user contradicts
    assert rows["recall@10"] == ["0.5000 ±0.0000", "1.0000 ±0.0000", "+100.0%", "0e+00"]
    assert "mean ± standard deviation of 2 or 3 seeds; p:" in said


def test_runs_of_two_kinds_are_no_set(tmp_path: Path) -> None:
    one = run(tmp_path / "both" / "sasrec-base" / "seed-0", [1, 2])
    two = run(tmp_path / "both" / "sasrec-distilled" / "seed-0", [1, 2], **{"scores.u": "sha256:u"})
    error = refused(tmp_path / "both", run(tmp_path / "c", [1, 2]))
    assert error.code == "compare.mixed"
    for fragment in (f"{tmp_path / 'both'}: holds runs of 2 kinds", str(one), str(two)):
        assert fragment in str(error)


def test_other_settings_in_one_folder_are_two_kinds_too(tmp_path: Path) -> None:
    for seed in range(2):
        run(tmp_path / "a" / f"seed-{seed}", [1], **{"train.seed": seed, "train.tau": seed / 2})
    assert refused(tmp_path / "a", run(tmp_path / "c", [1])).code == "compare.mixed"


def test_runs_of_two_datasets_are_refused(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a", [1]), run(tmp_path / "b", [1], dataset="sha256:two")
    error = refused(first, second)
    assert error.code == "compare.foreign"
    assert f"{second}: was judged on the dataset sha256:two, {first} on sha256:one" in str(error)


def test_what_is_no_set_of_runs_is_refused(tmp_path: Path) -> None:
    good = run(tmp_path / "a", [1])
    assert refused(good, tmp_path / "nosuch").code == "run.missing"
    assert refused(good, tmp_path / "x" / ".." / "a").code == "compare.same"
    bad = run(tmp_path / "b" / "seed-0", [1])
    (bad / "test_ranks.npy").write_bytes(b"no ranks")
    assert refused(good, tmp_path / "b").code == "run.damaged"
    record = json.loads((bad / "run.json").read_bytes())
    (bad / "run.json").write_text(json.dumps({**record, "files": {}}))
    assert refused(tmp_path / "b", good).code == "run.damaged"


def test_a_column_is_headed_by_what_tells_its_folder_from_the_other() -> None:
    def of(first: str, second: str) -> tuple[str, str]:
        return heads(Path(first), Path(second))

    assert of("runs/unisrec", "runs/three") == ("unisrec", "three")
    assert of("a/sasrec/seed-0", "b/sasrec/seed-0") == ("a/sasrec/seed-0", "b/sasrec/seed-0")
    assert of("/a", "/x/a") == ("/a", "x/a")
