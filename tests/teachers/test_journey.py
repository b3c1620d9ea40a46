"""A teacher's life by the commands: pre-trained on two shops, tuned on a third, judged; and official weights in."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.ingest import ingest
from pipeline.sample import write_sample
from teachers.folder import read_config
from tests.fakes import tree
from tests.journeys.shell import Done, quick
from tests.teachers.official import checkpoint, saved, state_dict


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with three small shops in data/."""
    folder = tmp_path / "home"
    for seed, name in enumerate(("books", "films", "toys"), 2):
        write_sample(folder / "rows" / name, users=60, items=96, seed=seed)
        ingest(folder / "rows" / name, folder / "data" / name, k_core=3)
    return folder


def numbers(done: Done) -> list[str]:
    """The cells of the printed tables that hold metrics."""
    cells = [cell.strip() for cell in done.out.replace("│", "|").split("|")]
    return [cell for cell in cells if cell.startswith("0.")]


def test_pretrain_tune_evaluate(home: Path) -> None:
    sources = "--data data/books --data data/films"
    quick(home, f"kd-teacher pretrain unisrec {sources} --epochs 1 --limit 64 --batch-size 32")
    start = read_config(home / "pretrained" / "unisrec")
    assert (start["stage"], len(start["identity"]["datasets"])) == ("pretrained", 2)
    tuned = quick(
        home,
        "kd-teacher tune unisrec --data data/toys --from pretrained/unisrec --freeze-encoder "
        "--mode inductive --epochs 1",
    )
    folder = home / "tuned" / "toys" / "unisrec"
    assert sorted(tree(folder)) == ["config.json", "weights.safetensors"]
    config = read_config(folder)
    shown = [f"{config[p][m]:.4f}" for p in ("validation", "test") for m in config[p]]
    assert sorted(numbers(tuned)) == sorted(shown)
    again = quick(home, "kd-teacher evaluate unisrec --data data/toys")
    assert numbers(again) == numbers(tuned)
    refused = quick(home, "kd-teacher evaluate tuned/toys/unisrec --data data/films", expect=3)
    assert "teacher.foreign" in refused.err


def test_import(home: Path) -> None:
    saved(home / "UniSRec-FHCKM-300.pth", checkpoint(state_dict()))
    saved(home / "tuned.pth", checkpoint(state_dict("transductive")))
    (home / "bad.pth").write_bytes(b"PK")
    quick(home, "kd-teacher import UniSRec-FHCKM-300.pth")
    assert read_config(home / "pretrained" / "unisrec")["architecture"]["text_width"] == 768
    before = tree(home / "pretrained")
    for file, status, code in (
        ("UniSRec-FHCKM-300.pth", 2, "teacher.exists"),
        ("UniSRec-FHCKM-300.pth --out pretrained/other --text bogus", 2, "teacher.other_option"),
        ("tuned.pth --out pretrained/tuned", 2, "weights.tuned"),
        ("bad.pth --out pretrained/bad", 4, "weights.unreadable"),
        ("none.pth --out pretrained/bad", 4, "weights.unreadable"),
    ):
        done = quick(home, f"kd-teacher import {file}", expect=status)
        assert code in done.err
        assert len(done.lines) == 1
    assert tree(home / "pretrained") == before
    # its texts were BERT's: MiniLM's vectors do not fit
    line = "kd-teacher tune unisrec --data data/toys --from pretrained/unisrec --no-whiten"
    assert "tune.other_text" in quick(home, line, expect=3).err
