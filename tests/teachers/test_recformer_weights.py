"""The official names and shapes, and files that hold them or nearly so."""

from __future__ import annotations

import collections
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cache.errors import InputError, UsageError
from teachers import recformer_weights
from teachers.recformer import Architecture, Recformer
from teachers.recformer_teacher import load_recformer
from teachers.recformer_tokens import Limits
from teachers.recformer_weights import import_recformer, read_recformer
from teachers.registry import load_teacher
from tests.teachers.official import Config, saved
from tests.teachers.recformer_parts import TINY, WORDS, tokenizer_folder

#: twelve blocks, so that the counts are the official ones
SMALL = replace(TINY, layers=12)
QUERY = "encoder.layer.3.attention.self.query_global.weight"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recformer_weights, "OFFICIAL_RECFORMER", SMALL)


def official(*, with_head: bool = False, prefix: bool = True) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = Recformer(SMALL, with_head=with_head).state_dict()
    return {
        name if prefix else name.removeprefix("longformer."): one for name, one in state.items()
    }


@pytest.mark.parametrize(
    ("name", "count"),
    [("RecformerModel", 271), ("RecformerForSeqRec", 271), ("RecformerForPretraining", 278)],
)
def test_names_and_shapes_are_the_official_ones(name: str, count: int, shared_data: Path) -> None:
    text = (shared_data.parent / "reference" / "state-dict-keys.json").read_text()
    expected = {key: tuple(shape) for key, shape in json.loads(text)["recformer"][name].items()}
    assert len(expected) == count
    with torch.device("meta"):
        model = Recformer(Architecture(), with_head=count == 278)
    part = model.longformer if name == "RecformerModel" else model
    assert {key: tuple(one.shape) for key, one in part.state_dict().items()} == expected


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize(("with_head", "count"), [(False, 271), (True, 278)])
def test_both_kinds_of_file_load_with_and_without_prefix(
    prefix: bool, with_head: bool, count: int, tmp_path: Path
) -> None:
    state = official(with_head=with_head, prefix=prefix)
    assert len(state) == count
    found = read_recformer(saved(tmp_path / "x.bin", collections.OrderedDict(state)))
    expected = official(with_head=with_head)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], one) for name, one in expected.items())
    assert found["longformer.embeddings.position_ids"].dtype == torch.int64


def test_every_missing_extra_and_mis_shaped_tensor_is_listed(tmp_path: Path) -> None:
    state = official(prefix=False)
    gone = ["embeddings.LayerNorm.bias", "encoder.layer.11.output.dense.weight"]
    for name in gone:
        del state[name]
    state["pooler.dense.weight"], state["item_embedding.weight"] = torch.ones(2), torch.ones(3)
    state[QUERY] = torch.ones(12, 11)
    with pytest.raises(InputError) as caught:
        read_recformer(saved(tmp_path / "x.bin", state))
    assert caught.value.code == "weights.wrong_keys"
    told = str(caught.value)
    assert "is no official Recformer checkpoint" in told
    assert f"missing: {', '.join(gone)};" in told
    assert "extra: item_embedding.weight, pooler.dense.weight;" in told
    assert f"mis-shaped: {QUERY} (12, 11) instead of (12, 12);" in told


def test_half_a_prefix_and_half_a_head_are_refused(tmp_path: Path) -> None:
    mixed = official()
    mixed[QUERY] = mixed.pop(f"longformer.{QUERY}")
    with pytest.raises(InputError, match=rf"missing: longformer\.{QUERY}; extra: {QUERY};"):
        read_recformer(saved(tmp_path / "x.bin", mixed))
    headless = official(with_head=True)
    del headless["lm_head.dense.bias"]
    with pytest.raises(InputError, match=r"missing: lm_head\.dense\.bias; extra: none;"):
        read_recformer(saved(tmp_path / "y.bin", headless))


def test_whole_numbers_are_taken_for_the_positions_alone(tmp_path: Path) -> None:
    state = official()
    state[f"longformer.{QUERY}"] = torch.ones(12, 12, dtype=torch.int64)
    with pytest.raises(InputError, match="no dense tensors of floats") as caught:
        read_recformer(saved(tmp_path / "x.bin", state))
    assert caught.value.code == "weights.unreadable"


def test_objects_in_a_file_are_never_built(tmp_path: Path) -> None:
    state = official(prefix=False)
    path = saved(tmp_path / "x.bin", {"state_dict": state, "config": Config()})
    assert len(read_recformer(path)) == 271
    with pytest.raises(InputError, match="cannot be read as tensors"):
        read_recformer(saved(tmp_path / "y.bin", {**state, "config": Config()}))


def test_an_imported_file_is_a_pretrained_recformer(tmp_path: Path) -> None:
    state = official(with_head=True)
    file = saved(tmp_path / "x.bin", collections.OrderedDict(state))
    tokenizer = tokenizer_folder(tmp_path / "tokenizer")
    config = import_recformer(file, tmp_path / "pretrained", tokenizer=str(tokenizer))
    assert config["stage"] == "pretrained"
    loaded = load_recformer(tmp_path / "pretrained")
    assert loaded.limits == Limits()
    assert loaded.architecture == SMALL
    found = loaded.model(with_head=True).state_dict()
    assert all(torch.equal(found[name], one) for name, one in state.items())
    with pytest.raises(UsageError, match="kd-teacher tune recformer --from") as caught:
        load_teacher(tmp_path / "pretrained")
    assert caught.value.code == "teacher.not_tuned"


def test_a_tokenizer_of_another_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recformer_weights, "OFFICIAL_RECFORMER", replace(SMALL, pad=1))
    file = saved(tmp_path / "x.bin", official())
    tokenizer = tokenizer_folder(tmp_path / "tokenizer")
    with pytest.raises(InputError, match=f"has {len(WORDS)} tokens and pads with 0") as caught:
        import_recformer(file, tmp_path / "out", tokenizer=str(tokenizer))
    assert caught.value.code == "weights.other_tokenizer"
    assert not (tmp_path / "out").exists()
