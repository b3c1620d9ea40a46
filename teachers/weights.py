"""Reads the checkpoints that the authors of UniSRec released; the one place that looks inside a pickle.

No code of such a file ever runs. A `.pth` is a zip: its `data.pkl` is decoded by an unpickler whose world consists of
the handful of names that rebuild tensors; every other class becomes an inert placeholder that keeps nothing. Then the keys
and shapes must be exactly the released ones: 53 pre-trained, 54 tuned inductively, 55 tuned transductively.
"""

from __future__ import annotations

import collections
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from cache.errors import InputError
from teachers.unisrec import Architecture, UniSRec

__all__ = ["OFFICIAL", "read_official"]

#: widths of the released UniSRec-FHCKM-300.pth: BERT's CLS vectors in
OFFICIAL = Architecture(text_width=768)

_MAX_BYTES = 4 << 30
_DTYPES = {"FloatStorage": np.float32, "LongStorage": np.int64, "DoubleStorage": np.float64}
_TABLES = ("plm_embedding.weight", "item_embedding.weight")


def read_official(path: Path) -> dict[str, Tensor]:
    """The weights of an official UniSRec file, under our layout (no padding row).

    Raises:
        InputError: ``weights.unreadable``, ``weights.hostile``, ``weights.wrong_keys`` (every missing,
            extra and mis-shaped key is listed).
    """
    state = _state_dict(path)
    _check(path, state)
    # row 0 of a tuned table is the padding item, which we do not have
    return {key: value[1:] if key in _TABLES else value for key, value in state.items()}


def _check(path: Path, state: Mapping[str, Tensor]) -> None:
    expected = {key: tuple(value.shape) for key, value in UniSRec(OFFICIAL).state_dict().items()}
    items = {state[key].shape[0] for key in _TABLES if key in state and state[key].dim() == 2}
    if "plm_embedding.weight" in state and len(items) == 1:
        (rows,) = items
        expected["plm_embedding.weight"] = (rows, OFFICIAL.text_width)
        if "item_embedding.weight" in state:
            expected["item_embedding.weight"] = (rows, OFFICIAL.hidden)
    missing = sorted(expected.keys() - state.keys())
    extra = sorted(state.keys() - expected.keys())
    shaped = [
        f"{key} {tuple(state[key].shape)} instead of {expected[key]}"
        for key in sorted(expected.keys() & state.keys())
        if tuple(state[key].shape) != expected[key]
    ]
    if missing or extra or shaped:
        raise InputError(
            f"{path}: is no official UniSRec checkpoint; missing: {', '.join(missing) or 'none'}; "
            f"extra: {', '.join(extra) or 'none'}; mis-shaped: {', '.join(shaped) or 'none'}; "
            "hand in UniSRec-FHCKM-300.pth or a file tuned from it.",
            code="weights.wrong_keys",
        )


def _state_dict(path: Path) -> dict[str, Tensor]:
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = [n for n in archive.namelist() if n.endswith("/data.pkl") or n == "data.pkl"]
            if sum(info.file_size for info in archive.infolist()) > _MAX_BYTES:
                raise _refused(path, "holds more than 4 GiB")
            root = name.removesuffix("data.pkl")
            with archive.open(name) as stream:
                value = _Reader(stream, archive, root).load()
    except (OSError, zipfile.BadZipFile, KeyError, RuntimeError) as error:
        raise _refused(path, f"cannot be read as a zip of torch tensors ({error})") from error
    except (
        ValueError,
        TypeError,
        AttributeError,
        IndexError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        raise _refused(path, f"holds something else than tensors ({error})") from error
    state = value.get("state_dict", value) if isinstance(value, dict) else None
    if not isinstance(state, dict):
        raise _refused(path, "holds no state_dict")
    bad = [
        key for key, one in state.items() if not isinstance(key, str) or not isinstance(one, Tensor)
    ]
    if bad:
        raise _refused(path, f"has entries in its state_dict that are no tensors ({bad[:3]})")
    return dict(state)


def _refused(path: Path, what: str) -> InputError:
    return InputError(
        f"{path}: {what}; a .pth file saved by torch.save was expected.", code="weights.unreadable"
    )


class _Inert:
    """Stands for any object of a class that we do not know. Takes everything, keeps nothing, does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...

    def append(self, value: object) -> None: ...

    def extend(self, values: object) -> None: ...


class _Reader(pickle.Unpickler):
    """An unpickler that can name nothing but what tensors are made of."""

    def __init__(self, stream: IO[bytes], archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(stream)
        self._archive = archive
        self._root = root

    def find_class(self, module: str, name: str) -> Any:
        """Only these names mean themselves; a storage type is its name, anything else is inert."""
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        }
        if module == "torch" and name in _DTYPES:
            return name
        return known.get((module, name), _Inert)

    def persistent_load(self, pid: Any) -> Any:
        """A storage: numbers from a file of the zip."""
        kind, dtype, key, _device, count = pid
        if kind != "storage" or dtype not in _DTYPES or not str(key).isalnum():
            raise ValueError(f"storage {str(pid)[:80]}")
        data = self._archive.read(f"{self._root}data/{key}")
        numbers = np.frombuffer(data, _DTYPES[dtype])
        if len(numbers) != count:
            raise ValueError(f"storage {key} has {len(numbers)} numbers, {count} expected")
        return numbers


def _rebuild_tensor(
    numbers: Any, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> Tensor:
    if not isinstance(numbers, np.ndarray):
        raise TypeError("a tensor over something that is no storage")
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    if min((offset, *shape, *stride), default=0) < 0 or (0 not in shape and last >= len(numbers)):
        raise ValueError(f"a tensor of shape {shape} that reaches beyond its storage")
    return torch.as_strided(torch.from_numpy(numbers.copy()), shape, stride, offset).clone()


def _rebuild_parameter(tensor: Tensor, *_: object) -> Tensor:
    return tensor
