"""A teacher's folder: sealed weights, a configuration that counts to the last letter, and which kinds are known."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.digest import sha256_file
from cache.errors import StoreError, UsageError
from teachers.folder import load_folder, read_config, save_folder
from teachers.registry import load_teacher
from teachers.unisrec import UniSRec
from teachers.unisrec_teacher import UniSRecTeacher, save_unisrec
from tests.fakes import tiny_dataset, tree
from tests.teachers.naive import TINY, shaken, vectors

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}
CONFIG = {"teacher": "plain", "validation": {"ndcg@10": 0.123456789012345}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_folder(tmp_path / "t", WEIGHTS, CONFIG)
    return tmp_path / "t"


def test_what_is_written_is_read(folder: Path) -> None:
    weights, config, digest = load_folder(folder)
    assert all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)
    assert config == CONFIG | {"weights": sha256_file(folder / "weights.safetensors")}
    assert digest.startswith("sha256:")
    assert sorted(tree(folder)) == ["config.json", "weights.safetensors"]


def test_the_same_teacher_has_the_same_bytes_and_digest(folder: Path, tmp_path: Path) -> None:
    save_folder(tmp_path / "u", dict(reversed(WEIGHTS.items())), dict(reversed(CONFIG.items())))
    assert tree(folder) == tree(tmp_path / "u")
    assert load_folder(folder)[2] == load_folder(tmp_path / "u")[2]


def test_weights_that_were_changed_or_lost_are_refused(folder: Path) -> None:
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    for spoilt in (data[:-1], data + b"\0", data[:-1] + bytes([data[-1] ^ 1])):
        path.write_bytes(spoilt)
        with pytest.raises(StoreError, match=r"expected, sha256:.* found; remove") as caught:
            load_folder(folder)
        assert caught.value.code == "teacher.damaged"
    path.unlink()
    with pytest.raises(StoreError, match="expected, nothing found"):
        load_folder(folder)


def test_weights_of_another_teacher_are_refused(folder: Path, tmp_path: Path) -> None:
    save_folder(tmp_path / "u", {"a": torch.zeros(2, 3)}, CONFIG)
    (tmp_path / "u" / "weights.safetensors").replace(folder / "weights.safetensors")
    with pytest.raises(StoreError) as caught:
        load_folder(folder)
    assert caught.value.code == "teacher.damaged"


@pytest.mark.parametrize("value", ["sha256:0", None, 7, {"sha256": "x"}])
def test_a_seal_that_was_changed_is_refused(folder: Path, value: Any) -> None:
    edit(folder, weights=value)
    with pytest.raises(StoreError) as caught:
        load_folder(folder)
    assert caught.value.code == "teacher.damaged"


def test_any_change_of_the_configuration_makes_another_teacher(folder: Path) -> None:
    # what a teacher says of itself decides how students weigh it, so stores must notice
    digests = {load_folder(folder)[2]}
    for number, change in enumerate(
        [{"validation": {"ndcg@10": 0.9}}, {"dataset": "sha256:x"}, {"teacher": "other"}], 2
    ):
        edit(folder, **change)
        digests.add(load_folder(folder)[2])
        assert len(digests) == number


def edit(folder: Path, **change: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))


def test_a_folder_without_a_teacher_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="make one with `kd-teacher tune`") as caught:
        read_config(tmp_path)
    assert caught.value.code == "teacher.missing"


@pytest.mark.parametrize(
    "text", ["", "{nope", "[]", "7", '{"teacher": "unisrec"}', "\xff", "[" * 100_000]
)
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(StoreError, match="is not a teacher's configuration") as caught:
        read_config(tmp_path)
    assert caught.value.code == "teacher.damaged"


def test_the_configuration_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("teachers.folder.put", killed)
    with pytest.raises(KeyboardInterrupt):
        save_folder(tmp_path / "t", WEIGHTS, CONFIG)
    assert sorted(tree(tmp_path / "t")) == ["weights.safetensors"]
    with pytest.raises(UsageError, match="holds no teacher"):
        load_folder(tmp_path / "t")


# ---- kinds


def test_a_tuned_unisrec_is_known(tmp_path: Path) -> None:
    model = shaken(UniSRec(TINY, vectors(9)))
    save_unisrec(
        tmp_path, model, model.state_dict(), stage="tuned", dataset="sha256:d", validation={}
    )
    assert isinstance(load_teacher(tmp_path), UniSRecTeacher)


def test_an_unknown_kind_is_refused_with_those_that_are_known(folder: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_teacher(folder)
    assert caught.value.code == "teacher.unknown"
    said = str(caught.value)
    assert said.startswith(f"{folder}: needs the teacher 'plain', known are ")
    assert "unisrec" in said
    assert said.endswith("; install the package that brings it.")


def documented() -> str:
    """The plug-in that docs/teachers.md shows."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "teachers.md").read_text()
    return page.split("```python\n")[1].split("```")[0]


def test_the_plug_in_of_the_documentation_imports_nothing_of_ours_and_is_found_and_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    info = site / "popular_teacher-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "popular_teacher_of_a_test.py").write_text(documented())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: popular-teacher\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[ckd.teachers]\npopular = popular_teacher_of_a_test:Popular\n"
    )
    monkeypatch.syspath_prepend(str(site))
    (tmp_path / "t").mkdir()
    config = {"teacher": "popular", "weights": "sha256:anything of its own"}
    (tmp_path / "t" / "config.json").write_text(json.dumps(config))
    assert not {"cache", "teachers", "encoder"} & set(documented().split())
    try:
        teacher = load_teacher(tmp_path / "t")
    finally:
        sys.modules.pop("popular_teacher_of_a_test", None)
    dataset = tiny_dataset(tmp_path / "d")
    users, ends = dataset.held_out("test")
    scores = teacher.score(
        teacher.encode_histories(dataset, users, ends), teacher.encode_items(dataset)
    )
    assert np.array_equal(scores, np.tile(dataset.train_counts.astype(np.float32), (12, 1)))
    assert (teacher.name, teacher.digest) == ("popular", "sha256:...")
    # and it is among the known ones
    save_folder(tmp_path / "u", WEIGHTS, CONFIG)
    with pytest.raises(UsageError, match=r"known are .*popular.*unisrec"):
        load_teacher(tmp_path / "u")
