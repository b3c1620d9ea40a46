"""What is exported says what the model says, is as large as its base, and is judged as the run was."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow.parquet as pq
import pytest
import torch

from cache.dataset import Dataset
from cache.digest import sha256_bytes
from cache.errors import StoreError, UsageError
from cache.store import Store
from encoder.packed import Packed
from pipeline import export as module
from pipeline import exported
from pipeline.evaluate import rank_student
from pipeline.export import _write_onnx, export
from pipeline.exported import open_student, rectangle
from pipeline.metrics import metrics_of_ranks
from pipeline.runs import Run
from student.serving import asked, serving, traced
from tests.student.small import NAMES, made, packed, shop, trained


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return shop(tmp_path_factory.mktemp("export") / "store")


@pytest.fixture(scope="module")
def runs(store: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        kind: trained(store, folder / kind, "sasrec", teachers=teachers, sizes={"layers": 1})
        for kind, teachers in (("base", 0), ("distilled", 2))
    }


@pytest.fixture(scope="module")
def folders(
    store: Store, runs: dict[str, Run], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Both runs as ONNX, and the distilled one in other ways."""
    folder = tmp_path_factory.mktemp("exports")
    ways: dict[str, tuple[str, Any, Any]] = {
        "base": ("base", "onnx", "inside"),
        "onnx": ("distilled", "onnx", "inside"),
        "torch-export apart": ("distilled", "torch-export", "apart"),
        "safetensors": ("distilled", "safetensors", "inside"),
    }
    for name, (kind, form, table) in ways.items():
        export(runs[kind].folder, store, folder / name, form, table=table)
    return {name: folder / name for name in ways}


def bare(model: Any, histories: Packed) -> np.ndarray:
    """[B, V] scores as the model makes them itself."""
    with torch.inference_mode():
        if hasattr(model, "encode"):
            return (model.encode(histories) @ model.item_table().T).numpy()
        return model.logits(histories).numpy()


RAGGED = [
    ([[3]], [5]),  # a batch of one, of length one
    ([[9, 9, 1, 0, 23, 4]], [0]),  # as long as a history may be
    ([[7, 7], [0], [1, 2, 3, 4, 5], [22, 0, 22]], [39, 1, 1, 12]),
]


@pytest.mark.parametrize("name", NAMES)
def test_both_kinds_of_file_score_as_the_model_does_at_any_batch_and_length(
    name: str, store: Store, tmp_path: Path
) -> None:
    """The model itself reads the histories without padding; the exported graphs read them padded."""
    # two layers, of which the last is another computation than the first; BERT4Rec has SASRec's
    model = made(name, store.dataset, layers=1 if name == "bert4rec" else 2)
    inputs = asked(model)
    program = traced(serving(model, store.dataset), inputs)
    _write_onnx(program, tmp_path / "model.onnx", inputs, "scores")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    graph = program.module()
    for histories, users in RAGGED:
        wanted = bare(model, packed(histories, users))
        request = {"items": rectangle(packed(histories)), "users": torch.tensor(users)}
        (found,) = session.run(None, {name: request[name].numpy() for name in inputs})
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
        with torch.inference_mode():
            again = graph(*(request[name] for name in inputs))
        np.testing.assert_allclose(again.numpy(), wanted, rtol=1e-5, atol=1e-5)


def test_padding_says_nothing(folders: dict[str, Path]) -> None:
    """Three more places of padding move no score."""
    session = onnxruntime.InferenceSession(folders["onnx"] / "model.onnx")
    (short,) = session.run(None, {"items": np.array([[4, 5, 6]])})
    (long,) = session.run(None, {"items": np.array([[4, 5, 6, -1, -1, -1]])})
    np.testing.assert_allclose(long, short, rtol=1e-6, atol=1e-6)


def test_a_row_that_breaks_the_layout_gives_nan_and_harms_no_other(
    folders: dict[str, Path],
) -> None:
    session = onnxruntime.InferenceSession(folders["onnx"] / "model.onnx")
    rows = [[-1, -1, -1], [-1, 4, 5], [4, -1, 5], [4, 5, -1]]
    (found,) = session.run(None, {"items": np.array(rows)})
    (alone,) = session.run(None, {"items": np.array([[4, 5]])})
    assert np.isnan(found[:3]).all()
    np.testing.assert_allclose(found[3], alone[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_that_no_history_can_be_gives_nan_and_harms_no_other(
    name: str, store: Store, tmp_path: Path
) -> None:
    """Too long, or of items and users who are not there; padding alone may be wider than a history."""
    model = made(name, store.dataset)
    inputs = asked(model)
    program = traced(serving(model, store.dataset), inputs)
    _write_onnx(program, tmp_path / "model.onnx", inputs, "scores")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    longest, items, users = 6, store.dataset.num_items, store.dataset.num_users
    fine = [[4, 5, 6], [9, 9, 1, 0, 23, 4]]
    bad = [[1] * (longest + 1), [-2, 2, 3], [2, -2], [2, 3, -1, -2], [items, 2, 3], [2**40]]
    rows = [*bad, fine[0], fine[0], *fine]
    who = [0] * len(bad) + [users, -1, 0, 1]
    spoilt = [True] * len(bad) + [True, True, False, False]
    if "items" not in inputs:
        spoilt = [not 0 <= user < users for user in who]
    if "users" not in inputs:
        spoilt = [row not in fine for row in rows]
    wide = torch.tensor([one + [-1] * (longest + 3 - len(one)) for one in rows])
    request = {"items": wide, "users": torch.tensor(who)}
    (found,) = session.run(None, {name: request[name].numpy() for name in inputs})
    with torch.inference_mode():
        graph = program.module()(*(request[name] for name in inputs)).numpy()
    for scores in (found, graph):
        assert np.isnan(scores).all(axis=1).tolist() == spoilt
        wanted = bare(model, packed(fine, [0, 1]))
        np.testing.assert_allclose(scores[-2:], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", ["onnx", "torch-export apart", "safetensors"])
def test_it_is_judged_as_the_run_was(
    way: str, folders: dict[str, Path], store: Store, runs: dict[str, Run]
) -> None:
    ranks = rank_student(
        open_student(folders[way], store), store.dataset, store.dataset.held_out("test")
    )
    assert metrics_of_ranks(ranks) == pytest.approx(runs["distilled"].test, abs=1e-6)
    assert len(set(ranks.tolist())) > 5  # not all the same


def shape_of(path: Path) -> list[Any]:
    """Operations in order with the attributes and names of what they read and make, and every weight's shape."""
    graph = onnx.load(path).graph
    nodes = [
        (one.op_type, list(one.input), list(one.output), [str(a) for a in one.attribute])
        for one in graph.node
    ]
    return [
        *nodes,
        *sorted((one.name, one.data_type, tuple(one.dims)) for one in graph.initializer),
    ]


def test_the_distilled_student_is_served_at_exactly_its_bases_cost(
    folders: dict[str, Path],
) -> None:
    """Table 5's 1.0x: the same operations on the same shapes in the same order, in as many bytes; only numbers differ."""
    base, ours = (folders[name] / "model.onnx" for name in ("base", "onnx"))
    assert shape_of(base) == shape_of(ours)
    assert len(shape_of(base)) > 50
    assert base.stat().st_size == ours.stat().st_size
    assert base.read_bytes() != ours.read_bytes()


def test_the_file_is_little_larger_than_its_weights(
    folders: dict[str, Path], runs: dict[str, Run]
) -> None:
    """The graph takes some kilobytes whatever the model's size, and no item table is there twice."""
    size = (folders["onnx"] / "model.onnx").stat().st_size
    weights = 4 * runs["distilled"].record["parameters"]
    assert weights < size < weights + 40_000
    names = [one.name for one in onnx.load(folders["onnx"] / "model.onnx").graph.initializer]
    assert sum("item_embedding" in name for name in names) == 1
    assert b"wt/door" not in (folders["onnx"] / "model.onnx").read_bytes()
    assert (
        str(Path(module.__file__).parents[1]).encode()
        not in (folders["onnx"] / "model.onnx").read_bytes()
    )


def test_the_folder_tells_a_stranger_what_it_holds(
    folders: dict[str, Path], store: Store, runs: dict[str, Run]
) -> None:
    folder = folders["onnx"]
    about = json.loads((folder / "export.json").read_bytes())
    (given,) = about["inputs"]
    assert (given["name"], given["shape"], given["type"]) == ("items", ["batch", "length"], "int64")
    assert about["outputs"][0]["shape"] == ["batch", 24]
    model = onnxruntime.InferenceSession(folder / "model.onnx")
    assert [(one.name, one.shape) for one in model.get_inputs()] == [("items", ["batch", "length"])]
    assert [(one.name, one.shape) for one in model.get_outputs()] == [("scores", ["batch", 24])]
    identity = runs["distilled"].record["identity"]
    told = about["trained_from"]
    assert {key: told[key] for key in ("dataset", "plan", "scores.t0", "scores.t1")} == {
        key: identity[key] for key in ("dataset", "plan", "scores.t0", "scores.t1")
    }
    assert told["run"] == sha256_bytes((runs["distilled"].folder / "run.json").read_bytes())
    assert about["test"] == runs["distilled"].test
    assert about["max_length"] == 6
    ids = pq.read_table(folder / "items.parquet").to_pylist()
    assert ids[3] == {"row": 3, "item": "i3", "title": "Title 3"}
    assert {one.name for one in folder.iterdir()} == {"export.json", *about["files"]}


@pytest.mark.parametrize("way", ["onnx", "torch-export apart"])
def test_the_readme_of_the_folder_runs_as_it_stands(
    way: str, folders: dict[str, Path], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(
        r"```python\n(.*?)```", (folders[way] / "README.md").read_text(), re.DOTALL
    )
    items: Any = np.array([[3, 1, 4], [1, 5, -1]])
    there: dict[str, Any] = {"items": torch.from_numpy(items) if "torch" in way else items}
    monkeypatch.chdir(folders[way])
    with torch.inference_mode():
        exec(code, there)
    found = there["scores"] if "apart" in way else there["answer"]
    model = open_student(folders["safetensors"], store)
    wanted = bare(model, packed([[3, 1, 4], [1, 5]]))
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=1e-5, atol=1e-5)


def test_users_are_named_where_the_student_asks_for_them(store: Store, tmp_path: Path) -> None:
    run = trained(store, tmp_path / "run", "lightgcn", epochs=1)
    about = export(run.folder, store, tmp_path / "out", "onnx", table="apart")
    assert [one["name"] for one in about["inputs"]] == ["users"]
    assert pq.read_table(tmp_path / "out/users.parquet").to_pylist()[7] == {"row": 7, "user": "u7"}
    found = open_student(tmp_path / "out", store)
    ranks = rank_student(found, store.dataset, store.dataset.held_out("test"))
    assert metrics_of_ranks(ranks) == pytest.approx(run.test, abs=1e-6)


def test_a_folder_that_was_tampered_with_is_refused_by_name(
    folders: dict[str, Path], store: Store, tmp_path: Path
) -> None:
    def copied() -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for one in folders["onnx"].iterdir():
            (folder / one.name).write_bytes(one.read_bytes())
        return folder

    folder = copied()
    (folder / "model.onnx").write_bytes((folders["base"] / "model.onnx").read_bytes())
    with pytest.raises(StoreError, match=r"model\.onnx: is not what was written"):
        open_student(folder, store)
    for content in (b"", b"{}", b"[]", b'{"files": {}, "format": "onnx", "trained_from": {}}'):
        folder = copied()
        (folder / "export.json").write_bytes(content)
        with pytest.raises(StoreError, match=r"export\.json: is not what was written"):
            open_student(folder, store)


def test_another_datasets_store_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    other = shop(tmp_path / "other", users=30)
    with pytest.raises(StoreError) as caught:
        open_student(folders["onnx"], other)
    assert caught.value.code == "model.foreign"


def test_what_cannot_be_is_refused_and_leaves_nothing(
    store: Store, runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = runs["base"].folder, tmp_path / "out"
    deep = trained(store, tmp_path / "deep", "deepfm", epochs=1).folder
    for run, form, code in (
        (folder, "safetensors", "export.no_table"),
        (deep, "torch-export", "export.no_table"),
        (tmp_path / "nowhere", "onnx", "run.missing"),
    ):
        with pytest.raises(UsageError) as caught:
            export(run, store, out, form, table="apart")  # type: ignore[arg-type]
        assert caught.value.code == code
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'ckd-mdsr\[export\]'"):
        export(folder, store, out, "onnx")
    monkeypatch.undo()
    monkeypatch.setattr(exported, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="not installed; pip install onnxruntime"):
        exported._onnx(tmp_path / "model.onnx")
    assert not out.exists()


class Stubborn(torch.nn.Module):
    """A plug-in that looks at its numbers, which no tracer can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.items = torch.nn.Embedding(24, 4)

    def encode(self, batch: Packed) -> torch.Tensor:
        if batch.items.sum().item() > 10:
            return self.items(batch.items[batch.last])
        return self.items(batch.items[batch.last]) * 2

    def item_table(self) -> torch.Tensor:
        return self.items.weight


class Plain(Stubborn):
    """A plug-in as docs/students.md has it: exported as it is."""

    def encode(self, batch: Packed) -> torch.Tensor:
        return self.items(batch.items[batch.last])


def test_a_plug_in_is_exported_as_it_is_or_refused_in_one_sentence(dataset: Dataset) -> None:
    program = traced(serving(Plain(), dataset), ("items",))
    assert program.module()(torch.tensor([[3, 1, -1]])).shape == (1, 24)
    with pytest.raises(UsageError, match="this student cannot be traced") as caught:
        traced(serving(Stubborn(), dataset), ("items",))
    assert "\n" not in str(caught.value)


@pytest.fixture
def dataset() -> Any:
    return SimpleNamespace(max_length=6, num_items=24, num_users=40)
