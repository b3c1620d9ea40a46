"""A trained student as a folder that others can serve without this program.

    export.json   README.md   items.parquet   [users.parquet]   model.onnx | model.pt2 | model.safetensors   [item_table.npy]

`export.json` says what goes in and comes out, names the run, dataset, plan and teachers by digest, and lists every other
file with its sha256. items.parquet and users.parquet turn rows into ids. The folder is published by one rename and never
overwritten. Refuses ONNX where the extra `export` is not installed, and a student that cannot be traced. Costs seconds, and
the memory of the model twice. What may be asked of it: student/serving.py.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import torch

from cache.atomic import put, staging
from cache.dataset import Dataset
from cache.digest import sha256_file
from cache.errors import UsageError
from cache.store import Store
from cache.tables import write_table
from pipeline.card import base_beside, card, title_of
from pipeline.runs import MODEL, RECORD, Run, load_student, open_run
from student.protocol import Asked
from student.serving import asked, quiet, serving, traced

__all__ = ["CARD", "EXPORT", "TABLE", "ExportFormat", "Place", "export", "model_file"]

ExportFormat: TypeAlias = Literal["onnx", "torch-export", "safetensors"]
Place: TypeAlias = Literal["inside", "apart"]
"""Where the item table is: in the model, which then gives scores, or in a file beside it."""

EXPORT, CARD, TABLE = "export.json", "README.md", "item_table.npy"
_VERSION = 1
_OPSET = 18
_FILES: dict[ExportFormat, str] = {
    "onnx": "model.onnx",
    "torch-export": "model.pt2",
    "safetensors": MODEL,
}
_DIMS: dict[Asked, list[str]] = {"items": ["batch", "length"], "users": ["batch"]}
_MEANINGS: dict[Asked, str] = {
    "items": "rows of items.parquet, a history a row, the oldest item first, -1 behind it",
    "users": "rows of users",
}


def model_file(kind: ExportFormat) -> str:
    """The name of the model in an exported folder."""
    return _FILES[kind]


def export(
    run: Path, store: Store, out: Path, kind: ExportFormat, *, table: Place = "inside"
) -> Mapping[str, Any]:
    """Export a finished run to the new folder `out`; returns what export.json says.

    Raises:
        UsageError: ``run.missing``, ``export.no_extra``, ``export.no_table``, ``export.not_traceable``.
        StoreError: ``store.exists``, ``model.foreign``, ``run.damaged``.
    """
    apart = table == "apart"
    if kind == "safetensors" and apart:
        raise UsageError(
            "--table apart is for a model that runs by itself; with --format safetensors leave it away.",
            code="export.no_table",
        )
    if kind == "onnx" and not all(find_spec(name) for name in ("onnx", "onnxscript")):
        raise UsageError(
            "--format onnx needs the packages onnx and onnxscript; pip install 'ckd-mdsr[export]'.",
            code="export.no_extra",
        )
    finished = open_run(run)
    model = load_student(run, store)
    inputs = asked(model)
    with staging(out) as folder:
        path = folder / _FILES[kind]
        if kind == "safetensors":
            put(path, (run / MODEL).read_bytes())
        else:
            module = serving(model, store.dataset, apart=apart)
            program = traced(module, inputs)
            output = "vectors" if apart else "scores"
            if kind == "onnx":
                _write_onnx(program, path, inputs, output)
            else:
                with quiet():
                    torch.export.save(program, path)
            if apart:
                with torch.inference_mode():
                    table_VD = model.item_table()  # type: ignore[union-attr]  # it is a Student
                buffer = io.BytesIO()
                np.save(buffer, table_VD.detach().float().numpy(), allow_pickle=False)
                put(folder / TABLE, buffer.getbuffer())
        _write_ids(folder, store.dataset, inputs)
        about = _about(finished, store, kind, inputs, None if kind == "safetensors" else table)
        text = card(finished, base_beside(finished)) + "\n" + _how_to_serve(about)
        put(folder / CARD, text.encode())
        names = sorted(one.name for one in folder.iterdir())
        about["files"] = {name: sha256_file(folder / name) for name in names}
        put(folder / EXPORT, json.dumps(about, indent=2, sort_keys=True).encode() + b"\n")
    return about


def _write_onnx(
    program: torch.export.ExportedProgram, path: Path, inputs: Sequence[Asked], output: str
) -> None:
    """Opset 18; without the names of files and functions that the exporter notes down beside each operation."""
    from onnx_ir.passes import common

    shapes: dict[str, Any] = {name: dict(enumerate(_DIMS[name])) for name in inputs}
    talk = logging.getLogger("torch.onnx")
    before = talk.level
    talk.setLevel(logging.ERROR)  # of torchvision, which nobody asked for
    try:
        with quiet():
            made = torch.onnx.export(
                program,
                (),
                None,
                dynamo=True,
                opset_version=_OPSET,
                dynamic_shapes=shapes,
                output_names=[output],
                verbose=False,
            )
    finally:
        talk.setLevel(before)
    if made is None:
        raise TypeError("torch.onnx.export gave nothing")
    common.ClearMetadataAndDocStringPass()(made.model)
    common.LiftSubgraphInitializersToMainGraphPass()(made.model)
    common.RemoveUnusedNodesPass()(made.model)
    made.save(path)


def _write_ids(folder: Path, dataset: Dataset, inputs: Sequence[Asked]) -> None:
    items = dataset.items
    rows = pa.array(np.arange(dataset.num_items, dtype=np.int64))
    write_table(
        folder / "items.parquet",
        pa.table({"row": rows, "item": items["item"], "title": items["title"]}),
    )
    ids = dataset.user_ids() if "users" in inputs else None
    if ids is not None:
        rows = pa.array(np.arange(dataset.num_users, dtype=np.int64))
        write_table(folder / "users.parquet", pa.table({"row": rows, "user": ids}))


def _about(
    run: Run, store: Store, kind: ExportFormat, inputs: Sequence[Asked], table: Place | None
) -> dict[str, Any]:
    identity = run.record["identity"]
    items = store.dataset.num_items
    about: dict[str, Any] = {
        "version": _VERSION,
        "format": kind,
        "model": _FILES[kind],
        "student": identity.get("student", "sasrec"),
        "title": title_of(identity),
        "items": items,
        "max_length": store.dataset.max_length,
        "trained_from": {
            "run": sha256_file(run.folder / RECORD),
            **{k: v for k, v in identity.items() if str(v).startswith("sha256:")},
        },
        "validation": run.record["validation"],
        "test": run.record["test"],
        "torch": torch.__version__,
    }
    if table is None:
        return about
    what = "scores" if table == "inside" else "vectors"
    meaning = (
        "of every row of items.parquet; sort downwards"
        if table == "inside"
        else f"multiply with {TABLE} [items, width], transposed, for the scores"
    )
    wide: int | str = items if table == "inside" else "width"
    return about | {
        "table": table,
        "inputs": [
            {"name": name, "type": "int64", "shape": _DIMS[name], "meaning": _MEANINGS[name]}
            for name in inputs
        ],
        "outputs": [
            {"name": what, "type": "float32", "shape": ["batch", wide], "meaning": meaning}
        ],
    }


def _how_to_serve(about: Mapping[str, Any]) -> str:
    """The last chapter of the folder's README."""
    lines = ["## How to serve it", ""]
    if about["format"] == "safetensors":
        lines += [
            f"`{about['model']}` holds the weights alone; `kd-student evaluate` and `recommend` read this folder."
        ]
        return "\n".join(lines) + "\n"
    for one in [*about["inputs"], *about["outputs"]]:
        shape = ", ".join(str(size) for size in one["shape"])
        lines.append(f"- `{one['name']}` [{shape}] {one['type']}: {one['meaning']}.")
    if any(one["name"] == "items" for one in about["inputs"]):
        lines.append(
            f"- A history has 1 to {about['max_length']} items, the last ones; a row that breaks this, or names "
            "what is in no row of the tables, gives NaN."
        )
    names = ", ".join(one["name"] for one in about["inputs"])
    code = {
        "onnx": [
            "import numpy as np, onnxruntime",
            f'session = onnxruntime.InferenceSession("{about["model"]}")',
            "(answer,) = session.run(None, {"
            + ", ".join(f'"{one["name"]}": {one["name"]}' for one in about["inputs"])
            + "})",
        ],
        "torch-export": [
            "import numpy as np, torch",
            f'answer = torch.export.load("{about["model"]}").module()({names})',
        ],
    }[about["format"]]
    if about["table"] == "apart":
        table = f'np.load("{TABLE}")'
        if about["format"] == "torch-export":
            table = f"torch.from_numpy({table})"
        code.append(f"scores = answer @ {table}.T")
    return "\n".join([*lines, "", "```python", *code, "```"]) + "\n"
