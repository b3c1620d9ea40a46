"""Language models that become Recformers: nothing lost, nothing guessed, the rest refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    LongformerConfig,
    LongformerForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from cache.errors import InputError, UsageError
from teachers.encoders import locate
from teachers.recformer import Batch, Recformer, encode
from teachers.recformer_start import start
from teachers.recformer_tokens import ItemTokens, Limits, Tokens
from tests.teachers.recformer_parts import WORDS, tokenizer_folder

SHAPE: dict[str, Any] = {
    "vocab_size": len(WORDS) + 3,  # more rows than words, as padded vocabularies have
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 22,
}
LIMITS = Limits(tokens=50, items=5)


def random(model: Any) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def bert(folder: Path) -> BertForMaskedLM:
    """A BERT pads with 0; position 0 is the first token's."""
    model = random(BertForMaskedLM(BertConfig(**SHAPE)))
    model.save_pretrained(tokenizer_folder(folder))
    return model


def roberta(folder: Path) -> RobertaForMaskedLM:
    """A RoBERTa with [PAD], which is 0 here: its positions begin at 1."""
    shape = {**SHAPE, "pad_token_id": 0, "type_vocab_size": 1}
    model = random(RobertaForMaskedLM(RobertaConfig(**shape)))
    model.save_pretrained(tokenizer_folder(folder))
    return model


def longformer(folder: Path) -> LongformerForMaskedLM:
    shape = {**SHAPE, "pad_token_id": 0, "type_vocab_size": 1, "attention_window": [8, 8]}
    model = random(LongformerForMaskedLM(LongformerConfig(**shape)))
    model.save_pretrained(tokenizer_folder(folder))
    return model


def text(ids: list[int]) -> Tokens:
    """A text without names, values and items."""
    nothing = np.zeros(len(ids), np.int32)
    return Tokens(
        ids=np.array(ids, np.int32),
        kinds=nothing,
        places=nothing,
        begins=nothing > 0,
        lengths=np.array([len(ids)]),
    )


@torch.no_grad()
def states(model: Recformer, ids: list[int]) -> Tensor:
    return model.eval().states(Batch.of(text(ids), model.architecture))


@pytest.mark.parametrize(
    "words", ["lamp", "steel socket cap screw, black oxide, plain finish", "a " * 31]
)
def test_minilm_reads_short_texts_as_before(words: str) -> None:
    # up to 33 tokens: half a window of 64 on either side of any token reaches all
    folder = str(locate("minilm"))
    ids = AutoTokenizer.from_pretrained(folder)(words)["input_ids"]
    assert len(ids) <= 33
    with torch.no_grad():
        expected = (
            AutoModel.from_pretrained(folder).eval()(torch.tensor([ids])).last_hidden_state[0]
        )
    found = states(start("minilm", Limits()).model, ids)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", [bert, roberta, longformer])
def test_states_and_guesses_of_a_short_text_are_the_sources(make: Any, tmp_path: Path) -> None:
    source = make(tmp_path / "model")
    begun = start(str(tmp_path / "model"), LIMITS, with_head=True)
    ids = [2, 9, 10, 11, 4]  # reach of 32: everybody sees everybody
    front = torch.tensor([[1, 0, 0, 0, 0]])
    more = {"global_attention_mask": front} if make is longformer else {}
    with torch.no_grad():
        found = source(torch.tensor([ids]), output_hidden_states=True, **more)
    here = states(begun.model, ids)
    torch.testing.assert_close(here, found.hidden_states[-1][0][: len(ids)], atol=1e-5, rtol=0)
    torch.testing.assert_close(begun.model.words(here), found.logits[0], atol=1e-4, rtol=0)


def test_a_longformer_keeps_its_global_projections_and_long_texts(tmp_path: Path) -> None:
    source = longformer(tmp_path / "model")
    begun = start(str(tmp_path / "model"), LIMITS, window=8)
    ids = [2, *range(5, 21)]
    front = torch.zeros(1, 24, dtype=torch.long)
    front[0, 0] = 1
    real = (torch.arange(24) < 17).long()[None]
    padded = torch.tensor([ids + [0] * 7])
    with torch.no_grad():
        expected = source.longformer(padded, attention_mask=real, global_attention_mask=front)
    found = states(begun.model, ids)
    torch.testing.assert_close(found, expected.last_hidden_state[0, :17], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("make", "before"), [(bert, 0), (roberta, 1)])
def test_positions_are_repeated_from_where_they_begin(
    make: Any, before: int, tmp_path: Path
) -> None:
    make(tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    name = make.__name__
    table = weights[f"{name}.embeddings.position_embeddings.weight"][before:]
    type_0 = weights[f"{name}.embeddings.token_type_embeddings.weight"][0]
    model = start(str(tmp_path / "model"), LIMITS).model
    found = model.longformer.embeddings.position_embeddings.weight
    # padding is 0, so position 0 of a text is row 1; 50 tokens need 51 rows
    assert found.shape == (51, 12)
    assert torch.equal(found[0], torch.zeros(12))
    for position in (0, 7, len(table) - 1, len(table), 49):
        expected = table[position % len(table)] + type_0
        torch.testing.assert_close(found[1 + position], expected)


def test_types_and_item_positions_start_at_nothing(tmp_path: Path) -> None:
    bert(tmp_path / "model")
    embeddings = start(str(tmp_path / "model"), LIMITS).model.longformer.embeddings
    assert embeddings.item_position_embeddings.weight.shape == (6, 12)
    assert not embeddings.item_position_embeddings.weight.any()
    assert embeddings.token_type_embeddings.weight.shape == (4, 12)
    assert not embeddings.token_type_embeddings.weight.any()


def test_old_names_of_norms_and_other_prefixes_are_known(tmp_path: Path) -> None:
    bert(tmp_path / "model")
    expected = start(str(tmp_path / "model"), LIMITS).model.state_dict()
    file = tmp_path / "model" / "model.safetensors"
    renamed = {
        name.removeprefix("bert.")
        .replace("LayerNorm.weight", "LayerNorm.gamma")
        .replace("LayerNorm.bias", "LayerNorm.beta"): one
        for name, one in load_file(file).items()
    }
    save_file(renamed, file)
    found = start(str(tmp_path / "model"), LIMITS).model.state_dict()
    assert all(torch.equal(found[name], one) for name, one in expected.items())


def test_the_origin_tells_sources_apart(tmp_path: Path) -> None:
    bert(tmp_path / "one")
    bert(tmp_path / "two")
    origins = [start(str(tmp_path / name), LIMITS).origin for name in ("one", "two")]
    assert origins[0] == origins[1]
    roberta(tmp_path / "two")
    assert start(str(tmp_path / "two"), LIMITS).origin != origins[0]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"model_type": "gpt2"}, "start.unsupported"),
        ({"hidden_act": "gelu_new"}, "start.unsupported"),
        ({"position_embedding_type": "relative_key"}, "start.unsupported"),
        ({"intermediate_size": 21}, "start.incomplete"),  # weights of another shape
        ({"num_hidden_layers": 3}, "start.incomplete"),
        ({"num_attention_heads": ...}, "start.unreadable"),
        ({"num_attention_heads": 5}, "start.unreadable"),  # which do not divide the width
        ({"num_attention_heads": 0}, "start.unreadable"),
    ],
)
def test_what_cannot_be_brought_over_is_refused(
    change: dict[str, Any], code: str, tmp_path: Path
) -> None:
    bert(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({key: one for key, one in config.items() if one is not ...}))
    with pytest.raises((UsageError, InputError)) as caught:
        start(str(tmp_path / "model"), LIMITS)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [bert, roberta, longformer])
def test_a_norm_that_a_configuration_does_not_tell_is_that_of_transformers(
    make: Any, tmp_path: Path
) -> None:
    source = make(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    assert source.config.layer_norm_eps == config.pop("layer_norm_eps")
    path.write_text(json.dumps(config))
    expected = AutoConfig.from_pretrained(tmp_path / "model").layer_norm_eps
    assert start(str(tmp_path / "model"), LIMITS).model.architecture.eps == expected


def test_a_deeply_nested_configuration_is_one_sentence(tmp_path: Path) -> None:
    bert(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="RecursionError") as caught:
        start(str(tmp_path / "model"), LIMITS)
    assert caught.value.code == "start.unreadable"


@pytest.mark.parametrize(
    "name", ["embeddings.word_embeddings.weight", "encoder.layer.1.output.dense.bias"]
)
def test_weights_that_lack_a_part_are_refused_by_its_name(name: str, tmp_path: Path) -> None:
    bert(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    left = {key: one for key, one in load_file(file).items() if key != f"bert.{name}"}
    left.pop("cls.predictions.decoder.weight", None)
    save_file(left, file)
    with pytest.raises(InputError, match=name) as caught:
        start(str(tmp_path / "model"), LIMITS)
    assert caught.value.code == "start.incomplete"


def test_a_tokenizer_of_more_words_than_the_weights_have_is_refused(tmp_path: Path) -> None:
    small = {**SHAPE, "vocab_size": 9}
    BertForMaskedLM(BertConfig(**small)).save_pretrained(tokenizer_folder(tmp_path / "model"))
    with pytest.raises(InputError, match=f"knows {len(WORDS)} tokens, its weights 9") as caught:
        start(str(tmp_path / "model"), LIMITS)
    assert caught.value.code == "start.vocabulary"


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors"])
def test_a_damaged_folder_is_one_sentence(damage: str, tmp_path: Path) -> None:
    bert(tmp_path / "model")
    (tmp_path / "model" / damage).write_bytes(b"nonsense")
    with pytest.raises(InputError) as caught:
        start(str(tmp_path / "model"), LIMITS)
    assert caught.value.code in {"start.unreadable", "tokens.no_tokenizer"}


def test_sequences_are_encoded_in_the_order_asked_for() -> None:
    model = start("minilm", Limits()).model.eval()
    rng = np.random.default_rng(0)
    counts = [3, 40, 3, 17]
    items = ItemTokens(
        ids=rng.integers(1000, 2000, sum(counts)).astype(np.int32),
        kinds=np.ones(sum(counts), np.uint8),
        begins=np.ones(sum(counts), np.bool_),
        offsets=np.cumsum([0, *counts]),
        first=101,
        limits=Limits(),
    )
    flat, lengths = np.array([0, 1, 1, 3, 2, 0], np.int32), np.array([1, 3, 2], np.int32)
    read = items.sequences(flat, lengths)
    found = encode(model, read, budget=20)
    told: list[tuple[int, int, str]] = []
    encode(model, read, progress=lambda *one: told.append(one))
    assert told[-1][:2] == (int(read.lengths.sum()),) * 2
    for row in range(3):
        with torch.no_grad():
            batch = Batch.of(read.lay(np.array([row])), model.architecture)
            expected = model.first_states(batch)[0]
        torch.testing.assert_close(found[row], expected, atol=2e-6, rtol=0)
