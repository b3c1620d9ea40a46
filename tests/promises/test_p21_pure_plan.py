"""P21: the curriculum plan is a pure function of the dataset and its settings.

The order in which rows came, threads, processes and the order of asking make no difference; the content of a plan over a
known dataset is written down here, from another day. Every instance stands once in each round. More laws are in
tests/pipeline/test_curriculum.py and test_ingest_order.py.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.dataset import open_dataset
from cache.plan import Plan
from pipeline.curriculum import PlanSettings, make_plan
from pipeline.ingest import ingest
from tests.fakes import tiny_dataset
from tests.promises.grounds import ROOT, in_memory
from tests.promises.ledger import all_kept, kept

#: sha256 of everything that a reader sees of the plan below; another number means that old seeds now give other batches
GOLDEN = "7bcf1526c2fa4774b7a112e3a26aec9085347c8fb78f9072bc2a587614e746f9"
SETTINGS = PlanSettings(batch_size=8, buckets=3, rounds=2, seed=5)


def content(plan: Plan) -> str:
    state = hashlib.sha256()
    for index in range(len(plan)):
        batch = plan[index]
        for part in (
            batch.round,
            batch.bucket,
            batch.users,
            batch.ends,
            batch.items,
            batch.columns,
        ):
            state.update(np.ascontiguousarray(part, "<i4").tobytes())
    return state.hexdigest()


def test_the_plan_of_another_day() -> None:
    with in_memory() as folder:
        dataset = tiny_dataset(folder / "data", users=30, items=12)
        told = [content(make_plan(folder / "plan", dataset, SETTINGS))]
    all_kept("P21", ["" if found == GOLDEN else found for found in told])


@settings(max_examples=12)
@given(st.randoms(use_true_random=False))
def test_rows_in_any_order_give_the_same_plan(dice: random.Random) -> None:
    rows = [f"u{n % 9},i{n * n % 7},{n // 2}\n" for n in range(60)]
    digests = set()
    with in_memory() as folder:
        for name in ("a", "b"):
            (folder / f"{name}.csv").write_text("user,item,time\n" + "".join(rows))
            ingest(folder / f"{name}.csv", folder / name, k_core=0)
            digests.add(
                make_plan(folder / f"{name}-plan", open_dataset(folder / name), SETTINGS).digest
            )
            dice.shuffle(rows)
    all_kept("P21", ["" if len(digests) == 1 else f"{digests}"])


@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**31 - 1),
    size=st.integers(2, 9),
    buckets=st.integers(1, 4),
    rounds=st.integers(1, 3),
)
def test_asked_in_any_order_each_instance_stands_once_a_round(
    seed: int, size: int, buckets: int, rounds: int
) -> None:
    with in_memory() as folder:
        dataset = tiny_dataset(folder / "data", seed=seed % 7)
        some = PlanSettings(batch_size=size, buckets=buckets, rounds=rounds, seed=seed)
        plan = make_plan(folder / "plan", dataset, some)
        forward = [plan[index] for index in range(len(plan))]
        wanted = sorted(zip(*(part.tolist() for part in dataset.training_instances()), strict=True))
        told = []
        for index in np.random.default_rng(seed).permutation(len(plan)):
            again, first = plan[int(index)], forward[index]
            same = all(
                np.array_equal(getattr(again, name), getattr(first, name))
                for name in again.__slots__
            )
            told.append("" if same else f"batch {index}")
        for number in range(rounds + 1):
            held = [
                (u, e)
                for b in forward
                if b.round == number
                for u, e in zip(b.users.tolist(), b.ends.tolist(), strict=True)
            ]
            told.append("" if sorted(held) == wanted else f"round {number}")
    all_kept("P21", told)


def test_threads_hash_seeds_and_processes_make_no_difference() -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path\n"
        "from tests.promises.test_p21_pure_plan import SETTINGS, make_plan, tiny_dataset\n"
        "folder = Path(sys.argv[1]); data = tiny_dataset(folder / 'data', users=30, items=12)\n"
        "print(data.digest, make_plan(folder / 'plan', data, SETTINGS).digest)\n"
    )
    told = set()
    with in_memory() as folder:
        for number, threads in enumerate((1, 7)):
            (folder / str(number)).mkdir()
            env = {**os.environ, "PYTHONHASHSEED": str(number), "OMP_NUM_THREADS": str(threads),
                   "ARROW_NUM_THREADS": str(threads), "LC_ALL": "C", "TZ": f"UTC-{number}"}  # fmt: skip
            done = subprocess.run(
                [sys.executable, "-c", script, str(folder / str(number))],
                env=env, capture_output=True, text=True, timeout=120, check=True, cwd="/",
            )  # fmt: skip
            told.add(done.stdout)
        before = pa.cpu_count()
        pa.set_cpu_count(5)
        dataset = tiny_dataset(folder / "data", users=30, items=12)
        told.add(f"{dataset.digest} {make_plan(folder / 'plan', dataset, SETTINGS).digest}\n")
        pa.set_cpu_count(before)
    assert len(told) == 1
    kept("P21", 3, 3)
