"""Stage one against the bare forward of its teacher: what a score store costs beside the model's arithmetic.

    python benchmarks/bench_build.py [--users 150] [--rounds 3] [--threads 1]

The first users of `scientific`, all their prefixes, a Recformer of 6 x 384 (MiniLM's weights, 1,024 tokens a history).
Bare: the same histories through the same model, once, nothing kept. Built: everything `kd-cache build` does between
an opened store and a sealed score set: vectors kept for resuming, products, logarithms, checksums, fsync, digests.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from real_data import scientific
from timing import goal, ratios, turns

from cache.dataset import Dataset, open_dataset, write_dataset
from cache.store import Store
from pipeline.build import build
from pipeline.curriculum import PlanSettings, make_plan
from teachers.recformer_start import start
from teachers.recformer_teacher import RecformerTeacher, save_recformer
from teachers.recformer_tokens import Limits, tokenise_items
from teachers.recformer_tune import read_items

NAME, BAR = "build", 1.05


def first_users(whole: Dataset, users: int, path: Path) -> Dataset:
    """A dataset of the first users alone, with the items that they know."""
    offsets = whole.offsets[: users + 1]
    known, flat = np.unique(whole.flat[: offsets[-1]], return_inverse=True)
    write_dataset(
        path,
        items=whole.items.take(known),
        user_ids=None,
        flat=flat.astype(np.int32),
        offsets=offsets,
        max_length=whole.max_length,
    )
    return open_dataset(path)


def tuned(dataset: Dataset, folder: Path) -> RecformerTeacher:
    """A Recformer that counts as tuned on the dataset: MiniLM's weights, its items read."""
    limits = Limits()
    begun = start("minilm", limits, items=dataset.num_items)
    read_items(begun.model, tokenise_items(dataset, begun.vocabulary, limits))
    save_recformer(
        folder,
        begun.model,
        begun.model.state_dict(),
        vocabulary=begun.vocabulary,
        limits=limits,
        stage="tuned",
        dataset=dataset.digest,
        validation={},
    )
    return RecformerTeacher.load(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description="Stage one against the bare forward.")
    parser.add_argument("--users", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        dataset = first_users(scientific(folder, NAME), options.users, folder / "few")
        store = Store.create(
            folder / "store", dataset, lambda at, inside: make_plan(at, inside, PlanSettings())
        )
        teacher = tuned(dataset, folder / "teacher")
        plan = store.plan

        def bare(_: int) -> object:
            return teacher.encode_histories(dataset, plan.instance_users, plan.instance_ends)

        def built(number: int) -> object:
            return build(teacher, store, name=f"round{number + 1}")

        seconds = turns([bare, built], options.rounds)
        kept = goal(
            NAME,
            f"a sealed score set of {plan.num_instances:,} prefixes by a 6 x 384 Recformer",
            "its bare forward",
            ratios(seconds[1], seconds[0]),
            at_most=BAR,
            note=f"{min(seconds[0]):.0f} s bare",
        )
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
