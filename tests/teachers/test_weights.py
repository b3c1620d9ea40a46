"""Official checkpoints: what loads, exactly, and what is said of files that are not one."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cache.errors import InputError, UsageError
from pipeline.teach import import_official
from teachers.folder import load_folder
from teachers.unisrec import UniSRec
from teachers.weights import OFFICIAL, read_official
from tests.teachers.official import ROWS, checkpoint, parts, saved, state_dict, zipped


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == torch.float32 and torch.equal(found[name], expected[name].float())
        for name in expected
    )


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("ordered", [True, False])
def test_a_pretrained_file_loads_exactly(tmp_path: Path, protocol: int, ordered: bool) -> None:
    state = state_dict()
    assert len(state) == 53
    kind = collections.OrderedDict if ordered else dict
    path = saved(tmp_path / "x.pth", checkpoint(kind(state)), pickle_protocol=protocol)
    found = read_official(path)
    assert same(found, state)
    UniSRec(OFFICIAL).load_state_dict(found)


def test_the_state_dict_of_a_module_with_its_metadata_loads(tmp_path: Path) -> None:
    state = UniSRec(OFFICIAL).state_dict()
    assert state._metadata  # type: ignore[attr-defined]
    assert same(read_official(saved(tmp_path / "x.pth", checkpoint(state))), dict(state))


def test_a_bare_state_dict_and_parameters_load(tmp_path: Path) -> None:
    state = state_dict()
    assert same(read_official(saved(tmp_path / "a.pth", state)), state)
    parameters = {name: torch.nn.Parameter(one) for name, one in state.items()}
    assert same(read_official(saved(tmp_path / "b.pth", checkpoint(parameters))), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {name: one.to(dtype) for name, one in state_dict().items()}
    assert same(read_official(saved(tmp_path / "x.pth", checkpoint(state))), state)


def test_views_and_shared_storages_load_as_they_look(tmp_path: Path) -> None:
    state = state_dict()
    wide = torch.randn(300, 900)
    names = [f"trm_encoder.layer.0.multi_head_attention.{p}.weight" for p in ("query", "key")]
    state[names[0]] = wide[:, 300:600].t()
    state[names[1]] = wide[:, 600:]
    assert same(read_official(saved(tmp_path / "x.pth", checkpoint(state))), state)


@pytest.mark.parametrize(("stage", "keys"), [("inductive", 54), ("transductive", 55)])
def test_tuned_files_lose_their_padding_row(tmp_path: Path, stage: str, keys: int) -> None:
    state = state_dict(stage)
    found = read_official(saved(tmp_path / "x.pth", checkpoint(state)))
    assert len(found) == len(state) == keys
    expected = {
        name: one[1:] if name in {"plm_embedding.weight", "item_embedding.weight"} else one
        for name, one in state.items()
    }
    assert same(found, expected)
    with_ids = stage == "transductive"
    model = UniSRec(OFFICIAL, torch.zeros(ROWS - 1, 768), with_ids=with_ids)
    model.load_state_dict(found)


def refused(path: Path, code: str) -> str:
    with pytest.raises(InputError) as caught:
        read_official(path)
    said = str(caught.value)
    assert (caught.value.code, caught.value.exit) == (code, 4)
    assert said.startswith(f"{path}: ")
    assert said.isprintable()
    return said


def test_every_key_that_is_wrong_is_listed(tmp_path: Path) -> None:
    state = state_dict()
    del state["LayerNorm.bias"], state["moe_adaptor.w_gate"]
    state["classifier.weight"] = torch.zeros(2)
    state["a\nb\x1b[31m"] = torch.zeros(2)
    state["position_embedding.weight"] = torch.zeros(20, 300)
    state["moe_adaptor.w_noise"] = torch.zeros(8, 768)
    said = refused(saved(tmp_path / "x.pth", checkpoint(state)), "weights.wrong_keys")
    assert "missing: LayerNorm.bias, moe_adaptor.w_gate; " in said
    assert r"extra: 'a\nb\x1b[31m', classifier.weight; " in said
    assert (
        "mis-shaped: moe_adaptor.w_noise (8, 768) instead of (768, 8), "
        "position_embedding.weight (20, 300) instead of (50, 300); "
    ) in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"item_embedding.weight": torch.zeros(ROWS, 300)}, "extra: item_embedding.weight;"),
        ({"plm_embedding.weight": torch.zeros(ROWS, 384)},
         f"plm_embedding.weight ({ROWS}, 384) instead of ({ROWS}, 768);"),
        ({"plm_embedding.weight": torch.zeros(1, 768)}, "(1, 768) instead of (2, 768);"),
        ({"plm_embedding.weight": torch.tensor(1.0)}, "() instead of (2, 768);"),
        ({"plm_embedding.weight": torch.zeros(ROWS, 768), "item_embedding.weight": torch.zeros(3, 300)},
         f"item_embedding.weight (3, 300) instead of ({ROWS}, 300);"),
        ({"LayerNorm.weight": torch.zeros(1, 300)}, "LayerNorm.weight (1, 300) instead of (300,);"),
    ],
)  # fmt: skip
def test_tables_must_fit_each_other(tmp_path: Path, changes: dict[str, Tensor], said: str) -> None:
    path = saved(tmp_path / "x.pth", checkpoint(state_dict() | changes))
    assert said in refused(path, "weights.wrong_keys")


@pytest.mark.parametrize(
    "value",
    [
        {"state_dict": None},
        {"state_dict": [1, 2]},
        [1, 2],
        None,
        "text",
        {"state_dict": {"a": 1}},
        {"state_dict": {"a": torch.zeros(2, dtype=torch.int64)}},
        {"state_dict": {"a": torch.zeros(2, 2).to_sparse()}},
        {"state_dict": {"a": torch.nn.Linear(2, 2)}},
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, value: Any) -> None:
    refused(saved(tmp_path / "x.pth", value), "weights.unreadable")


def test_an_empty_state_dict_lacks_every_key(tmp_path: Path) -> None:
    said = refused(saved(tmp_path / "x.pth", {"state_dict": {}}), "weights.wrong_keys")
    assert said.count(",") == 52
    assert "extra: none; mis-shaped: none" in said


def test_a_file_that_is_not_there_or_is_a_folder(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none.pth", "No such file"), (tmp_path, "Is a directory")):
        said = refused(path, "weights.unreadable")
        assert why in said
        assert said.endswith("check the path.")


def test_big_endian_numbers_are_refused(tmp_path: Path) -> None:
    entries = parts(saved(tmp_path / "x.pth", checkpoint(state_dict())))
    (order,) = [name for name in entries if name.endswith("byteorder")]
    assert "little-endian" in refused(
        zipped(tmp_path / "y.pth", entries | {order: b"big"}), "weights.unreadable"
    )
    del entries[order]  # as older versions of torch write it
    assert len(read_official(zipped(tmp_path / "z.pth", entries))) == 53


def test_the_numbers_of_optimizers_are_never_read(tmp_path: Path) -> None:
    value = checkpoint(state_dict())
    entries = parts(saved(tmp_path / "x.pth", value))
    moments = value["optimizer"]["state"][0]["exp_avg"].numpy().tobytes()
    (name,) = [n for n, data in entries.items() if "/data/" in n and data == moments]
    del entries[name]
    assert same(read_official(zipped(tmp_path / "y.pth", entries)), value["state_dict"])


# ---- import


def test_import_brings_it_into_our_layout(tmp_path: Path) -> None:
    state = state_dict()
    config = import_official(saved(tmp_path / "x.pth", checkpoint(state)), tmp_path / "p")
    weights, kept, _ = load_folder(tmp_path / "p")
    assert kept == config
    assert same(weights, state)
    assert (kept["stage"], kept["whiten"], kept["architecture"]["text_width"]) == (
        "pretrained",
        False,
        768,
    )


@pytest.mark.parametrize("stage", ["inductive", "transductive"])
def test_import_refuses_tuned_files(tmp_path: Path, stage: str) -> None:
    path = saved(tmp_path / "x.pth", checkpoint(state_dict(stage)))
    with pytest.raises(UsageError, match="is tuned on its authors' own numbering") as caught:
        import_official(path, tmp_path / "p")
    assert caught.value.code == "weights.tuned"
    assert ("item_embedding.weight" in str(caught.value)) == (stage == "transductive")
    assert not (tmp_path / "p").exists()


def test_classes_that_do_not_exist_here_are_not_missed(tmp_path: Path) -> None:
    entries = parts(saved(tmp_path / "x.pth", checkpoint(state_dict())))
    (name,) = [one for one in entries if one.endswith("data.pkl")]
    here, there = b"tests.teachers.official", b"recbole.config.no_such_"
    assert here in entries[name]
    entries[name] = entries[name].replace(here, there)
    assert same(read_official(zipped(tmp_path / "y.pth", entries)), state_dict())
