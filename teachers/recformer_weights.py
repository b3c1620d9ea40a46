"""Brings in the checkpoints of Recformer's authors, `.bin` files of torch.save; no code of a file ever runs.

Two kinds exist: the reader alone (271 tensors, `recformer_ckpt.bin`) and with the word head (278,
`recformer_seqrec_ckpt.bin`), whose reader stands under `longformer.`; either is taken with or without that prefix,
and nothing else: names and shapes must be exactly those of the 12 x 768 model. The file says nothing of its
tokenizer, so that is named beside it; it is the one of `allenai/longformer-base-4096`. The word head's decoder shares
the word embeddings, as in pre-training, whatever the file holds there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache.errors import InputError
from teachers.folder import read_config
from teachers.recformer import Architecture, Recformer
from teachers.recformer_teacher import save_recformer
from teachers.recformer_tokens import Limits, Vocabulary
from teachers.weights import Stored, check_keys, read_state_dict

__all__ = ["OFFICIAL_RECFORMER", "OFFICIAL_TOKENIZER", "import_recformer", "read_recformer"]

#: widths of the released files
OFFICIAL_RECFORMER = Architecture()
OFFICIAL_TOKENIZER = "allenai/longformer-base-4096"

_PREFIX, _HEAD = "longformer.", "lm_head."
_POSITIONS = "embeddings.position_ids"
_ADVICE = "hand in recformer_ckpt.bin (271 tensors) or recformer_seqrec_ckpt.bin (278)"


def read_recformer(path: Path) -> dict[str, Tensor]:
    """The weights of an official file in float32, under the names of :class:`teachers.recformer.Recformer`.

    Raises:
        InputError: ``weights.unreadable``, or ``weights.wrong_keys`` (every missing, extra and mis-shaped
            key is listed).
    """
    whole = frozenset({_POSITIONS, _PREFIX + _POSITIONS})
    state = read_state_dict(path, lambda stored: _check(path, stored), whole=whole)
    return {
        name if name.startswith((_PREFIX, _HEAD)) else _PREFIX + name: one
        for name, one in state.items()
    }


def import_recformer(
    file: Path, out: Path, *, tokenizer: str = OFFICIAL_TOKENIZER
) -> dict[str, Any]:
    """Bring an official file into our layout at `out`; returns its configuration.

    Args:
        tokenizer: folder or hub name of the Longformer (or RoBERTa) tokenizer.

    Raises:
        InputError: as :func:`read_recformer`; ``weights.other_tokenizer``. UsageError: as :meth:`Vocabulary.load`.
    """
    weights = read_recformer(file)
    vocabulary = Vocabulary.load(tokenizer)
    a = OFFICIAL_RECFORMER
    if vocabulary.size > a.vocabulary or vocabulary.pad != a.pad:
        raise InputError(
            f"{tokenizer}: has {vocabulary.size:,} tokens and pads with {vocabulary.pad}, the checkpoint was made with "
            f"{a.vocabulary:,} and {a.pad}; name the tokenizer of {OFFICIAL_TOKENIZER}.",
            code="weights.other_tokenizer",
        )
    with torch.device("meta"):
        model = Recformer(a)
    save_recformer(
        out, model, weights, vocabulary=vocabulary, limits=Limits(), stage="pretrained", identity={}
    )
    return read_config(out)


def _check(path: Path, state: Mapping[str, Stored]) -> None:
    with_head = any(name.startswith(_HEAD) for name in state)
    prefix = _PREFIX if any(name.startswith(_PREFIX) for name in state) else ""
    with torch.device("meta"):  # shapes alone
        model = Recformer(OFFICIAL_RECFORMER, with_head=with_head)
    expected = {
        name if name.startswith(_HEAD) else prefix + name.removeprefix(_PREFIX): tuple(one.shape)
        for name, one in model.state_dict().items()
    }
    check_keys(path, state, expected, "Recformer", _ADVICE)
