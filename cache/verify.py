"""The audit of a whole store: every file extra, missing or changed, told by name.

Unlike reading, which stops at the first damage, this goes on and lists all of it: names and sizes, then sha256 of
every byte (about 1.5 GB/s), then lineage and the inner agreement of each part. With a teacher at hand a sample of
batches is asked again and compared. Changes nothing. An unfinished build (`.work-*`) is no damage and is left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.atomic import DEBRIS
from cache.dataset import VECTORS
from cache.errors import CkdError, StoreError
from cache.factor_writer import MOST_NATS
from cache.manifest import MANIFEST, Manifest, findings, read_manifest
from cache.paths import check_name
from cache.plan import Batch
from cache.score_writer import log_softmax
from cache.scores import ScoreReader
from cache.signature import SIGNATURE, read_signature_here
from cache.store import DATASET, FACTORS, PLAN, SCORES, Store

__all__ = ["ATOL", "compare", "verify"]

ATOL = 0.02  #: nats; float16 keeps a log-probability of -16 to within 0.008, kernels differ by less

#: hears (bytes done, bytes in all)
Progress = Callable[[int, int], None]
#: gives a batch's bare scores [T_b, C_b]
Score = Callable[[Batch], NDArray[np.floating[Any]]]

_PARTS = (DATASET, PLAN, SCORES, FACTORS)
_HIDDEN = (".work-", ".lock-")


def verify(path: Path, *, deep: bool = True, progress: Progress | None = None) -> list[CkdError]:
    """Every way in which the store at `path` is not what its manifests say; empty if sound.

    Args:
        deep: hash every byte; otherwise names and sizes only.
        progress: called as bytes are hashed.
    """
    if not any((path / part).exists() for part in _PARTS):
        what = "is not a store" if path.exists() else "is not there"
        return [StoreError(f"{path}: {what}; check the path.", code="store.missing")]
    found: list[CkdError] = list(_strangers(path, set(_PARTS)))
    try:
        read_signature_here(path)
    except CkdError as error:
        found.append(error)
    parts: list[tuple[Path, Manifest]] = []
    for folder, kind in _parts(path, found):
        try:
            parts.append((folder, read_manifest(folder, kind)))
        except CkdError as error:
            found.append(error)
    total = sum(entry.size for _, manifest in parts for entry in manifest.files) if deep else 0
    done = 0

    def heard(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    for folder, manifest in parts:
        skip = frozenset({VECTORS}) if manifest.kind == "dataset" else frozenset[str]()
        found += _debris(folder)
        found += findings(folder, manifest, deep=deep, skip=skip, progress=heard)
    if not found:
        found += _disagreements(path)
    return found


def compare(
    store: Store, name: str, score: Score, *, sample: int, seed: int = 0
) -> list[StoreError]:
    """Ask a teacher again about `sample` random batches and compare with what is stored, scores, factors or both.

    Args:
        score: gives the bare scores [T_b, C_b] of a batch.
        sample: how many batches, all of them at most.

    Returns:
        One finding for each batch in which a log-probability differs by more than `ATOL` nats, or `MOST_NATS` where
        it comes from factors.
    """
    readers = [store.reader(name)]
    if name in store.factor_names and isinstance(readers[0], ScoreReader):
        readers.append(store.factors(name))
    chosen = np.random.default_rng(seed).permutation(len(store.plan))[:sample]
    found = []
    for index in sorted(int(i) for i in chosen):
        raw_TC = score(store.plan[index])
        for reader in readers:
            most = ATOL if isinstance(reader, ScoreReader) else MOST_NATS
            fresh_TC = log_softmax(raw_TC, reader.tau).astype(np.float32)
            stored_TC = reader[index].astype(np.float32)
            if fresh_TC.shape == stored_TC.shape:
                gap_TC = np.abs(fresh_TC - stored_TC)
                if isinstance(reader, ScoreReader):
                    gap_TC -= reader.rounding(index)
                gap = float(gap_TC.max())
                if gap <= most:
                    continue
                what = f"differs by up to {gap:.3g} nats"
            else:
                what = f"has shape {fresh_TC.shape} where {stored_TC.shape} is stored"
            found.append(
                StoreError(
                    f"{reader.folder}: batch {index}, asked again, {what} (at most {most} expected); "
                    f"the teacher is not the one that wrote these {reader.manifest.kind}, check its weights.",
                    code="scores.unlike_teacher",
                )
            )
    return found


def _parts(path: Path, found: list[CkdError]) -> Iterator[tuple[Path, str]]:
    """Folders that must be sealed parts, with their kinds; strangers among them go to `found`."""
    yield path / DATASET, "dataset"
    vectors = path / DATASET / VECTORS
    yield from ((child, "vectors") for child in _folders(vectors, found))
    yield path / PLAN, "plan"
    for kind in (SCORES, FACTORS):
        yield from ((child, kind) for child in _folders(path / kind, found))


def _folders(folder: Path, found: list[CkdError]) -> Iterator[Path]:
    if folder.is_symlink() or not folder.is_dir():
        return  # told where it is a stranger
    for child in sorted(folder.iterdir()):
        if child.name.startswith(_HIDDEN):
            continue
        with contextlib.suppress(StoreError):
            check_name(child.name, where=str(folder))
            if child.is_dir() and not child.is_symlink() and not child.name.startswith("."):
                yield child
                continue
        found.append(_unexpected(child))


def _strangers(folder: Path, expected: set[str]) -> Iterator[StoreError]:
    for child in sorted(folder.iterdir()):
        if child.name == SIGNATURE:  # which is looked at by itself
            continue
        if child.name not in expected:
            yield _unexpected(child)
        elif child.is_symlink() or not child.is_dir():
            yield StoreError(
                f"{child}: is not a folder; restore it from where the store came from.",
                code="store.not_a_folder",
            )


def _debris(folder: Path) -> Iterator[StoreError]:
    """What a killed writer or copier left; a part's own check overlooks it, a store must not."""
    for child in sorted(folder.iterdir()):
        if child.name.startswith(DEBRIS):
            yield _unexpected(child)


def _unexpected(path: Path) -> StoreError:
    return StoreError(f"{path}: is not part of the store; remove it.", code="store.unexpected")


def _disagreements(path: Path) -> Iterator[CkdError]:
    """Lineage, and each part against itself; only worth asking once every file is right."""
    try:
        store = Store.open(path, deep=False)
    except CkdError as error:
        yield error
        return
    for child in sorted((path / DATASET / VECTORS).glob(f"*/{MANIFEST}")):
        parent = read_manifest(child.parent, "vectors").parents.get("dataset", "none")
        if parent != store.dataset.digest:
            yield StoreError(
                f"{child}: was made from the dataset {parent}, this one is "
                f"{store.dataset.digest}; remove {child.parent}.",
                code="vectors.foreign",
            )
    for name in store.names:
        try:
            store.scores(name)
        except CkdError as error:
            yield error
    for name in store.factor_names:
        try:
            store.factors(name)
        except CkdError as error:
            yield error
