"""P08: reading runs no code: no pickle, no eval, no remote code.

Canaries lie wherever a careless reader would run them, in a store whose publisher sealed them well; it is shown, verified and
trained from in a process of its own, with an audit hook that hears pickles, processes, sockets and foreign code. Files of
weights are attacked in tests/teachers/test_weights_hostile.py and test_pickled.py; the ordinary road is watched by test_p26.
"""

from __future__ import annotations

import ast
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache.errors import CkdError, InputError
from teachers import text
from teachers.weights import read_official
from tests.promises.grounds import ROOT, code_of, copied, in_memory, opened, reparented
from tests.promises.ledger import all_kept

PACKAGES = ("cache", "encoder", "teachers", "student", "pipeline")


class Canary:
    """Unpickled, it would touch the file that CANARY names."""

    def __reduce__(self) -> Any:
        return os.system, ('touch "$CANARY"',)


PICKLE = pickle.dumps(Canary())


def object_array(path: Path) -> None:
    np.save(path.with_suffix(".npy"), np.array([Canary()], dtype=object), allow_pickle=True)
    if path.suffix != ".npy":
        path.with_suffix(".npy").rename(path)


def pickle_codec(path: Path) -> None:
    """zarr.json that asks for numcodecs' pickle."""
    value = json.loads(path.read_bytes())
    value["codecs"] = [{"name": "numcodecs.pickle", "configuration": {"protocol": 5}}]
    path.write_text(json.dumps(value))


def zarr_two(path: Path) -> None:
    """An array of objects in Zarr's older format, in place of the score set's."""
    path.unlink()
    (path.parent / ".zarray").write_text(
        json.dumps({"zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "compressor": None, "fill_value": None,
                    "order": "C", "filters": [{"id": "pickle", "protocol": 5}]})
    )  # fmt: skip
    (path.parent / "0").write_bytes(PICKLE)


class Unsafe(pa.ExtensionType):
    """An extension type whose description is a pickle, as pyarrow's own once was."""

    def __init__(self) -> None:
        super().__init__(pa.string(), "arrow.py_extension_type")

    def __arrow_ext_serialize__(self) -> bytes:
        return PICKLE

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: Any, serialized: bytes) -> Any:
        raise AssertionError("never registered")


def extension(path: Path) -> None:
    table = pq.read_table(path)
    column = pa.ExtensionArray.from_storage(Unsafe(), table[1].combine_chunks().cast(pa.string()))
    pq.write_table(table.set_column(1, table.schema.names[1], column), path)


def pandas_metadata(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({b"pandas": PICKLE, b"canary": PICKLE}), path)


def schema_metadata(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(
        table.replace_schema_metadata({b"ARROW:schema": PICKLE}), path, store_schema=False
    )


CANARIES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a pickle for items": ("dataset/items.parquet", lambda p: p.write_bytes(PICKLE)),
    "a pickle for a plan": ("plan/plan.parquet", lambda p: p.write_bytes(PICKLE)),
    "a pickle for a shard": ("scores/one/scores.zarr/c.0.0.0", lambda p: p.write_bytes(PICKLE)),
    "a pickle for zarr.json": ("scores/one/scores.zarr/zarr.json", lambda p: p.write_bytes(PICKLE)),
    "an object array": ("factors/one/items/0000000.npy", object_array),
    "an object array for a shard": ("scores/one/scores.zarr/c.0.0.0", object_array),
    "a pickle codec": ("scores/one/scores.zarr/zarr.json", pickle_codec),
    "an array of Zarr 2": ("scores/one/scores.zarr/zarr.json", zarr_two),
    "an extension type": ("dataset/items.parquet", extension),
    "an extension type in a plan": ("plan/instances.parquet", extension),
    "metadata that are a pickle": ("dataset/sequences.parquet", pandas_metadata),
    "a schema that is a pickle": ("dataset/sequences.parquet", schema_metadata),
    "a script": ("scores/one/canary.py", lambda p: p.write_text("import os; os.system('touch \"$CANARY\"')")),
    "a startup file": ("dataset/canary.pth", lambda p: p.write_text("import os; os.system('touch \"$CANARY\"')")),
    "a configuration": ("scores/one/config.json", lambda p: p.write_text('{"auto_map": {"AutoModel": "canary.Model"}}')),
}  # fmt: skip


#: what no reader looks at, or reads as the plain text below it: taken, and as silent as the others
HARMLESS = {
    "metadata that are a pickle",
    "a schema that is a pickle",
    "an extension type",
    "a startup file",
}


def test_canaries_sealed_in_a_store_are_refused_and_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    with in_memory() as folder:
        mark = folder / "mark"
        monkeypatch.setenv("CANARY", str(mark))
        for number, (name, (file, lay)) in enumerate(CANARIES.items()):
            store = copied(folder / str(number))
            lay(store / file)
            reparented(store)
            code = code_of(lambda store=store: opened(store))
            harmless = name in HARMLESS  # which nobody looks at
            told.append("" if code or harmless else f"{name}: taken")
            told.append(f"{name}: it ran" if mark.exists() else "")
        pickle.loads(PICKLE)  # noqa: S301  # the canary is alive, or this test would prove nothing
        assert mark.exists()
    all_kept("P08", told)


def test_a_process_that_shows_verifies_and_trains_runs_nothing_of_it() -> None:
    with in_memory() as folder:
        store = copied(folder / "store")
        pandas_metadata(store / "dataset/sequences.parquet")
        pandas_metadata(store / "plan/plan.parquet")
        reparented(store)
        (folder / "canary.py").write_text("raise SystemExit('a file of the working folder ran')")
        (folder / "sitecustomize.py").write_text(
            "raise SystemExit('a file of the working folder ran')"
        )
        told = folder / "told.json"
        script = Path(__file__).with_name("road.py")
        done = subprocess.run(
            [sys.executable, str(script), str(folder), str(told), str(store)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "CANARY": str(folder / "mark")},
            capture_output=True, text=True, timeout=200, check=False, cwd=folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        seen = json.loads(told.read_text())
        assert set(seen["statuses"].values()) == {0}, (seen["statuses"], done.stderr)
        kinds = ["; ".join(seen[kind]) for kind in ("pickle", "process", "code", "socket")]
        all_kept("P08", [*kinds, "it ran" if (folder / "mark").exists() else ""])


@pytest.mark.parametrize(
    "field",
    ["auto_map", "_attn_implementation", "model_type", "architectures", "quantization_config"],
)
def test_a_text_model_that_brings_its_own_code_is_refused(
    field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with in_memory() as folder:
        mark = folder / "mark"
        monkeypatch.setenv("CANARY", str(mark))
        model = folder / "model"
        model.mkdir()
        code = "import os; os.system('touch \"$CANARY\"')\nclass Model: pass\nclass Config: pass\n"
        (model / "canary.py").write_text(code)
        value: Any = {
            "auto_map": {
                "AutoConfig": "canary.Config",
                "AutoModel": "canary.Model",
                "AutoTokenizer": ["canary.Model", None],
            },
            "_attn_implementation": "evil/kernel",
            "model_type": "canary",
            "architectures": ["canary.Model"],
            "quantization_config": {"quant_method": "canary"},
        }[field]
        (model / "config.json").write_text(json.dumps({"model_type": "bert", field: value}))
        (model / "tokenizer_config.json").write_text(
            json.dumps({"auto_map": {"AutoTokenizer": ["canary.Model", None]}})
        )
        (model / "model.safetensors").write_bytes(b"")
        (model / "pytorch_model.bin").write_bytes(PICKLE)
        with pytest.raises(CkdError):
            text._load(model)
        all_kept("P08", ["it ran" if mark.exists() else ""])


def test_weights_that_are_a_plain_pickle_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with in_memory() as folder:
        monkeypatch.setenv("CANARY", str(folder / "mark"))
        for name in ("x.pt", "x.pth", "x.bin"):
            (folder / name).write_bytes(PICKLE)
            with pytest.raises(InputError):
                read_official(folder / name)
        all_kept("P08", ["it ran" if (folder / "mark").exists() else ""])


# ---- the source

FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "input"}
FORBIDDEN_NAMES = {
    "torch.load",
    "os.system",
    "os.popen",
    "subprocess",
    "shelve",
    "marshal",
    "runpy",
    "yaml",
    "torch.hub",
}
#: the only file that may speak of pickles, as it reads them without running them
READERS = {"teachers/pickled.py"}


def complaints(path: Path) -> list[str]:
    name = path.relative_to(ROOT).as_posix()
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"{name}:{getattr(node, 'lineno', 0)}"
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in FORBIDDEN_CALLS
        ):
            found.append(f"{where}: {node.func.id}()")
        if isinstance(node, ast.Attribute) and ast.unparse(node) in FORBIDDEN_NAMES:
            found.append(f"{where}: {ast.unparse(node)}")
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [one.name for one in node.names]
            )
            tools = {
                "pickle",
                "subprocess",
                "marshal",
                "shelve",
                "runpy",
                "yaml",
                "pickletools",
                "dill",
                "joblib",
                "cloudpickle",
            }
            odd = {module.partition(".")[0] for module in modules} & (
                tools - ({"pickletools"} if name in READERS else set())
            )
            found += [f"{where}: import {one}" for one in sorted(odd)]
        if isinstance(node, ast.keyword):
            value = ast.unparse(node.value)
            if (node.arg == "trust_remote_code" and value != "False") or (
                node.arg == "allow_pickle" and value != "False"
            ):
                found.append(f"{where}: {node.arg}={value}")
        if isinstance(node, ast.Call):
            called, given = ast.unparse(node.func), {word.arg for word in node.keywords}
            if called in {"np.load", "numpy.load"} and "allow_pickle" not in given:
                found.append(f"{where}: np.load without allow_pickle=False")
            if called.endswith(".from_pretrained") and "trust_remote_code" not in given:
                found.append(f"{where}: from_pretrained without trust_remote_code=False")
    return found


def test_no_product_code_unpickles_evaluates_or_starts_anything() -> None:
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(files) > 80
    all_kept("P08", ["; ".join(complaints(path)) for path in files])


def test_the_scan_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.promises.test_p08_no_code.ROOT", tmp_path)
    lines = ["import pickle", "eval('1')", "torch.load(x)", "np.load(x)", "f(trust_remote_code=True)", "M.from_pretrained(x)",
             "from subprocess import run", "os.system('x')", "np.load(x, allow_pickle=True)"]  # fmt: skip
    (tmp_path / "x.py").write_text("\n".join(lines))
    assert len({line.partition(": ")[0] for line in complaints(tmp_path / "x.py")}) == len(lines)
