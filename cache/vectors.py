"""Item vectors kept beside the dataset they were made from, so that a text is encoded once.

    data/toys/vectors/<name>/   vectors.npy (float32 [V, d])   manifest.json (parent: the dataset)

Each set is a sealed part of its own: adding one touches nothing else. Vectors are read as a memory map.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cache.atomic import disk_errors, put, staging
from cache.errors import StoreError
from cache.manifest import Manifest, check_part, read_manifest, seal
from cache.paths import check_name

if TYPE_CHECKING:  # the dataset writes its features through this file
    from cache.dataset import Dataset

__all__ = ["VECTORS", "list_vectors", "read_vectors", "vectors_manifest", "write_vectors"]

VECTORS = "vectors"
_FILE = "vectors.npy"


def write_vectors(
    dataset: Dataset, name: str, vectors_VD: NDArray[np.float32], settings: dict[str, Any]
) -> Manifest:
    """Seal [V, d] vectors under `name`; `settings` say how they were made (model digest, pooling)."""
    if vectors_VD.ndim != 2 or len(vectors_VD) != dataset.num_items:
        raise StoreError(
            f"vectors {name!r}: shape {vectors_VD.shape} found, ({dataset.num_items}, d) expected: "
            f"one row for each item of {dataset.path}.",
            code="vectors.wrong_shape",
        )
    if not np.isfinite(vectors_VD).all():
        row = int(np.flatnonzero(~np.isfinite(vectors_VD).all(axis=1))[0])
        raise StoreError(
            f"vectors {name!r}: row {row} holds NaN or infinity; mend the features and ingest again.",
            code="vectors.not_finite",
        )
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(vectors_VD, np.float32), allow_pickle=False)
    with staging(_folder(dataset, name)) as folder:
        put(folder / _FILE, buffer.getbuffer())
        return seal(
            folder,
            kind="vectors",
            parents={"dataset": dataset.digest},
            settings=settings,
            counts={"items": len(vectors_VD), "width": vectors_VD.shape[1]},
        )


def list_vectors(dataset: Dataset) -> list[str]:
    """Names of the finished vector sets, sorted."""
    root = dataset.path / VECTORS
    return sorted(p.parent.name for p in root.glob("*/manifest.json")) if root.is_dir() else []


def vectors_manifest(dataset: Dataset, name: str) -> Manifest:
    """How the vectors `name` were made; refuses vectors of another dataset."""
    there = list_vectors(dataset)
    if name not in there:
        raise StoreError(
            f"{dataset.path}: has no vectors {name[:120]!r} (there: {', '.join(there) or 'none'}); "
            "encode the texts with `kd-teacher tune` or ingest the features.",
            code="vectors.missing",
        )
    folder = _folder(dataset, name)
    manifest = read_manifest(folder, "vectors")
    parent = manifest.parents.get("dataset", "none")
    if parent != dataset.digest:
        raise StoreError(
            f"{folder}: was made from the dataset {parent[:19]}, this one is {dataset.digest[:19]}; "
            "remove that folder and encode again.",
            code="vectors.foreign",
        )
    return manifest


def read_vectors(dataset: Dataset, name: str, *, deep: bool = True) -> NDArray[np.float32]:
    """The [V, d] float32 vectors `name`, as a read-only memory map, checked against their seal."""
    counts = vectors_manifest(dataset, name).counts
    folder = _folder(dataset, name)
    check_part(folder, "vectors", deep=deep)
    path, shape = folder / _FILE, (dataset.num_items, counts.get("width"))
    try:
        with disk_errors(path):
            vectors: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError):
        vectors = np.empty(0, np.float32)
    sound = isinstance(vectors, np.memmap) and vectors.dtype == np.float32
    if not sound or vectors.shape != shape or (deep and not np.isfinite(vectors).all()):
        raise StoreError(
            f"{path}: float32 numbers of shape {shape}, none of them NaN or infinite, were expected; "
            "remove that folder and encode again.",
            code="vectors.damaged",
        )
    return vectors


def _folder(dataset: Dataset, name: str) -> Path:
    return dataset.path / VECTORS / check_name(name, where=str(dataset.path))
