"""Files that look as if the authors' programs had written them, and the parts to spoil them with."""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teachers.unisrec import UniSRec
from teachers.weights import OFFICIAL

ROWS = 6  # items of a tuned file, the padding item included


class FeatureSource:
    """Stands for one of the enumerations that RecBole's configuration holds."""

    def __init__(self, value: str) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return FeatureSource, (self.value,)


class Config:
    """Stands for RecBole's configuration, an object full of this and that."""

    def __init__(self) -> None:
        self.final_config_dict = {
            "model": "UniSRec",
            "learning_rate": 1e-3,
            "topk": [10, 50],
            "nested": {("a", 1): {"x", "y"}, 2: frozenset({3}), None: b"bytes"},
            "device": torch.device("cpu"),
            "type": FeatureSource("interaction"),
            "big": 1 << 80,
        }
        self.parameters: dict[str, Any] = collections.defaultdict(list, {"train": ["epochs"]})
        self.itself = self


def state_dict(stage: str = "pretrained", seed: int = 0) -> dict[str, Tensor]:
    """Of the official layout: 53, 54 or 55 tensors, tables with a padding row."""
    shapes = {name: one.shape for name, one in UniSRec(OFFICIAL).state_dict().items()}
    if stage != "pretrained":
        shapes["plm_embedding.weight"] = torch.Size([ROWS, 768])
    if stage == "transductive":
        shapes["item_embedding.weight"] = torch.Size([ROWS, 300])
    draws = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draws) for name, shape in shapes.items()}


def checkpoint(state: Any) -> dict[str, Any]:
    """What RecBole's PretrainTrainer saves."""
    some = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.Adam([some])
    some.grad = torch.ones(2, 3)
    optimizer.step()
    return {
        "config": Config(),
        "epoch": 299,
        "state_dict": state,
        "optimizer": optimizer.state_dict(),
        "other_parameter": None,
    }


def saved(path: Path, value: Any, **more: Any) -> Path:
    """As torch.save writes it."""
    torch.save(value, path, **more)
    return path


def parts(path: Path) -> dict[str, bytes]:
    """The entries of a zip."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """A zip of these entries."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


class _Storage:
    """A torch storage in a pickle of ours: pickled as a persistent id."""

    def __init__(self, *pid: Any) -> None:
        self.pid = pid


class Pickler(pickle.Pickler):
    """Writes storages as torch does."""

    def persistent_id(self, obj: Any) -> Any:
        return obj.pid if isinstance(obj, _Storage) else None


class Tensor_:
    """A tensor in a pickle, whose numbers can be anything: offset, shape, stride over a storage."""

    def __init__(
        self,
        shape: Any,
        stride: Any,
        *,
        offset: Any = 0,
        count: Any = 1,
        key: Any = "0",
        kind: Any = torch.FloatStorage,
    ) -> None:
        self.values = (_Storage("storage", kind, key, "cpu", count), offset, shape, stride, False)

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, (*self.values, collections.OrderedDict())


def pickled(value: Any, protocol: int = 2) -> bytes:
    """With storages written as torch writes them."""
    stream = io.BytesIO()
    Pickler(stream, protocol).dump(value)
    return stream.getvalue()


def archive(path: Path, data: bytes, storages: dict[str, bytes] | None = None) -> Path:
    """A file with this pickle and these storages."""
    entries = {"a/data.pkl": data, "a/byteorder": b"little", "a/version": b"3\n"}
    return zipped(path, entries | {f"a/data/{k}": v for k, v in (storages or {}).items()})
