"""Texts to vectors with the packaged MiniLM, against transformers asked for one text at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel, AutoTokenizer

from cache.dataset import Dataset, open_dataset, write_dataset
from cache.errors import InputError, StoreError
from cache.vectors import list_vectors, vectors_manifest, write_vectors
from teachers import text as module
from teachers.encoders import locate
from teachers.text import Pooling, TextSettings, drop_words, encode_texts, item_vectors
from tests.fakes import tree

#: of very different lengths, one longer than any limit, some the same
TEXTS = [
    "Glue stick, 20 g. Office Glue. Uhu.",
    ".",
    "violin " * 400,
    "Wooden train for small children with three wagons and a bridge. Toys.",
    "a",
    "Glue stick, 20 g. Office Glue. Uhu.",
    "Ünïcode — 木の列車",
]


@pytest.fixture(scope="module")
def folder() -> Path:
    return locate("minilm")


def alone(folder: Path, texts: list[str], pooling: Pooling, length: int) -> np.ndarray:
    """Each text through transformers by itself, pooled by the definition."""
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = AutoModel.from_pretrained(str(folder), dtype=torch.float32).eval()
    rows = []
    for one in texts:
        tokens = tokenizer(one, truncation=True, max_length=length, return_tensors="pt")
        with torch.no_grad():
            states = model(**tokens).last_hidden_state[0]
        rows.append(states[0] if pooling == "cls" else states.mean(0))
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_are_those_of_each_text_alone(folder: Path, pooling: Pooling) -> None:
    found = encode_texts(folder, TEXTS, TextSettings(pooling=pooling, max_length=64))
    assert (found.shape, found.dtype) == ((len(TEXTS), 384), np.float32)
    np.testing.assert_allclose(found, alone(folder, TEXTS, pooling, 64), rtol=0, atol=1e-5)
    assert np.array_equal(found[0], found[5])


def test_order_and_batches_do_not_matter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TextSettings(max_length=32)
    found = encode_texts(folder, TEXTS, settings)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    monkeypatch.setattr(module, "_TOKEN_BUDGET", 40)  # one or two texts a pass
    again = encode_texts(folder, [TEXTS[n] for n in order], settings)
    np.testing.assert_allclose(again, found[order], rtol=0, atol=1e-5)


def test_it_reports_tokens_done_of_all(folder: Path) -> None:
    heard: list[tuple[int, int, str]] = []
    encode_texts(folder, ["a", "b c"], TextSettings(), progress=lambda *one: heard.append(one))
    # with [CLS] and [SEP]: three tokens and four
    assert heard == [(7, 7, "encoding texts")]


def test_batches_are_of_like_length_and_within_the_budget() -> None:
    lengths = np.array([5, 9000, 300, 8, 8000, 8, 1])
    batches = list(module._alike(lengths))
    assert sorted(np.concatenate(batches).tolist()) == list(range(7))
    assert [lengths[rows].tolist() for rows in batches] == [[9000], [8000], [300, 8, 8, 5, 1]]
    for rows in batches:
        assert len(rows) == 1 or lengths[rows].max() * len(rows) <= 8192


def test_a_full_accelerator_is_no_fault_of_the_encoder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(module, "_pool", full)
    with pytest.raises(torch.OutOfMemoryError):
        encode_texts(folder, ["a"], TextSettings())


def test_an_encoder_that_answers_nan_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(states: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
        return torch.full((len(states), 384), torch.nan)

    monkeypatch.setattr(module, "_pool", broken)
    with pytest.raises(InputError, match="answered NaN or infinity for 2 texts") as caught:
        encode_texts(folder, ["a", "b"], TextSettings())
    assert caught.value.code == "text.not_finite"


# ---- kept beside the dataset


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    titles = ["Glue stick", "Wooden train with three wagons", "Violin strings for beginners"]
    write_dataset(
        tmp_path / "data",
        items=pa.table({"item": ["a", "b", "c"], "title": titles}),
        user_ids=None,
        flat=np.array([0, 1, 2]),
        offsets=np.array([0, 3]),
    )
    return open_dataset(tmp_path / "data")


def never(*_: object, **__: object) -> None:
    raise AssertionError("the model was asked again")


def test_a_text_is_encoded_once(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    name, first = item_vectors(dataset, TextSettings())
    assert np.array_equal(first, encode_texts(locate("minilm"), dataset.texts(), TextSettings()))
    before = tree(dataset.path)
    monkeypatch.setattr(module, "_load", never)
    again, second = item_vectors(dataset, TextSettings())
    assert (again, list_vectors(dataset)) == (name, [name])
    assert np.array_equal(first, second)
    assert tree(dataset.path) == before


def test_what_decides_the_vectors_decides_their_name(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = np.zeros((3, 2), np.float32)
    monkeypatch.setattr(module, "encode_texts", lambda *_, **__: table)
    names = [
        item_vectors(dataset, settings)[0]
        for settings in (
            TextSettings(),
            TextSettings(seed=5),  # draws nothing without word drop
            TextSettings(pooling="cls"),
            TextSettings(max_length=128),
            TextSettings(word_drop=0.2),
            TextSettings(word_drop=0.2, seed=5),
        )
    ]
    assert names[0] == names[1]
    assert len(set(names)) == 5
    assert all(name.startswith(("minilm-mean-", "minilm-cls-")) for name in names)


def test_the_name_does_not_depend_on_where_the_model_lies(
    dataset: Dataset, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "encode_texts", lambda *_, **__: np.zeros((3, 2), dtype=np.float32))
    names = []
    for place in ("here", "there"):
        copy = tmp_path / place / "model"
        copy.mkdir(parents=True)
        for file in folder.iterdir():
            if file.is_file():
                (copy / file.name).symlink_to(file)
        names.append(item_vectors(dataset, TextSettings(model=str(copy)))[0])
    assert names[0] == names[1]
    assert str(tmp_path) not in str(vectors_manifest(dataset, names[0]).settings)
    # another tokenizer is another encoder
    (copy / "vocab.txt").unlink()
    (copy / "vocab.txt").write_text("[PAD]\n")
    assert item_vectors(dataset, TextSettings(model=str(copy)))[0] != names[0]


def test_the_second_view_is_of_texts_with_words_dropped(dataset: Dataset) -> None:
    settings = TextSettings(word_drop=0.5, seed=1)
    _, found = item_vectors(dataset, settings)
    texts = drop_words(dataset.texts(), 0.5, 1)
    assert texts != dataset.texts()
    assert np.array_equal(found, encode_texts(locate("minilm"), texts, settings))


def test_two_runs_that_encode_the_same_do_not_disturb_each_other(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = np.ones((3, 2), np.float32)
    write = write_vectors

    def beaten(dataset: Dataset, name: str, vectors: np.ndarray, made_by: dict) -> object:
        write(dataset, name, vectors, made_by)  # the other run
        return write(dataset, name, vectors, made_by)

    monkeypatch.setattr(module, "encode_texts", lambda *_, **__: table)
    monkeypatch.setattr(module, "write_vectors", beaten)
    _, found = item_vectors(dataset, TextSettings())
    assert np.array_equal(found, table)


def test_other_failures_to_keep_them_are_not_hidden(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "encode_texts", lambda *_, **__: np.ones((2, 2), np.float32))
    with pytest.raises(StoreError, match=r"shape \(2, 2\) found"):
        item_vectors(dataset, TextSettings())


# ---- words dropped

words = st.text("abc ", max_size=30)


@given(st.lists(words, max_size=5), st.floats(0.01, 1), st.integers(0, 2**31))
def test_what_is_left_is_words_in_order_and_at_least_one(
    texts: list[str], share: float, seed: int
) -> None:
    for before, after in zip(texts, drop_words(texts, share, seed), strict=True):
        left = iter(before.split())
        assert all(word in left for word in after.split())  # a subsequence
        assert bool(after) == bool(before.split())
    assert drop_words(texts, share, seed) == drop_words(texts, share, seed)


def test_the_share_that_leaves() -> None:
    text = " ".join(f"w{n}" for n in range(100_000))
    (left,) = drop_words([text], 0.15, 0)
    # deviation sqrt(0.15 * 0.85 / 100,000) = 0.0011; four of them
    assert len(left.split()) / 100_000 == pytest.approx(0.85, abs=0.0045)
    assert drop_words([text], 0.0, 0) == [text]
    assert drop_words([text], 1.0, 0) == ["w0"]
    assert drop_words(["a b", ""], 1.0, 0) == ["a", ""]
