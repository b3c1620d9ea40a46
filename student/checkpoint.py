"""Where a run stands, as one safetensors file: weights, best weights, optimizer, and one key of canonical JSON.

Written through the one door, so a kill leaves the former checkpoint whole. Refuses a checkpoint that belongs to other
settings, another store or another student, by the name of what differs. Nothing is unpickled.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict
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
from student.loop import EpochRecord, RunState

__all__ = ["load_checkpoint", "load_weights", "save_checkpoint", "save_weights"]

_KEY = "ckd"


def save_weights(path: Path, weights: dict[str, Tensor], card: dict[str, Any]) -> None:
    """A finished model: its tensors, and what it is (`card`, JSON values) in the file's one metadata key."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    put(path, save_tensors(tensors, metadata={_KEY: canonical_json(card).decode()}))


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(weights, card) of a file that :func:`save_weights` wrote."""
    try:
        with disk_errors(path):
            data = path.read_bytes()
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
    state: RunState,
    identity: dict[str, Any],
) -> None:
    """Keep everything that the rest of the run depends on.

    Args:
        identity: what the run is: settings, digests of store and score sets; JSON values.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in state.best_weights.items()}
    for number, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in slots.items()}
    card = asdict(state) | {"identity": identity}
    del card["best_weights"]
    save_weights(path, tensors, card)


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: dict[str, Any],
) -> RunState:
    """Put `model` and `optimizer` where the run stood and return its state.

    Raises:
        StoreError: ``checkpoint.foreign`` when it belongs to another run, naming what differs.
    """
    tensors, card = load_weights(path)
    found = card.pop("identity")
    differing = sorted(k for k in found.keys() | identity.keys() if found.get(k) != identity.get(k))
    if differing:
        first = differing[0]
        raise StoreError(
            f"{path}: belongs to a run with {first} {found.get(first)}, this one has "
            f"{identity.get(first)}; choose another --out, or remove it to start anew.",
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
    card["history"] = [EpochRecord(**record) for record in card["history"]]
    return RunState(**card, best_weights=parts["best"])
