"""A run on disk: a student's weights, its record, and the ranks of the test items.

    runs/toys/sasrec-distilled/seed-0/   model.safetensors   run.json   test_ranks.npy   [checkpoint.safetensors]

run.json is written last and holds the digests of the others: a folder without it is a run that goes on. Refuses a run of
other settings by the name of what differs, and one byte that is not what was written.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cache.atomic import put
from cache.digest import canonical_json, sha256_bytes, sha256_file
from cache.errors import StoreError, UsageError
from cache.identity import difference
from cache.store import Store
from encoder.checkpoint import load_weights, save_weights
from pipeline.metrics import Metrics
from student.protocol import AnyStudent
from student.registry import find_student

__all__ = [
    "CHECKPOINT",
    "MODEL",
    "RECORD",
    "Run",
    "Standing",
    "finished_run",
    "load_student",
    "missing_run",
    "open_run",
    "seal_run",
    "standing",
]

Standing: TypeAlias = Literal["new", "begun", "finished"]

CHECKPOINT, MODEL, RECORD, _RANKS = (
    "checkpoint.safetensors",
    "model.safetensors",
    "run.json",
    "test_ranks.npy",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished run."""

    folder: Path
    record: Mapping[str, Any]  #: run.json
    test_ranks: NDArray[np.int32]  #: [evaluated users]

    @property
    def test(self) -> Metrics:
        """Recall and NDCG on the test items."""
        metrics: Metrics = self.record["test"]
        return metrics


def standing(folder: Path) -> Standing:
    """How far the run in `folder` is, by the files that are there."""
    if (folder / RECORD).is_file():
        return "finished"
    return "begun" if (folder / CHECKPOINT).is_file() else "new"


def seal_run(
    folder: Path,
    record: Mapping[str, Any],
    weights: dict[str, Tensor],
    card: dict[str, Any],
    test_ranks: NDArray[np.int64],
) -> None:
    """Write a finished run.

    Args:
        record: of run.json, but for the digests of its files.
        card: what `load_student` needs to make the model, beside its weights.
        test_ranks: [evaluated users].
    """
    buffer = io.BytesIO()
    np.save(buffer, test_ranks.astype(np.int32), allow_pickle=False)
    save_weights(folder / MODEL, weights, card)
    put(folder / _RANKS, buffer.getbuffer())
    files = {name: sha256_file(folder / name) for name in (MODEL, _RANKS)}
    put(folder / RECORD, canonical_json({**record, "files": files}) + b"\n")


def finished_run(folder: Path, identity: Mapping[str, Any]) -> Run:
    """The finished run that is there, if it is the one of `identity`.

    Raises:
        StoreError: ``run.foreign``, ``run.damaged``.
    """
    found = _record(folder)["identity"]
    if odd := difference(found, identity):
        key, there, here = odd
        raise StoreError(
            f"{folder}: holds a finished run with {key} {there}, this one would have "
            f"{here}; choose another --out, or remove it.",
            code="run.foreign",
        )
    return open_run(folder)


def open_run(folder: Path) -> Run:
    """A finished run, every byte of it checked.

    Raises:
        UsageError: ``run.missing``; StoreError: ``run.damaged``.
    """
    if not (folder / RECORD).is_file():
        raise missing_run(folder, RECORD)
    record = _record(folder)
    files = {}
    for name, digest in record["files"].items():
        files[name] = (folder / name).read_bytes() if (folder / name).is_file() else b""
        if sha256_bytes(files[name]) != digest:
            raise _damaged(folder / name)
    ranks = np.load(io.BytesIO(files[_RANKS]), allow_pickle=False)
    return Run(folder=folder, record=record, test_ranks=ranks)


def load_student(folder: Path, store: Store) -> AnyStudent:
    """The trained student of a run, for the dataset it was trained on; a torch.nn.Module in eval mode.

    Raises:
        StoreError: ``model.foreign`` for another dataset, naming both digests; ``model.unknown``.
        UsageError: ``run.missing``; ``student.unknown`` for one of a package that is not here.
    """
    path = folder / MODEL
    if not path.is_file():
        raise missing_run(folder, MODEL)
    weights, card = load_weights(path)
    if not {"dataset", "config", "student"} <= card.keys():
        raise StoreError(
            f"{path}: holds weights, but not those of a student; name a folder that `kd-student fit` "
            "made.",
            code="model.unknown",
        )
    if card["dataset"] != store.dataset.digest:
        raise StoreError(
            f"{path}: was trained on the dataset {card['dataset'][:19]}, {store.path} holds "
            f"{store.dataset.digest[:19]}; name its own store with --cache.",
            code="model.foreign",
        )
    kind = find_student(card["student"])
    try:
        model: AnyStudent = kind.make(kind.config(**card["config"]), store.dataset).eval()
        model.load_state_dict(weights)  # type: ignore[union-attr]  # a torch.nn.Module too
    except (TypeError, ValueError, RuntimeError) as error:
        raise StoreError(
            f"{path}: does not fit the {kind.name} of this version; train it again.",
            code="model.unknown",
        ) from error
    return model


def _record(folder: Path) -> dict[str, Any]:
    """run.json, once it is known to be one."""
    path = folder / RECORD
    try:
        record = json.loads(path.read_bytes())
        sound = (
            isinstance(record["identity"], dict)
            and record["files"].keys() == {MODEL, _RANKS}
            and all(isinstance(value, float) for value in record["test"].values())
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise _damaged(path)
    return dict(record)


def missing_run(folder: Path, name: str) -> UsageError:
    """The error ``run.missing`` for a folder without the file `name`; it names a run below it, if there is one."""
    below = sorted(folder.glob(f"*/**/{name}"))
    remedy = f"one is {below[0].parent}" if below else "train one with `kd-student fit`"
    return UsageError(f"{folder}: holds no finished run; {remedy}.", code="run.missing")


def _damaged(path: Path) -> StoreError:
    return StoreError(
        f"{path}: is not what was written; remove {path.parent} and run the same command again.",
        code="run.damaged",
    )
