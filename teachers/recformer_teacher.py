"""A Recformer on disk and, once tuned, as a teacher that answers: item vectors, history vectors, cosines.

    weights.safetensors   tokenizer.json   config.json

A folder needs no hub and no tokenizer of `transformers`: the tokenizer is one JSON text, sealed by its digest in the
configuration. A tuned teacher belongs to the dataset it was tuned on and to those that extend it, and refuses others; its
items' vectors are the table that stage two was tuned against, those of later items what the tuned encoder reads in them.
Prefixes share nothing, as the most recent item comes first: every history is read by itself, in float32 on the processor and
with bfloat16 products on a GPU that has them; what is asked along with a history changes its vector by rounding alone (1e-6 in
float32). V items, D width, n histories.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cache.atomic import put
from cache.dataset import Dataset, Ints
from cache.digest import sha256_bytes
from cache.errors import StoreError, UsageError
from encoder.precision import bfloat16_is_fast
from teachers.folder import described, load_folder, quality_of, save_folder
from teachers.protocol import Floats
from teachers.recformer import Architecture, Recformer, encode
from teachers.recformer_tokens import ATTRIBUTES, ItemTokens, Limits, Vocabulary, tokenise_items
from teachers.unisrec_teacher import rows_tuned_on

__all__ = ["RecformerFolder", "RecformerTeacher", "load_recformer", "save_recformer"]

_TOKENIZER = "tokenizer.json"
_WORDS = "longformer.embeddings.word_embeddings.weight"
#: what shares its numbers with another tensor, and with which
_SHARED = {"lm_head.decoder.weight": _WORDS, "lm_head.decoder.bias": "lm_head.bias"}
_TABLE = "item_embedding.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecformerFolder:
    """What lies in the folder of a Recformer."""

    weights: dict[str, Tensor]
    architecture: Architecture
    vocabulary: Vocabulary
    limits: Limits
    attributes: tuple[str, ...]  #: read of any item; none where the folder leaves it to the dataset
    config: dict[str, Any]
    digest: str

    def model(self, *, with_head: bool = False, items: int | None = None) -> Recformer:
        """A Recformer holding the weights.

        Args:
            with_head: bring the word head; where the folder has none it is drawn from torch's default generator.
            items: start with a table of so many items of zeros; None brings the folder's table where there is one.
        """
        weights = dict(self.weights)
        if items is not None:
            weights.pop(_TABLE, None)
        elif _TABLE in weights:
            items = len(weights[_TABLE])
        model = Recformer(self.architecture, with_head=with_head, items=items)
        state = model.state_dict()
        weights |= {name: weights[of] for name, of in _SHARED.items() if of in weights}
        found = {name: one for name, one in weights.items() if name in state}
        drawn = {name for name in state if name.startswith("lm_head.") or name == _TABLE}
        model.load_state_dict({**{name: state[name] for name in drawn}, **found})
        return model


def save_recformer(
    folder: Path,
    model: Recformer,
    weights: Mapping[str, Tensor],
    *,
    vocabulary: Vocabulary,
    limits: Limits,
    **config: Any,
) -> None:
    """Write a Recformer that :func:`load_recformer` reads back; `config` must say its `stage`."""
    put(folder / _TOKENIZER, vocabulary.text.encode())
    save_folder(
        folder,
        {name: one for name, one in weights.items() if name not in _SHARED},
        {
            "teacher": "recformer",
            "architecture": asdict(model.architecture),
            "limits": asdict(limits),
            "vocabulary": {**vocabulary.ids, "text": vocabulary.digest},
            **config,
        },
    )


def load_recformer(folder: Path) -> RecformerFolder:
    """Everything in the folder of a Recformer.

    Raises:
        UsageError: ``teacher.missing``, ``teacher.other_kind``; StoreError: ``teacher.damaged`` when weights or
            tokenizer are not those that were sealed, or the configuration describes no Recformer.
    """
    weights, config, digest = load_folder(folder)
    if config["teacher"] != "recformer":
        raise UsageError(
            f"{folder}: holds a {config['teacher']} where a recformer was expected; name another folder.",
            code="teacher.other_kind",
        )
    path = folder / _TOKENIZER
    text = path.read_bytes() if path.is_file() else b""
    with described(folder):
        ids = dict(config["vocabulary"])
        expected = str(ids.pop("text"))
        if sha256_bytes(text) != expected:
            raise StoreError(
                f"{path}: {expected[:19]} expected, {sha256_bytes(text)[:19]} found; "
                f"remove {folder} and make the teacher again.",
                code="teacher.damaged",
            )
        attributes = tuple(config.get("attributes", ()))
        if not set(attributes) <= set(ATTRIBUTES):
            raise ValueError("an attribute that no item has")
        return RecformerFolder(
            weights=weights,
            architecture=Architecture(**config["architecture"]),
            vocabulary=Vocabulary(text=text.decode(), **ids),
            limits=Limits(**config["limits"]),
            attributes=attributes,
            config=config,
            digest=digest,
        )


class RecformerTeacher:
    """Satisfies :class:`teachers.protocol.Teacher`."""

    name = "recformer"
    factorises = True

    def __init__(self, loaded: RecformerFolder, device: str) -> None:
        self._model = loaded.model().eval().to(device)
        self._vocabulary = loaded.vocabulary
        self._limits = loaded.limits
        self._attributes = loaded.attributes
        self._dataset = str(loaded.config["dataset"])
        self._items: tuple[str, ItemTokens] | None = None
        self._extended: tuple[str, Tensor] = ("", torch.empty(0))
        self._bfloat16 = device.startswith("cuda") and bfloat16_is_fast(device)
        self.digest = loaded.digest
        self.quality: Mapping[str, float] = quality_of(loaded.config)

    @classmethod
    def load(cls, folder: Path) -> RecformerTeacher:
        """The tuned teacher in `folder`, on the GPU if there is one.

        Raises:
            UsageError: ``teacher.not_tuned``; StoreError: ``teacher.damaged``; or what :func:`load_recformer` raises.
        """
        loaded = load_recformer(folder)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with described(folder):
            if loaded.config["stage"] != "tuned":
                raise UsageError(
                    f"{folder}: holds a pre-trained teacher that knows no target domain; "
                    f"run `kd-teacher tune recformer --from {folder}`.",
                    code="teacher.not_tuned",
                )
            return cls(loaded, device)

    def encode_items(self, dataset: Dataset) -> Floats:
        """[V, D] unit vectors."""
        vectors: Floats = F.normalize(self._table(dataset), dim=-1).cpu().numpy()
        return vectors

    def encode_some_items(self, dataset: Dataset, items: Ints) -> Floats:
        """[n, D] unit vectors of some items."""
        return self.encode_items(dataset)[items]

    def encode_histories(self, dataset: Dataset, users: Ints, ends: Ints) -> Floats:
        """[n, D] unit vectors."""
        return self.encode_histories_watched(dataset, users, ends, lambda share: None)

    def encode_histories_watched(
        self, dataset: Dataset, users: Ints, ends: Ints, watch: Callable[[float], None]
    ) -> Floats:
        """[n, D] unit vectors; `watch` hears which share of the tokens was read."""
        rows_tuned_on(dataset, self._dataset, self.name)
        states_nD = encode(
            self._model,
            self._tokens(dataset).histories(dataset, users, ends),
            bfloat16=self._bfloat16,
            progress=lambda done, total, what: watch(done / total),
        )
        vectors: Floats = F.normalize(states_nD, dim=-1).cpu().numpy()
        return vectors

    def score(self, users_vec: Floats, items_vec: Floats) -> Floats:
        """[n, C] cosines."""
        return users_vec @ items_vec.T

    def _tokens(self, dataset: Dataset) -> ItemTokens:
        if self._items is None or self._items[0] != dataset.digest:
            found = tokenise_items(dataset, self._vocabulary, self._limits, self._attributes)
            self._items = dataset.digest, found
        return self._items[1]

    def _table(self, dataset: Dataset) -> Tensor:
        """[V, D] its items' table, then what it reads in items that came later."""
        known = rows_tuned_on(dataset, self._dataset, self.name)
        own_VD = self._model.table()
        if known == dataset.num_items:
            return own_VD
        digest, table_VD = self._extended
        if digest != dataset.digest:
            later = np.arange(known, dataset.num_items, dtype=np.int32)
            alone = self._tokens(dataset).sequences(later, np.ones(len(later), np.int32))
            read_nD = encode(self._model, alone, bfloat16=self._bfloat16).to(own_VD)
            with torch.inference_mode():
                table_VD = torch.cat([own_VD, read_nD])
            self._extended = dataset.digest, table_VD
        return table_VD
