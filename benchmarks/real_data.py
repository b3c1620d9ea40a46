"""The real data set that the benchmarks run on: `scientific`, where it lies beside the checkout."""

from __future__ import annotations

import sys
from pathlib import Path

from cache.dataset import Dataset, open_dataset
from cache.store import Store
from pipeline.curriculum import PlanSettings, make_plan
from pipeline.ingest import ingest

__all__ = ["scientific", "scientific_store"]

_SOURCE = Path(__file__).resolve().parents[2] / "shared" / "data" / "scientific"


def scientific(folder: Path, benchmark: str) -> Dataset:
    """The dataset, ingested as it is into `folder`; ends the benchmark with status 2 where there is no source."""
    path = folder / "data" / "scientific"
    if path.is_dir():
        return open_dataset(path)
    if not _SOURCE.is_dir():
        print(f"{benchmark}: not run, there is no {_SOURCE}.", file=sys.stderr)
        raise SystemExit(2)
    return ingest(_SOURCE, path, k_core=0).dataset


def scientific_store(folder: Path, benchmark: str) -> Store:
    """A store over the dataset with the default plan (34,101 prefixes in batches of 512)."""
    path = folder / "cache" / "scientific"
    if path.is_dir():
        return Store.open(path)
    dataset = scientific(folder, benchmark)
    return Store.create(
        path, dataset, lambda place, inside: make_plan(place, inside, PlanSettings())
    )
