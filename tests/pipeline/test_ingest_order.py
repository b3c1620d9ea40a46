"""The same rows give the same bytes: in any order, with any number of threads, under any hash seed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.ingest import ingest

ROOT = Path(__file__).resolve().parents[2]

Rows = list[tuple[str, str, int]]
row = st.tuples(
    st.text("uU1é", min_size=1, max_size=3), st.sampled_from("abcdef"), st.integers(0, 6)
)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def as_csv(rows: Rows) -> str:
    return "".join(["user,item,time\n", *(f"{u},{i},{t}\n" for u, i, t in rows)])


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(row, min_size=1, max_size=30), seed=st.integers(0, 999))
def test_any_order_of_rows(tmp_path_factory: pytest.TempPathFactory, rows: Rows, seed: int) -> None:
    folder = tmp_path_factory.mktemp("o")
    (folder / "a.csv").write_text(as_csv(rows))
    random.Random(seed).shuffle(rows)
    (folder / "b.csv").write_text(as_csv(rows))
    for name in "ab":
        ingest(folder / f"{name}.csv", folder / name, k_core=1)
    assert contents(folder / "a") == contents(folder / "b")


def test_any_number_of_threads(tmp_path: Path) -> None:
    rng = random.Random(5)
    rows = [(f"u{rng.randrange(40_000)}", f"i{rng.randrange(900)}", n) for n in range(600_000)]
    (tmp_path / "log.csv").write_text(as_csv(rows))  # several blocks of Arrow's reader
    before = pa.cpu_count()
    try:
        for threads in (1, 4):
            pa.set_cpu_count(threads)
            ingest(tmp_path / "log.csv", tmp_path / str(threads))
    finally:
        pa.set_cpu_count(before)
    assert contents(tmp_path / "1") == contents(tmp_path / "4")


def test_any_hash_seed(tmp_path: Path) -> None:
    rng = random.Random(6)
    rows = [(f"u{rng.randrange(30)}", f"i{rng.randrange(20)}", n % 50) for n in range(500)]
    (tmp_path / "interactions.csv").write_text(as_csv(rows))
    listed = "".join(f"i{n},Item {n}\n" for n in range(20))
    (tmp_path / "items.csv").write_text(f"item,title\n{listed}")
    program = (
        "import sys; from pathlib import Path; from pipeline.ingest import ingest;"
        "ingest(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    for seed in ("0", "1"):
        subprocess.run(
            [sys.executable, "-c", program, tmp_path, tmp_path / f"out{seed}"],
            check=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
    assert contents(tmp_path / "out0") == contents(tmp_path / "out1")
