"""A tokenizer of a few words, datasets with texts, and Recformers that run in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from cache.dataset import Dataset, open_dataset, write_dataset
from teachers.recformer import Architecture
from teachers.recformer_tokens import Limits, Vocabulary

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "title",
    "brand",
    "cat",
    "##egory",
    "red",
    "blue",
]
WORDS += ["sock", "##et", "lamp", "oak", "pine", "steel", "##y", "tool", "desk", "[", "]", "mask"]
PAD, CLS, MASK = 0, 2, 4

#: no two widths are equal, so that no transposition hides
TINY = Architecture(
    vocabulary=len(WORDS),
    hidden=12,
    layers=2,
    heads=3,
    inner=20,
    positions=66,
    item_positions=8,
    window=8,
    pad=PAD,
)
LIMITS = Limits(attribute=6, items=4, tokens=24)


def tokenizer() -> Tokenizer:
    """Word pieces of :data:`WORDS`."""
    found = Tokenizer(models.WordPiece({w: n for n, w in enumerate(WORDS)}, unk_token="[UNK]"))
    found.normalizer = normalizers.BertNormalizer()
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    found.add_special_tokens(WORDS[:5])
    return found


def vocabulary() -> Vocabulary:
    """As a folder would bring it."""
    return Vocabulary(text=tokenizer().to_str(), first=CLS, mask=MASK, pad=PAD, size=len(WORDS))


def tokenizer_folder(folder: Path) -> Path:
    """The tokenizer as a model's folder holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer().save(str(folder / "tokenizer.json"))
    names = {
        "cls_token": "[CLS]",
        "pad_token": "[PAD]",
        "mask_token": "[MASK]",
        "unk_token": "[UNK]",
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def dataset_of(
    path: Path,
    sequences: Sequence[Sequence[int]],
    items: Sequence[dict[str, str]],
    max_length: int = 50,
) -> Dataset:
    """A dataset on disk whose items have these texts."""
    columns = {
        name: [item.get(name, "") for item in items] for name in ("title", "brand", "category")
    }
    write_dataset(
        path,
        items=pa.table({"item": [f"i{row}" for row in range(len(items))], **columns}),
        user_ids=None,
        flat=np.array([item for one in sequences for item in one], np.int32),
        offsets=np.cumsum([0, *map(len, sequences)]),
        max_length=max_length,
    )
    return open_dataset(path)


def shop(path: Path, users: int = 10, *, seed: int = 0) -> Dataset:
    """Nine items and users of 2 to 9 interactions."""
    rng = np.random.default_rng(seed)
    nouns, kinds = ("socket", "lamp", "desk tool"), ("red oak", "blue", "steely pine")
    items = [
        {"title": f"{kind} {noun}", "brand": noun if kind == "blue" else "", "category": kind}
        for noun in nouns
        for kind in kinds
    ]
    walks = [rng.integers(0, len(items), rng.integers(2, 10)).tolist() for _ in range(users)]
    return dataset_of(path, walks, items, max_length=6)
