"""An exported folder opened again: scores by the exported file itself, so that it can be judged as the run was.

Refuses a folder whose files are not those that were written, and another dataset's store, by both digests. ONNX needs
onnxruntime. A .pt2 file is read by torch, which restricts what it unpickles; open only what you trust.
Legend: B histories, L places, V items.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from cache.digest import sha256_file
from cache.errors import StoreError, UsageError
from cache.store import Store
from encoder.packed import Packed
from encoder.padded import PADDING
from pipeline.export import EXPORT, TABLE, model_file
from pipeline.runs import load_student
from student.protocol import AnyStudent

__all__ = ["Exported", "is_export", "open_student", "rectangle"]

Answer: TypeAlias = Callable[[dict[str, Tensor]], Tensor]


class Exported:
    """A `Scorer` of what was exported.

    Args:
        answer: what the file makes of a request's inputs.
        table_VD: the item table where it lies apart.
    """

    def __init__(self, answer: Answer, inputs: list[str], table_VD: Tensor | None) -> None:
        self._answer = answer
        self._inputs = inputs
        self._table_VD = table_VD

    def logits(self, packed: Packed, items_C: Tensor | None = None) -> Tensor:
        """[B, V], or [B, C] of these item rows."""
        request = {}
        if "items" in self._inputs:
            request["items"] = rectangle(packed)
        if "users" in self._inputs:
            if packed.users is None:
                raise ValueError("the users whose histories these are expected, found none")
            request["users"] = packed.users
        scores_BV = self._answer(request)
        if self._table_VD is not None:
            scores_BV = scores_BV @ self._table_VD.T
        return scores_BV if items_C is None else scores_BV.index_select(1, items_C)


def is_export(folder: Path) -> bool:
    """Whether it is an exported folder rather than a run."""
    return (folder / EXPORT).is_file()


def open_student(folder: Path, store: Store) -> AnyStudent:
    """The student of a run, or what was exported of one.

    Raises:
        StoreError: ``export.damaged``, ``model.foreign`` and what `load_student` raises.
        UsageError: ``run.missing``, ``export.no_runtime``.
    """
    if not is_export(folder):
        return load_student(folder, store)
    about = _checked(folder)
    dataset = about["trained_from"]["dataset"]
    if dataset != store.dataset.digest:
        raise StoreError(
            f"{folder}: was trained on the dataset {dataset[:19]}, {store.path} holds "
            f"{store.dataset.digest[:19]}; name its own store with --cache.",
            code="model.foreign",
        )
    kind = about["format"]
    if kind == "safetensors":
        return load_student(folder, store)
    path = folder / model_file(kind)
    inputs = [one["name"] for one in about["inputs"]]
    answer = _onnx(path) if kind == "onnx" else _torch_export(path, inputs)
    table_VD = None
    if about["table"] == "apart":
        table_VD = torch.from_numpy(np.load(folder / TABLE, allow_pickle=False))
    return Exported(answer, inputs, table_VD)


def rectangle(packed: Packed) -> Tensor:
    """[B, L] the histories in rows, padding behind them."""
    lengths_B = packed.positions[packed.last] + 1
    batch = len(lengths_B)
    rows_N = torch.arange(batch).repeat_interleave(lengths_B)
    items_BL = torch.full((batch, int(lengths_B.max())), PADDING, dtype=torch.int64)
    items_BL[rows_N, packed.positions] = packed.items
    return items_BL


def _checked(folder: Path) -> dict[str, Any]:
    """export.json, once every file is known to be what it says."""
    try:
        about = json.loads((folder / EXPORT).read_bytes())
        files = dict(about["files"])
        name = model_file(about["format"])
        sound = name in files and {"dataset"} <= about["trained_from"].keys()
        sound = sound and (about["format"] == "safetensors" or bool(about["inputs"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _damaged(folder / EXPORT) from None
    if not sound:
        raise _damaged(folder / EXPORT)
    for name, digest in sorted(files.items()):
        path = folder / name
        if Path(name).name != name or not path.is_file() or sha256_file(path) != digest:
            raise _damaged(path)
    return dict(about)


def _damaged(path: Path) -> StoreError:
    return StoreError(
        f"{path}: is not what was written; remove the folder and run `kd-student export` again.",
        code="export.damaged",
    )


def _onnx(path: Path) -> Answer:
    if not find_spec("onnxruntime"):
        raise UsageError(
            f"{path}: is run by onnxruntime, which is not installed; pip install onnxruntime.",
            code="export.no_runtime",
        )
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def answer(request: dict[str, Tensor]) -> Tensor:
        (found,) = session.run(None, {name: one.numpy() for name, one in request.items()})
        return torch.from_numpy(found)

    return answer


def _torch_export(path: Path, inputs: list[str]) -> Answer:
    module = torch.export.load(path).module()

    def answer(request: dict[str, Tensor]) -> Tensor:
        found: Tensor = module(*(request[name] for name in inputs))
        return found

    return answer
