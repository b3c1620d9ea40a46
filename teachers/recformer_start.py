"""Where a Recformer starts from: the weights of a Longformer, RoBERTa or BERT, in safetensors.

Nothing is lost and nothing is guessed: on a text no longer than half the window and one token, the converted model
gives the states of the original. Global projections that the source lacks are copies of the local ones; its one token
type is added to the positions; positions are repeated until the table is as long as asked for (as Longformer was made
from RoBERTa). Types and item positions start at zero. The word head is taken over where the source has one. Refuses
other architectures, other activations than erf GELU, relative positions, and weights that lack a part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cache.digest import sha256_bytes, sha256_file
from cache.errors import InputError, UsageError
from teachers.encoders import locate
from teachers.recformer import Architecture, Recformer
from teachers.recformer_tokens import Limits, Vocabulary

__all__ = ["Start", "start"]

_EPS = 1e-12  # of a configuration that does not say it, as transformers has it for all these kinds
_KINDS = ("bert", "roberta", "xlm-roberta", "camembert", "longformer")
_PREFIXES = ("", "bert.", "roberta.", "longformer.")
_WORDS = "embeddings.word_embeddings.weight"
_POSITIONS = "embeddings.position_embeddings.weight"
_TYPES = "embeddings.token_type_embeddings.weight"
#: of the word head: our name, then where a BERT keeps it
_HEAD = {
    "lm_head.dense.weight": "cls.predictions.transform.dense.weight",
    "lm_head.dense.bias": "cls.predictions.transform.dense.bias",
    "lm_head.layer_norm.weight": "cls.predictions.transform.LayerNorm.weight",
    "lm_head.layer_norm.bias": "cls.predictions.transform.LayerNorm.bias",
    "lm_head.bias": "cls.predictions.bias",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A Recformer that has read no item yet."""

    model: Recformer
    vocabulary: Vocabulary
    origin: str  #: digest of weights and tokenizer


def start(
    source: str,
    limits: Limits,
    *,
    window: int = 64,
    dropout: float = 0.1,
    with_head: bool = False,
    items: int | None = None,
) -> Start:
    """Bring a language model into Recformer's layout.

    What the source lacks of a word head is drawn from torch's default generator.

    Args:
        source: `minilm`, a local folder, or a hub name.
        dropout: of states and attention weights.
        with_head, items: see :class:`teachers.recformer.Recformer`.

    Raises:
        UsageError: ``start.unsupported``, or what :func:`teachers.encoders.locate` raises; InputError: ``start.unreadable``,
            ``start.incomplete``, ``start.vocabulary``.
    """
    folder = locate(source)
    config = _config(folder)
    vocabulary = Vocabulary.load(str(folder))
    found = _tensors(folder)
    try:
        architecture = replace(
            _architecture(folder, config, found, limits, vocabulary),
            window=window,
            dropout=dropout,
            attention_dropout=dropout,
            item_positions=limits.items + 1,
        )
        architecture.check(limits)
        model = Recformer(architecture, with_head=with_head, items=items)
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise InputError(
            f"{folder}: its config.json describes no model that can be made "
            f"({type(error).__name__}: {' '.join(str(error).split())[:120]}); "
            "fetch the model again or name another.",
            code="start.unreadable",
        ) from error
    state = model.state_dict()
    _fill(folder, state, found, architecture, is_bert=config["model_type"] == "bert")
    model.load_state_dict(state)
    weights = (sha256_file(path).encode() for path in sorted(folder.glob("*.safetensors")))
    origin = sha256_bytes(*weights, vocabulary.digest.encode())
    return Start(model=model, vocabulary=vocabulary, origin=origin)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{folder}: has no config.json that can be read ({type(error).__name__}); "
            "fetch the model again or name another.",
            code="start.unreadable",
        ) from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    wrong = ""
    if kind not in _KINDS:
        wrong = f"is a {kind!r}"
    elif config.get("hidden_act") != "gelu":
        wrong = f"has the activation {config.get('hidden_act')!r}"
    elif config.get("position_embedding_type", "absolute") != "absolute":
        wrong = f"has {config['position_embedding_type']} positions"
    if wrong:
        raise UsageError(
            f"{folder}: {wrong}; a Recformer starts from a BERT, RoBERTa or Longformer with absolute positions "
            "and GELU, name one.",
            code="start.unsupported",
        )
    checked: dict[str, Any] = config
    return checked


def _tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder under the names of a Longformer without prefix."""
    found: dict[str, Tensor] = {}
    try:
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118  no mapping
                    found[name] = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{folder}: its weights cannot be read ({error}); fetch the model again or name another.",
            code="start.unreadable",
        ) from error
    prefix = next(
        (one for one in _PREFIXES if any(n.startswith(f"{one}embeddings.") for n in found)), ""
    )
    named = {}
    for name, tensor in found.items():
        # BERT's first checkpoints speak of gamma and beta
        for old, new in (
            ("LayerNorm.gamma", "LayerNorm.weight"),
            ("LayerNorm.beta", "LayerNorm.bias"),
        ):
            name = name.replace(old, new)
        named[name.removeprefix(prefix)] = tensor.float()
    return named


def _architecture(
    folder: Path,
    config: Mapping[str, Any],
    found: Mapping[str, Tensor],
    limits: Limits,
    vocabulary: Vocabulary,
) -> Architecture:
    if missing := sorted({_WORDS, _POSITIONS, _TYPES} - found.keys()):
        raise _incomplete(folder, missing)
    words = len(found[_WORDS])
    if vocabulary.size > words:
        raise InputError(
            f"{folder}: its tokenizer knows {vocabulary.size:,} tokens, its weights {words:,}; "
            "fetch the model again or name another.",
            code="start.vocabulary",
        )
    rows = len(found[_POSITIONS]) - _before(config)
    return Architecture(
        vocabulary=words,
        hidden=int(config["hidden_size"]),
        layers=int(config["num_hidden_layers"]),
        heads=int(config["num_attention_heads"]),
        inner=int(config["intermediate_size"]),
        positions=max(rows, limits.tokens) + vocabulary.pad + 1,
        pad=vocabulary.pad,
        eps=float(config.get("layer_norm_eps", _EPS)),
    )


def _before(config: Mapping[str, Any]) -> int:
    """Rows of the source's position table that stand for no position."""
    return 0 if config["model_type"] == "bert" else int(config["pad_token_id"]) + 1


def _fill(
    folder: Path,
    state: dict[str, Tensor],
    found: Mapping[str, Tensor],
    architecture: Architecture,
    *,
    is_bert: bool,
) -> None:
    """Overwrite `state` with what `found` has."""
    front = architecture.pad + 1
    positions = found[_POSITIONS][0 if is_bert else front :]
    repeats = torch.arange(architecture.positions - front) % len(positions)
    table = torch.zeros_like(state[f"longformer.{_POSITIONS}"])
    table[front:] = positions[repeats] + found[_TYPES][0]
    made = {
        f"longformer.{_POSITIONS}": table,
        f"longformer.{_TYPES}": torch.zeros_like(state[f"longformer.{_TYPES}"]),
        "longformer.embeddings.position_ids": state["longformer.embeddings.position_ids"],
    }
    item_positions = "longformer.embeddings.item_position_embeddings.weight"
    made[item_positions] = torch.zeros_like(state[item_positions])
    missing = []
    for name, drawn in state.items():
        if name == "item_embedding.weight":
            continue
        source = found.get(name.removeprefix("longformer.").replace("_global.", "."))
        if "_global." in name:
            source = found.get(name.removeprefix("longformer."), source)
        if name.startswith("lm_head."):
            plain = "lm_head.bias" if name == "lm_head.decoder.bias" else name
            source = found.get(plain, found.get(_HEAD.get(plain, "")))
            if name == "lm_head.decoder.weight":
                source = found[_WORDS]
        value = made.get(name, source)
        if value is not None and value.shape == drawn.shape:
            state[name] = value
        elif not name.startswith("lm_head."):
            missing.append(name.removeprefix("longformer."))
    if missing:
        raise _incomplete(folder, missing)


def _incomplete(folder: Path, missing: list[str]) -> InputError:
    return InputError(
        f"{folder}: its weights lack {len(missing)} of the model's tensors or hold them in another shape, "
        f"{missing[0]} the first; fetch the model again or name another.",
        code="start.incomplete",
    )
