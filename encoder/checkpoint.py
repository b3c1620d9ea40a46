"""Models and unfinished runs on disk: one safetensors file whose only metadata key holds canonical JSON.

Written through the one door, so a kill leaves the former file whole; the same content gives the same bytes. Refuses content
that is not what was written (sha256, about 1.5 GB/s), and a checkpoint that belongs to another run, by the name of what
differs. Nothing is unpickled.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from cache.atomic import disk_errors, put
from cache.digest import canonical_json, sha256_bytes
from cache.errors import StoreError
from cache.identity import difference

__all__ = ["load_checkpoint", "load_weights", "save_checkpoint", "save_weights"]

_KEY = "ckd"
_UNREADABLE = (
    SafetensorError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    RecursionError,
    struct.error,
)
_CONTENT = "content"  #: of the card: digest of the tensors and of the rest of the card


def save_weights(path: Path, weights: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Tensors, and what they are (`card`, JSON values; its key ``content`` is taken)."""
    # clones: tensors that share memory are refused by the format
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in weights.items()}
    sealed = {**card, _CONTENT: _digest(tensors, card)}
    put(path, save_tensors(tensors, metadata={_KEY: canonical_json(sealed).decode()}))


def load_weights(path: Path, *, verify: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, card) of a file that :func:`save_weights` wrote.

    Args:
        verify: False where the caller knows the digest of the file and has checked it.

    Raises:
        StoreError: ``checkpoint.damaged``.
    """
    with disk_errors(path):
        data = path.read_bytes()
    try:
        tensors = load_tensors(data)
        (length,) = struct.unpack_from("<Q", data)
        text = json.loads(data[8 : 8 + length])["__metadata__"][_KEY]
        card = json.loads(text)
        # two texts can be one number, such as those that differ in a seventeenth digit
        written = canonical_json(card).decode() == text
        found = card.pop(_CONTENT, None)
        sound = not verify or (written and found == _digest(tensors, card))
    except _UNREADABLE as error:
        raise _damaged(
            path, f"is not a file of weights that this program wrote ({error})"
        ) from error
    if not sound:
        raise _damaged(path, "its content is not what was written")
    return tensors, card


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: Mapping[str, Tensor],
    state: Mapping[str, Any],
    identity: Mapping[str, Any],
) -> None:
    """Keep everything that the rest of a run depends on.

    Args:
        best: the best weights so far.
        state: where the run stands, JSON values.
        identity: what the run is (settings, digests of its inputs), flat, JSON values.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    for number, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in slots.items()}
    save_weights(path, tensors, {"state": dict(state), "identity": dict(identity)})


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
    *,
    free: Collection[str] = (),
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Put `model` and `optimizer` where the run stood; returns (state, best weights).

    Args:
        free: names in which the identities may differ.

    Raises:
        StoreError: ``checkpoint.foreign`` when it belongs to another run, naming what differs; ``checkpoint.damaged``.
    """
    tensors, card = load_weights(path)
    if not {"identity", "state"} <= card.keys():
        raise _damaged(path, "holds weights, not an unfinished run")
    found, wanted = (
        {key: value for key, value in one.items() if key not in free}
        for one in (card["identity"], identity)
    )
    if odd := difference(found, wanted):
        key, there, here = odd
        raise StoreError(
            f"{path}: belongs to a run with {key} {there}, this one has "
            f"{here}; choose another --out, or remove it to start anew.",
            code="checkpoint.foreign",
        )
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    try:
        model.load_state_dict(parts["model"])
    except RuntimeError as error:  # one of another version of the program
        raise _damaged(path, "holds tensors that do not fit the model") from error
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["optimizer"].items():
        number, _, slot = name.partition(".")
        slots.setdefault(int(number), {})[slot] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    return card["state"], parts["best"]


def _digest(tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> str:
    """Of names, types, shapes, bytes and the card; how the file lays them out has no say."""
    names = sorted(tensors)
    shapes = [[name, str(tensors[name].dtype), list(tensors[name].shape)] for name in names]
    numbers = (tensors[name].reshape(-1).view(torch.uint8).numpy().data for name in names)
    return sha256_bytes(canonical_json([dict(card), shapes]), *numbers)


def _damaged(path: Path, what: str) -> StoreError:
    return StoreError(
        f"{path}: {what}; remove it and run the same command again.", code="checkpoint.damaged"
    )
