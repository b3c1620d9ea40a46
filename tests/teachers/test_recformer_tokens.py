"""Items and histories as Recformer reads them, by hand and against plain Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from cache.errors import InputError, UsageError
from teachers.recformer_tokens import ItemTokens, Limits, Sequences, Vocabulary, tokenise_items
from tests.teachers.recformer_parts import (
    CLS,
    LIMITS,
    MASK,
    PAD,
    WORDS,
    dataset_of,
    tokenizer_folder,
    vocabulary,
)

FIRST, NAME, VALUE = 0, 1, 2
ITEMS = [
    {"title": "red socket", "brand": "oak", "category": "blue steely"},
    {"title": "lamp"},
    {"category": "tool"},
    {},
    # "title" and five of the seven pieces: six tokens are read
    {"title": "red blue sock desk lamp oak pine"},
    {"title": "[MASK] red"},
]


@pytest.fixture
def items(tmp_path: Path) -> ItemTokens:
    return tokenise_items(dataset_of(tmp_path / "d", [[0, 1]], ITEMS), vocabulary(), LIMITS)


def words(ids: np.ndarray) -> str:
    return " ".join(WORDS[number] for number in ids)


def item(items: ItemTokens, row: int) -> slice:
    return slice(items.offsets[row], items.offsets[row + 1])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (0, "title red sock ##et brand oak cat ##egory blue steel ##y"),
        (1, "title lamp"),  # no brand, no category: their names are left out with them
        (2, "cat ##egory tool"),
        (3, "title"),  # says nothing, but stands
        (4, "title red blue sock desk lamp"),
        (5, "title [ mask ] red"),  # a text cannot speak the tokenizer's special words
    ],
)
def test_an_item_is_its_attributes_with_their_names(
    row: int, expected: str, items: ItemTokens
) -> None:
    assert words(items.ids[item(items, row)]) == expected


def test_names_and_values_are_told_apart_and_so_are_words(items: ItemTokens) -> None:
    # title | red sock ##et | brand | oak | cat ##egory | blue steel ##y
    of = item(items, 0)
    assert items.kinds[of].tolist() == [NAME, *[VALUE] * 3, NAME, VALUE, *[NAME] * 2, *[VALUE] * 3]
    assert items.begins[of].tolist() == [1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 0]


def test_the_fourth_attribute_is_read_where_one_of_the_first_three_is_nowhere(
    tmp_path: Path,
) -> None:
    import pyarrow as pa

    from cache.dataset import write_dataset

    table = {"item": ["a"], "title": ["lamp"], "description": ["red oak"]}
    dataset = write_dataset(
        tmp_path / "d",
        items=pa.table(table),
        user_ids=None,
        flat=np.array([0]),
        offsets=np.array([0, 1]),
    )
    found = tokenise_items(dataset, vocabulary(), LIMITS)
    assert words(found.ids) == "title lamp [UNK] red oak"  # "description" is no word here


def test_a_history_begins_with_its_latest_item(items: ItemTokens) -> None:
    read = items.sequences(np.array([1, 2, 0, 3], np.int32), np.array([3, 1], np.int32))
    tokens = read.lay(np.array([1, 0]))
    assert tokens.lengths.tolist() == [2, 17]
    # the second history is item 3 alone; the first is items 1, 2, 0 in time order
    assert words(tokens.ids) == (
        "[CLS] title "
        "[CLS] title red sock ##et brand oak cat ##egory blue steel ##y cat ##egory tool title lamp"
    )
    assert tokens.places.tolist() == [0, 1, 0, *[1] * 11, *[2] * 3, *[3] * 2]
    assert tokens.kinds[:4].tolist() == [FIRST, NAME, FIRST, NAME]
    assert tokens.begins[:6].tolist() == [1, 1, 1, 1, 1, 1]


def test_only_the_latest_items_are_read_and_the_oldest_is_cut_where_it_stands(
    items: ItemTokens,
) -> None:
    # five items: the oldest is beyond four. 1 + 2 + 11 + 6 = 20 tokens, so four of item 0's eleven are left
    flat = np.array([2, 0, 4, 0, 1], np.int32)
    tokens = items.sequences(flat, np.array([5], np.int32)).lay(np.array([0]))
    assert tokens.lengths.tolist() == [24]
    assert words(tokens.ids[20:]) == "title red sock ##et"
    assert tokens.places[20:].tolist() == [4] * 4


def test_items_alone_are_histories_of_one(items: ItemTokens) -> None:
    tokens = items.alone().lay(np.array([2, 1]))
    assert words(tokens.ids) == "[CLS] cat ##egory tool [CLS] title lamp"
    assert tokens.lengths.tolist() == [4, 3]


def naive(items: ItemTokens, history: list[int]) -> list[tuple[int, int, int, bool]]:
    laid = [(CLS, FIRST, 0, True)]
    for place, row in enumerate(history[::-1][: items.limits.items], start=1):
        laid += [
            (items.ids[at], items.kinds[at], place, bool(items.begins[at]))
            for at in range(items.offsets[row], items.offsets[row + 1])
        ]
    return laid[: items.limits.tokens]


@given(data=st.data())
def test_vectorised_layout_is_the_plain_one(data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    total = sum(counts)
    items = ItemTokens(
        ids=rng.integers(0, 99, total).astype(np.int32),
        kinds=rng.integers(1, 3, total).astype(np.uint8),
        begins=rng.random(total) < 0.5,
        offsets=np.cumsum([0, *counts]),
        first=CLS,
        limits=Limits(
            items=data.draw(st.integers(1, 4)), tokens=data.draw(st.integers(1, 12)), attribute=9
        ),
    )
    rows = st.lists(st.integers(0, len(counts) - 1), min_size=1, max_size=6)
    histories = data.draw(st.lists(rows, min_size=1, max_size=5))
    flat = np.array([row for one in histories for row in one], np.int32)
    read: Sequences = items.sequences(flat, np.array([len(one) for one in histories], np.int32))
    expected = [naive(items, one) for one in histories]
    assert read.lengths.tolist() == [len(one) for one in expected]
    order = rng.permutation(len(histories))
    tokens = read.lay(order)
    assert tokens.lengths.tolist() == read.lengths[order].tolist()
    found = list(zip(tokens.ids, tokens.kinds, tokens.places, tokens.begins, strict=True))
    assert found == [one for number in order for one in expected[number]]


def test_a_folder_brings_its_tokenizer(tmp_path: Path) -> None:
    found = Vocabulary.load(str(tokenizer_folder(tmp_path / "model")))
    assert (found.first, found.mask, found.pad, found.size) == (CLS, MASK, PAD, len(WORDS))
    assert "steel" in found.text


def test_byte_pairs_are_read_as_well_as_word_pieces(tmp_path: Path) -> None:
    # as RoBERTa and Longformer have it: bytes, no space in front of a value's first word
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bytewise = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=special, initial_alphabet=bytewise, show_progress=False
    )
    bare.train_from_iterator(["title red lamp", "title red desk red lamp", "red lamp"] * 9, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=bare, bos_token="<s>", pad_token="<pad>", mask_token="<mask>"
    ).save_pretrained(tmp_path / "model")
    found = Vocabulary.load(str(tmp_path / "model"))
    assert (found.first, found.pad, found.mask) == (0, 1, 4)  # no [CLS]: a text opens with <s>
    dataset = dataset_of(tmp_path / "d", [[0]], [{"title": "red lamp's"}])
    items = tokenise_items(dataset, found, Limits())
    pieces = [bare.id_to_token(number) for number in items.ids]
    assert "".join(pieces) == "titleredĠlamp's"
    starts = [piece for piece, begins in zip(pieces, items.begins, strict=True) if begins]
    assert [one[0] for one in starts] == ["t", "r", "Ġ", "'"]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no tokenizer that can be read") as caught:
        Vocabulary.load(str(tmp_path))
    assert caught.value.code == "tokens.no_tokenizer"


def test_a_tokenizer_without_a_mask_is_refused(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path / "model")
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"mask_token": "[MASK]", ', ""))
    with pytest.raises(UsageError, match="has no mask token") as caught:
        Vocabulary.load(str(folder))
    assert caught.value.code == "tokens.unfit"


def test_a_text_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "d", [[0]], ITEMS[:1])
    broken = Vocabulary(text="{}", first=CLS, mask=MASK, pad=PAD, size=9)
    with pytest.raises(
        InputError, match=r"tokenizer\.json of the teacher cannot be read"
    ) as caught:
        tokenise_items(dataset, broken, LIMITS)
    assert caught.value.code == "tokens.unreadable"
