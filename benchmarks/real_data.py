"""The real data sets that the benchmarks run on, where they lie beside the checkout: `scientific`, and `games` for size."""

from __future__ import annotations

import sys
from pathlib import Path

from cache.dataset import Dataset, open_dataset
from cache.store import Store
from pipeline.curriculum import PlanSettings, make_plan
from pipeline.ingest import ingest

__all__ = ["real", "scientific", "scientific_store"]

_SOURCES = Path(__file__).resolve().parents[2] / "shared" / "data"


def real(name: str, folder: Path, benchmark: str) -> Dataset:
    """A dataset, ingested as it is into `folder`; ends the benchmark with status 2 where there is no source."""
    path, source = folder / "data" / name, _SOURCES / name
    if path.is_dir():
        return open_dataset(path)
    if not source.is_dir():
        print(f"{benchmark}: not run, there is no {source}.", file=sys.stderr)
        raise SystemExit(2)
    return ingest(source, path, k_core=0).dataset


def scientific(folder: Path, benchmark: str) -> Dataset:
    """`scientific`, as :func:`real`."""
    return real("scientific", folder, benchmark)


def scientific_store(folder: Path, benchmark: str) -> Store:
    """A store over the dataset with the default plan (34,101 prefixes in batches of 512)."""
    path = folder / "cache" / "scientific"
    if path.is_dir():
        return Store.open(path)
    dataset = scientific(folder, benchmark)
    return Store.create(
        path, dataset, lambda place, inside: make_plan(place, inside, PlanSettings())
    )
