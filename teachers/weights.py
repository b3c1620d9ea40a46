"""Reads the checkpoints that the authors of UniSRec released, `.pth` files of torch.save; no code of a file ever runs.

A `.pth` is a zip: its `data.pkl` is read as plain data (teachers/pickled.py), which says where each tensor's numbers lie. The
keys and shapes must be exactly the released ones (53 pre-trained, 54 tuned inductively, 55 tuned transductively); only then are
numbers read, of those tensors alone. A file that claims to be larger than it is gains nothing by that: compressed
entries, tensors larger than their storage and storages of another size than claimed are refused.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache.errors import CkdError, InputError
from teachers.pickled import Call, Name, Persistent, read_pickle
from teachers.unisrec import Architecture, UniSRec

__all__ = ["OFFICIAL", "Stored", "check_keys", "read_official", "read_state_dict"]

#: widths of the released UniSRec-FHCKM-300.pth: BERT's CLS vectors in
OFFICIAL = Architecture(text_width=768)

_MAX_PICKLE = 4 << 20  # a real one has some 50 kB
_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
}
_MAX_NUMBERS = 18  # of count, offset, shape and stride: eight dimensions
_ENCRYPTED = 1  # bit of a zip entry's flags
_TEXTS, _IDS = "plm_embedding.weight", "item_embedding.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A tensor that still lies in the zip: `shape` and `stride` over `count` numbers in data/`key`, from `offset`."""

    key: str
    dtype: torch.dtype
    count: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_official(path: Path) -> dict[str, Tensor]:
    """The weights of an official UniSRec file in float32, under our layout (no padding row).

    Raises:
        InputError: ``weights.unreadable``, or ``weights.wrong_keys`` (every missing, extra and mis-shaped
            key is listed).
    """
    weights = read_state_dict(path, lambda state: _check(path, state))
    # row 0 of a tuned table is the padding item, which we do not have
    return {key: one[1:].clone() if key in (_TEXTS, _IDS) else one for key, one in weights.items()}


def read_state_dict(
    path: Path,
    check: Callable[[Mapping[str, Stored]], None],
    *,
    whole: frozenset[str] = frozenset(),
) -> dict[str, Tensor]:
    """The tensors of a file of torch.save, floats in float32.

    Args:
        check: told names and shapes before any number is read; raises where they are not as expected.
        whole: tensors of int64 that may be there.

    Raises:
        InputError: ``weights.unreadable``, or what `check` raises.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root, state = _open(archive, whole)
            check(state)
            return {key: _numbers(archive, root, one) for key, one in state.items()}
    except CkdError:
        raise
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); a .pth file saved by torch.save was expected, check the path.",
            code="weights.unreadable",
        ) from error
    except Exception as error:  # whatever a damaged or hostile file provokes is one sentence
        cause = _plain(f"{type(error).__name__}: {error}")
        raise InputError(
            f"{path}: cannot be read as tensors ({cause}); a .pth file saved by torch.save was expected, "
            "fetch it again.",
            code="weights.unreadable",
        ) from error


def _check(path: Path, state: Mapping[str, Stored]) -> None:
    expected = {key: tuple(value.shape) for key, value in UniSRec(OFFICIAL).state_dict().items()}
    if _TEXTS in state:
        rows = max((2, *state[_TEXTS].shape[:1]))  # the padding item, and one at least
        expected[_TEXTS] = (rows, OFFICIAL.text_width)
        if _IDS in state:
            expected[_IDS] = (rows, OFFICIAL.hidden)
    advice = "hand in UniSRec-FHCKM-300.pth or a file tuned from it"
    check_keys(path, state, expected, "UniSRec", advice)


def check_keys(
    path: Path,
    state: Mapping[str, Stored],
    expected: Mapping[str, tuple[int, ...]],
    model: str,
    advice: str,
) -> None:
    """Refuse other names or shapes than `expected`; every missing, extra and mis-shaped key is listed.

    Raises:
        InputError: ``weights.wrong_keys``.
    """
    missing = sorted(expected.keys() - state.keys())
    extra = sorted(_plain(key) for key in state.keys() - expected.keys())
    shaped = [
        f"{key} {state[key].shape} instead of {expected[key]}"
        for key in sorted(expected.keys() & state.keys())
        if state[key].shape != expected[key]
    ]
    if missing or extra or shaped:
        raise InputError(
            f"{path}: is no official {model} checkpoint; missing: {', '.join(missing) or 'none'}; "
            f"extra: {', '.join(extra) or 'none'}; mis-shaped: {', '.join(shaped) or 'none'}; "
            f"{advice}.",
            code="weights.wrong_keys",
        )


def _open(archive: zipfile.ZipFile, whole: frozenset[str]) -> tuple[str, dict[str, Stored]]:
    """(folder inside the zip, tensors by name)."""
    entries = archive.infolist()
    if any(e.compress_type != zipfile.ZIP_STORED or e.flag_bits & _ENCRYPTED for e in entries):
        raise ValueError("it holds compressed or encrypted entries, which torch.save never writes")
    pickles = [e for e in entries if e.filename.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1 or pickles[0].file_size > _MAX_PICKLE:
        raise ValueError(f"one data.pkl of at most {_MAX_PICKLE >> 20} MiB expected")
    root = pickles[0].filename.removesuffix("data.pkl")
    order = f"{root}byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        raise ValueError("its numbers are not little-endian")
    value = _entries(read_pickle(archive.read(pickles[0])))
    state = {key: _tensor(one) for key, one in _entries(value.get("state_dict", value)).items()}
    fit = {
        key: one
        for key, one in state.items()
        if one is not None and (one.dtype.is_floating_point or key in whole)
    }
    if odd := sorted(_plain(key) for key in state.keys() - fit.keys()):
        raise ValueError(
            f"its state_dict has entries that are no dense tensors of floats: {odd[:3]}"
        )
    return root, fit


def _entries(value: Any) -> dict[str, Any]:
    """Of a dict or an OrderedDict."""
    if isinstance(value, Call) and value.function == Name("collections", "OrderedDict"):
        return value.entries
    if not isinstance(value, dict):
        raise ValueError("it holds no state_dict")
    return value


def _tensor(value: Any) -> Stored | None:
    """What a pickled tensor or parameter says of itself; None where it is neither."""
    match value:
        case Call(function=Name("torch._utils", "_rebuild_parameter"), arguments=(data, *_)):
            value = data
    match value:
        case Call(
            function=Name("torch._utils", "_rebuild_tensor_v2"),
            arguments=(
                Persistent(("storage", Name("torch", str(kind)), str(key), _, int(count))),
                int(offset),
                tuple(shape),
                tuple(stride),
                *_,
            ),
        ) if kind in _DTYPES:
            numbers = (count, offset, *shape, *stride)
            sound = len(numbers) <= _MAX_NUMBERS and all(type(n) is int for n in numbers)
            if (
                len(shape) != len(stride)
                or not sound
                or not 0 <= min(numbers) <= max(numbers) < 1 << 62
            ):
                raise ValueError("a tensor has a shape that is none")
            last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
            if math.prod(shape) > count or (0 not in shape and last >= count):
                raise ValueError("a tensor reaches beyond its storage")
            return Stored(
                key=key,
                dtype=_DTYPES[kind],
                count=count,
                offset=offset,
                shape=shape,
                stride=stride,
            )
    return None


def _numbers(archive: zipfile.ZipFile, root: str, one: Stored) -> Tensor:
    data = bytearray(archive.read(f"{root}data/{one.key}"))
    if len(data) != one.count * one.dtype.itemsize:
        raise ValueError(f"a storage has {len(data):,} bytes, {one.count:,} numbers expected")
    flat = torch.frombuffer(data, dtype=one.dtype)
    kept = torch.float32 if one.dtype.is_floating_point else one.dtype
    return flat.as_strided(one.shape, one.stride, one.offset).to(kept, copy=True)


def _plain(text: str) -> str:
    """Safe to print: a file's own words may hold line ends and control characters."""
    shown = text if text.isprintable() else ascii(text)
    return shown if len(shown) <= 100 else f"{shown[:100]}..."
