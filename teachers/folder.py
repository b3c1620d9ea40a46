"""A teacher on disk: `weights.safetensors` and, written last, `config.json` that seals it.

The configuration says what the teacher is (kind, widths, mode, text encoder, dataset digest), how good it measured and the
sha256 of its weights. The digest of all that is the teacher's identity in score sets. Refuses weights that have changed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache.atomic import put
from cache.digest import canonical_json, sha256_bytes, sha256_file
from cache.errors import StoreError, UsageError
from encoder.checkpoint import load_weights, save_weights

__all__ = ["CONFIG", "described", "load_folder", "quality_of", "read_config", "save_folder"]

CONFIG, _WEIGHTS = "config.json", "weights.safetensors"


def save_folder(folder: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write a teacher; a reader sees the old one or the new one, never a mixture that it would accept."""
    save_weights(folder / _WEIGHTS, weights, {})
    sealed = {**config, "weights": sha256_file(folder / _WEIGHTS)}
    put(folder / CONFIG, canonical_json(sealed) + b"\n")


def read_config(folder: Path) -> dict[str, Any]:
    """What a teacher says of itself.

    Raises:
        UsageError: ``teacher.missing``; StoreError: ``teacher.damaged``.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise UsageError(
            f"{folder}: holds no teacher; make one with `kd-teacher tune` or `kd-teacher pretrain`.",
            code="teacher.missing",
        )
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict) or not {"teacher", "weights"} <= config.keys():
        raise StoreError(
            f"{path}: is not a teacher's configuration; remove {folder} and make the teacher again.",
            code="teacher.damaged",
        )
    return config


def load_folder(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """(weights, configuration, digest) of a teacher.

    Raises:
        StoreError: ``teacher.damaged`` when the weights are not those that were sealed.
    """
    config = read_config(folder)
    path = folder / _WEIGHTS
    found = sha256_file(path) if path.is_file() else "nothing"
    if found != config["weights"]:
        raise StoreError(
            f"{path}: {str(config['weights'])[:19]} expected, {found[:19]} found; "
            f"remove {folder} and make the teacher again.",
            code="teacher.damaged",
        )
    weights, _ = load_weights(path, verify=False)  # the whole file was, just now
    return weights, config, sha256_bytes(canonical_json(config))


@contextlib.contextmanager
def described(folder: Path) -> Iterator[None]:
    """Turn what goes wrong where weights are put into the model that a configuration describes into one sentence.

    Raises:
        StoreError: ``teacher.damaged``.
    """
    try:
        yield
    except torch.OutOfMemoryError:  # of the GPU, which tells nothing of the folder
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise StoreError(
            f"{folder / CONFIG}: does not describe the weights beside it ({type(error).__name__}); "
            f"remove {folder} and make the teacher again.",
            code="teacher.damaged",
        ) from error


def quality_of(config: Mapping[str, Any]) -> dict[str, float]:
    """A tuned teacher's validation metrics, and those on test as `test ndcg@10`."""
    tested = {f"test {name}": value for name, value in config.get("test", {}).items()}
    return {**config["validation"], **tested}
