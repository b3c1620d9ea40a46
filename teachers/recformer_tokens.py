"""What Recformer reads: the flattened attributes of items, most recent item first, as flat arrays of token ids.

An item is up to three attributes in the order title, brand, category, description (those that the dataset has, or had
when the teacher was tuned); an attribute is the tokens of its name, then of its value, cut to 32 together. An attribute
without a value is left out; an item without any keeps the name of the first, so that no item is empty. A sequence is the
tokenizer's first token (`<s>`, `[CLS]`), then items with nothing between them, at most 50, cut hard at `tokens`. (arXiv
2305.13731, section 2.1.) Works with any fast tokenizer of `transformers`; what it needs is one JSON text, so a teacher's
folder brings its own. Items are tokenised once (some 0.15 ms each), 6 bytes a token; histories are put together by numpy alone.
Legend: V items, M their tokens, n histories, N tokens of some histories.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.dataset import Dataset, Ints
from cache.digest import sha256_bytes
from cache.errors import InputError, UsageError
from teachers.encoders import MINILM, locate

__all__ = [
    "ATTRIBUTES",
    "ItemTokens",
    "Limits",
    "Sequences",
    "Tokens",
    "Vocabulary",
    "attributes_of",
    "tokenise_items",
]

Longs = NDArray[np.int64]

#: types of tokens, as the official checkpoints have them; the fourth is padding, which does not occur
FIRST, NAME, VALUE = 0, 1, 2

ATTRIBUTES = ("title", "brand", "category", "description")
_MOST = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much is read."""

    attribute: int = 32  #: tokens of one attribute, its name included
    items: int = 50  #: of a history, the latest
    tokens: int = 1024  #: of a history; the rest, which is the oldest, is cut off


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """A tokenizer, as one JSON text and the ids that matter."""

    text: str  #: content of a tokenizer.json
    first: int  #: id of the token that opens a sequence
    mask: int
    pad: int
    size: int

    @property
    def digest(self) -> str:
        """Of the text."""
        return sha256_bytes(self.text.encode())

    @property
    def ids(self) -> dict[str, int]:
        """What a configuration has to say beside the text."""
        return {"first": self.first, "mask": self.mask, "pad": self.pad, "size": self.size}

    @classmethod
    def load(cls, source: str) -> Vocabulary:
        """The tokenizer of a local folder, of `minilm`, or of a hub name.

        Raises:
            UsageError: ``tokens.no_tokenizer``, or ``tokens.unfit`` where it lacks a token that is needed.
        """
        from transformers import AutoTokenizer  # late: takes seconds
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        folder = str(locate(source)) if source == MINILM else source
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # what transformers raises over a bad folder is of every kind
            raise UsageError(
                f"{source}: holds no tokenizer that can be read ({type(error).__name__}); "
                "name the folder of a language model, or use --text minilm.",
                code="tokens.no_tokenizer",
            ) from error
        first = tokenizer.bos_token_id if tokenizer.cls_token_id is None else tokenizer.cls_token_id
        found = {"first": first, "mask": tokenizer.mask_token_id, "pad": tokenizer.pad_token_id}
        missing = sorted(name for name, value in found.items() if value is None)
        if missing or not tokenizer.is_fast:
            what = f"has no {', '.join(missing)} token" if missing else "is not a fast one"
            raise UsageError(
                f"{source}: its tokenizer {what}; name a BERT, RoBERTa or Longformer model.",
                code="tokens.unfit",
            )
        return cls(text=tokenizer.backend_tokenizer.to_str(), size=len(tokenizer), **found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Some sequences, laid end to end."""

    ids: Ints  #: [N]
    kinds: Ints  #: [N] FIRST, NAME or VALUE
    places: Ints  #: [N] 0 for the first token, then 1 for the most recent item, 2, ...
    begins: NDArray[np.bool_]  #: [N] whether a word begins here; first tokens are words too
    lengths: Longs  #: [B]


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemTokens:
    """The tokens of all items of a dataset. Make them with :func:`tokenise_items`."""

    ids: Ints  #: [M]
    kinds: NDArray[np.uint8]  #: [M] NAME or VALUE
    begins: NDArray[np.bool_]  #: [M] whether a word begins here
    offsets: Longs  #: [V + 1] where each item's tokens begin
    first: int  #: id that opens a sequence
    limits: Limits

    @property
    def counts(self) -> Longs:
        """[V] tokens of each item."""
        return np.diff(self.offsets)

    def alone(self) -> Sequences:
        """Every item as a sequence of its own."""
        items = len(self.counts)
        return self.sequences(np.arange(items, dtype=np.int32), np.ones(items, np.int32))

    def histories(self, dataset: Dataset, users: Ints, ends: Ints) -> Sequences:
        """The histories of the instances (users, ends)."""
        return self.sequences(*dataset.histories(users, ends))

    def sequences(self, flat: Ints, lengths: Ints) -> Sequences:
        """Histories given as item rows.

        Args:
            flat: [sum of lengths] item rows in time order, history after history.
            lengths: [n] items of each, at least 1.
        """
        sizes = lengths.astype(np.int64)
        kept = np.minimum(sizes, self.limits.items)
        # from the last item of each history backwards
        places = _ranges(np.ones(len(kept), np.int64), kept)
        rows = flat[np.repeat(np.cumsum(sizes), kept) - places]
        bounds = np.concatenate([[0], np.cumsum(kept)])
        counts = self.counts[rows]
        ends = np.cumsum(counts)
        before = ends - counts
        before -= np.repeat(before[bounds[:-1]], kept)
        taken = np.clip(self.limits.tokens - 1 - before, 0, counts)
        tokens = 1 + np.add.reduceat(taken, bounds[:-1]) if len(kept) else np.empty(0, np.int64)
        return Sequences(
            items=self, rows=rows, taken=taken, places=places, bounds=bounds, lengths=tokens
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequences:
    """n histories of which only the lengths are worked out; tokens are laid out for a few at a time."""

    items: ItemTokens
    rows: Ints  #: [items of all histories] item rows, most recent first
    taken: Longs  #: tokens of each that are read
    places: Longs  #: 1, 2, ... within each history
    bounds: Longs  #: [n + 1] where each history's items begin
    lengths: Longs  #: [n] tokens of each history

    def lay(self, chosen: Longs) -> Tokens:
        """The tokens of some histories, in the order asked for."""
        counts = np.diff(self.bounds)[chosen]
        which = _ranges(self.bounds[chosen], counts)
        taken = self.taken[which]
        source = _ranges(self.items.offsets[self.rows[which]], taken)
        lengths = self.lengths[chosen]
        inner = np.ones(int(lengths.sum()), np.bool_)
        inner[np.cumsum(lengths) - lengths] = False

        def spread(first: int, values: NDArray[Any]) -> Ints:
            out = np.full(len(inner), first, np.int32)
            out[inner] = values
            return out

        return Tokens(
            ids=spread(self.items.first, self.items.ids[source]),
            kinds=spread(FIRST, self.items.kinds[source]),
            places=spread(0, np.repeat(self.places[which], taken)),
            begins=spread(1, self.items.begins[source]).astype(np.bool_),
            lengths=lengths,
        )


def attributes_of(dataset: Dataset) -> tuple[str, ...]:
    """The attributes that are read where nothing else is said: the first three that any item has."""
    present = [name for name in ATTRIBUTES if any(dataset.items[name].to_pylist())]
    return tuple(present[:_MOST]) or ATTRIBUTES[:1]


def tokenise_items(
    dataset: Dataset, vocabulary: Vocabulary, limits: Limits, attributes: Sequence[str] = ()
) -> ItemTokens:
    """The tokens of all items of a dataset.

    Args:
        attributes: those that are read; by default :func:`attributes_of` the dataset.

    Raises:
        InputError: ``tokens.unreadable`` where the vocabulary's text is no tokenizer.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(vocabulary.text)
    except Exception as error:  # the library raises bare Exceptions
        raise InputError(
            f"the tokenizer.json of the teacher cannot be read ({error}); fetch the teacher again.",
            code="tokens.unreadable",
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # a title may well say "[MASK]"
    found = [
        _attribute(tokenizer, name, dataset.items[name].to_pylist(), limits.attribute)
        for name in attributes or attributes_of(dataset)
    ]
    _name_the_empty(found)
    counts_VA = np.stack([one.counts for one in found], axis=1)
    begins = np.cumsum(counts_VA).reshape(counts_VA.shape) - counts_VA
    total = int(counts_VA.sum())
    out = ItemTokens(
        ids=np.empty(total, np.int32),
        kinds=np.empty(total, np.uint8),
        begins=np.empty(total, np.bool_),
        offsets=np.concatenate([[0], np.cumsum(counts_VA.sum(axis=1))]),
        first=vocabulary.first,
        limits=limits,
    )
    for number, one in enumerate(found):
        target = _ranges(begins[:, number], one.counts)
        source = _ranges(np.cumsum(one.lengths) - one.lengths, one.counts)
        out.ids[target] = one.ids[source]
        out.kinds[target] = one.kinds[source]
        out.begins[target] = one.begins[source]
    return out


@dataclass(slots=True, kw_only=True)
class _Attribute:
    """One attribute of all items: name and value, for each item."""

    ids: Ints
    kinds: NDArray[np.uint8]
    begins: NDArray[np.bool_]
    lengths: Longs  #: [V] tokens laid down for each
    counts: Longs  #: [V] tokens that are read: all, only the name's, or none
    name: int  #: tokens of the name


def _attribute(tokenizer: Any, name: str, values: list[str], most: int) -> _Attribute:
    head = tokenizer.encode(name, add_special_tokens=False)
    head_ids, head_words = head.ids[:most], head.word_ids[:most]
    ids: list[int] = []
    words: list[int] = []
    lengths = np.empty(len(values), np.int64)
    empty = np.empty(len(values), np.bool_)
    encodings = tokenizer.encode_batch(values, add_special_tokens=False)
    for row, encoding in enumerate(encodings):
        room = most - len(head_ids)
        value_ids, value_words = encoding.ids[:room], encoding.word_ids[:room]
        ids += head_ids
        ids += value_ids
        words += head_words
        words += value_words
        lengths[row] = len(head_ids) + len(value_ids)
        empty[row] = not encoding.ids
    within = _ranges(np.zeros(len(lengths), np.int64), lengths)
    numbers = np.array(words, np.int64)
    begins = np.diff(numbers, prepend=-1) != 0
    begins[(within == 0) | (within == len(head_ids))] = True
    return _Attribute(
        ids=np.array(ids, np.int32),
        kinds=np.where(within < len(head_ids), NAME, VALUE).astype(np.uint8),
        begins=begins,
        lengths=lengths,
        counts=np.where(empty, 0, lengths),
        name=len(head_ids),
    )


def _name_the_empty(found: list[_Attribute]) -> None:
    """An item without any attribute keeps the name of the first."""
    nothing = np.all([one.counts == 0 for one in found], axis=0)
    found[0].counts[nothing] = found[0].name


def _ranges(firsts: Longs, counts: Longs) -> Longs:
    """The ranges first..first+count-1, one after another."""
    begins = np.cumsum(counts) - counts
    return np.arange(int(counts.sum())) - np.repeat(begins - firsts, counts)
