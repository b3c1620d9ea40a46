"""Models and unfinished runs on disk: one safetensors file whose only metadata key holds canonical JSON.

Written through the one door, so a kill leaves the former file whole; the same content gives the same bytes. Refuses a
checkpoint that belongs to another run, by the name of what differs. Nothing is unpickled.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from cache.atomic import disk_errors, put
from cache.digest import canonical_json
from cache.errors import StoreError

__all__ = ["load_checkpoint", "load_weights", "save_checkpoint", "save_weights"]

_KEY = "ckd"


def save_weights(path: Path, weights: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Tensors, and what they are (`card`, JSON values)."""
    # clones: tensors that share memory are refused by the format
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in weights.items()}
    put(path, save_tensors(tensors, metadata={_KEY: canonical_json(dict(card)).decode()}))


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, card) of a file that :func:`save_weights` wrote.

    Raises:
        StoreError: ``checkpoint.damaged``.
    """
    with disk_errors(path):
        data = path.read_bytes()
    try:
        tensors = load_tensors(data)
        (length,) = struct.unpack_from("<Q", data)
        card = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_KEY])
    except (SafetensorError, KeyError, ValueError, struct.error) as error:
        raise StoreError(
            f"{path}: is not a file of weights that this program wrote ({error}); "
            "remove it and run the same command again.",
            code="checkpoint.damaged",
        ) from error
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
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Put `model` and `optimizer` where the run stood; returns (state, best weights).

    Raises:
        StoreError: ``checkpoint.foreign`` when it belongs to another run, naming what differs.
    """
    tensors, card = load_weights(path)
    found = card["identity"]
    for key in sorted(found.keys() | identity.keys()):
        if found.get(key) != identity.get(key):
            raise StoreError(
                f"{path}: belongs to a run with {key} {found.get(key)}, this one has "
                f"{identity.get(key)}; choose another --out, or remove it to start anew.",
                code="checkpoint.foreign",
            )
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    model.load_state_dict(parts["model"])
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["optimizer"].items():
        number, _, slot = name.partition(".")
        slots.setdefault(int(number), {})[slot] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    return card["state"], parts["best"]
