"""Files made to do harm: nothing of them runs, nothing but one InputError comes of them, memory stays small."""

from __future__ import annotations

import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cache.errors import InputError
from teachers import weights as module
from teachers.unisrec import UniSRec
from teachers.weights import read_official
from tests.teachers.naive import TINY
from tests.teachers.official import (
    Config,
    Tensor_,
    archive,
    checkpoint,
    parts,
    pickled,
    saved,
    zipped,
)

DEEP = 50_000
SHAPES = {name: tuple(one.shape) for name, one in UniSRec(TINY).state_dict().items()}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The released widths are TINY's here, so that a whole file has 10 kB and can be spoilt in every byte."""
    monkeypatch.setattr(module, "OFFICIAL", TINY)


def state_dict(**changes: Any) -> dict[str, Any]:
    draws = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=draws) for name, shape in SHAPES.items()}
    return state | {name.replace("__", "."): value for name, value in changes.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound file."""
    return saved(tmp_path_factory.mktemp("sound") / "x.pth", checkpoint(state_dict()))


def refused(path: Path, says: str = "") -> None:
    """That file gives one InputError, of one line, and nothing else."""
    with pytest.raises(InputError) as caught:
        read_official(path)
    assert caught.value.code in {"weights.unreadable", "weights.wrong_keys"}
    assert str(caught.value).isprintable()
    assert says in str(caught.value)


def same(found: dict[str, Tensor], expected: dict[str, Any]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in found
    )


def test_the_file_that_is_spoilt_below_is_sound(whole: Path) -> None:
    assert same(read_official(whole), state_dict())


# ---- code


class Runs:
    """Unpickled by a real unpickler it would call."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments, *([] if state is None else [state]))

    def __reduce__(self) -> Any:
        return self.reduced


class SetsState:
    """Unpickled by a real unpickler its __setstate__ would run."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __setstate__(self, state: dict[str, str]) -> None:
        Path(state["mark"]).touch()


def traps(mark: Path) -> dict[str, Any]:
    touch = f"touch {mark}"
    return {
        "os.system": Runs(os.system, touch),
        "exec": Runs(exec, f"open({str(mark)!r}, 'w').close()"),
        "eval": Runs(eval, f"open({str(mark)!r}, 'w').close()"),
        "open": Runs(open, str(mark), "w"),
        "touch": Runs(Path.touch, mark),
        "getattr": Runs(getattr, Runs(__import__, "os"), "system"),
        "setstate": SetsState(mark),
        "build": Runs(Config, state={"x": Runs(os.system, touch)}),
        "numpy": Runs(np.load, str(mark)),
        "torch.load": Runs(torch.load, str(mark)),
    }


PLACES: dict[str, tuple[Callable[[Any], Any], bool]] = {
    # where the trap lies, and whether the weights beside it are sound and load
    "alone": (lambda trap: trap, False),
    "as the state_dict": (lambda trap: {"state_dict": trap}, False),
    "as a tensor": (lambda trap: {"state_dict": state_dict(LayerNorm__bias=trap)}, False),
    "in the config": (lambda trap: checkpoint(state_dict()) | {"config": trap}, True),
    "deep in the config": (lambda trap: checkpoint(state_dict()) | {"config": _config(trap)}, True),
    "as a key": (lambda trap: checkpoint(state_dict()) | {trap: 1}, True),
    "as a key of weights": (lambda trap: {"state_dict": state_dict() | {trap: 1}}, True),
    "in the metadata": (lambda trap: {"state_dict": _with_metadata(trap)}, True),
    "in a hook of a tensor": (lambda trap: {"state_dict": state_dict(LayerNorm__bias=_hooked(trap))}, True),
}  # fmt: skip


def _config(trap: Any) -> Config:
    config = Config()
    config.final_config_dict["more"] = [{"a": (trap, trap)}]
    return config


def _with_metadata(trap: Any) -> OrderedDict[str, Tensor]:
    state = OrderedDict(state_dict())
    state._metadata = trap  # type: ignore[attr-defined]
    return state


def _hooked(trap: Any) -> Any:
    tensor = Tensor_(SHAPES["LayerNorm.bias"], (1,), count=8, key="hooked")
    function, arguments = tensor.__reduce__()
    return Runs(function, *arguments[:-1], OrderedDict([(0, trap)]))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("place", PLACES)
def test_no_code_runs(tmp_path: Path, place: str, protocol: int) -> None:
    mark = tmp_path / "mark"
    build, loads = PLACES[place]
    for name, trap in traps(mark).items():
        path = tmp_path / f"{name}.pth"
        if "hook" in place:
            entries = _by_hand(build(trap), protocol)
            zipped(path, entries)
        else:
            saved(path, build(trap), pickle_protocol=protocol)
        if loads:
            assert read_official(path).keys() == SHAPES.keys(), name
        else:
            refused(path)
        assert not mark.exists(), name


def _by_hand(value: dict[str, dict[str, Any]], protocol: int) -> dict[str, bytes]:
    """Entries of a file whose tensors, but for hand-made ones, are stored as torch would."""
    entries = {"a/data/hooked": bytes(32)}
    state = {}
    for number, (name, one) in enumerate(value["state_dict"].items()):
        state[name] = one
        if isinstance(one, Tensor):
            entries[f"a/data/{number}"] = one.numpy().tobytes()
            state[name] = Tensor_(
                tuple(one.shape), one.stride(), count=one.numel(), key=str(number)
            )
    return {"a/data.pkl": pickled({"state_dict": state}, protocol)} | entries


@pytest.mark.parametrize("name", ["os.system", "exec", "eval", "touch", "setstate", "build"])
def test_the_traps_are_live(tmp_path: Path, name: str) -> None:
    # or else the test above would prove nothing
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(traps(mark)[name]))  # noqa: S301
    assert mark.exists()


# ---- numbers


def with_tensor(path: Path, tensor: Any, storages: dict[str, bytes] | None = None) -> Path:
    """A sound file but for LayerNorm.bias, which has eight numbers."""
    entries = _by_hand({"state_dict": state_dict(LayerNorm__bias=tensor)}, 2)
    del entries["a/data/hooked"]
    return zipped(path, entries | {f"a/data/{k}": v for k, v in (storages or {}).items()})


GOOD = {"shape": (8,), "stride": (1,), "count": 8, "key": "x"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"count": 7}, "beyond its storage"),
        ({"count": 9}, "9 numbers expected"),
        ({"count": -8}, "a shape that is none"),
        ({"count": True}, "a shape that is none"),
        ({"count": 1 << 63}, "a shape that is none"),
        ({"count": 8.0}, "no dense tensors"),
        ({"count": None}, "no dense tensors"),
        ({"stride": (-1,), "offset": 7}, "a shape that is none"),
        ({"stride": (2,)}, "beyond its storage"),
        ({"stride": (1, 1)}, "a shape that is none"),
        ({"stride": (0,), "count": 1}, "beyond its storage"),
        ({"stride": (1 << 61,)}, "beyond its storage"),
        ({"stride": [1]}, "no dense tensors"),
        ({"stride": ("1",)}, "a shape that is none"),
        ({"offset": 1}, "beyond its storage"),
        ({"offset": -1}, "a shape that is none"),
        ({"offset": 1 << 61}, "beyond its storage"),
        ({"offset": None}, "no dense tensors"),
        ({"shape": (9,)}, "beyond its storage"),
        ({"shape": (-8,)}, "a shape that is none"),
        ({"shape": (1 << 40,), "stride": (0,)}, "beyond its storage"),
        ({"shape": (1 << 40,), "stride": (0,), "count": 1 << 41}, "mis-shaped"),
        ({"shape": (1 << 61, 1 << 61), "stride": (0, 0)}, "beyond its storage"),
        ({"shape": (8,) * 100, "stride": (0,) * 100}, "a shape that is none"),
        ({"shape": (10**5000,)}, "a shape that is none"),
        ({"shape": (8.0,)}, "a shape that is none"),
        ({"shape": (True,) * 1}, "a shape that is none"),
        ({"shape": 8}, "no dense tensors"),
        ({"shape": (0,)}, "mis-shaped"),
        ({"key": "y"}, "There is no item named"),
        ({"key": "../data.pkl"}, "There is no item named"),
        ({"key": "/etc/passwd"}, "There is no item named"),
        ({"key": 7}, "no dense tensors"),
        ({"kind": torch.LongStorage}, "no dense tensors"),
        ({"kind": "FloatStorage"}, "no dense tensors"),
        ({"kind": torch.DoubleStorage}, "a storage has 32 bytes, 8 numbers expected"),
    ],
)  # fmt: skip
def test_a_tensor_that_is_not_what_its_storage_holds_is_refused(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    storages = {"x": np.arange(8, dtype=np.float32).tobytes()}
    sound = read_official(with_tensor(tmp_path / "s.pth", Tensor_(**GOOD), storages))
    assert sound["LayerNorm.bias"].tolist() == list(range(8))
    refused(with_tensor(tmp_path / "x.pth", Tensor_(**(GOOD | changes)), storages), says)


def test_a_tensor_from_the_middle_of_a_storage(tmp_path: Path) -> None:
    storages = {"x": np.arange(9, dtype=np.float32).tobytes()}
    tensor = Tensor_(**(GOOD | {"count": 9, "offset": 1}))
    found = read_official(with_tensor(tmp_path / "x.pth", tensor, storages))
    assert found["LayerNorm.bias"].tolist() == list(range(1, 9))


# ---- pickles


def test_memo_numbers_without_end(tmp_path: Path) -> None:
    # an unpickler would lay out 64 GB for this
    data = b"\x80\x02}r\xff\xff\xff\xffU\nstate_dictr\xfe\xff\xff\xff}s."
    refused(archive(tmp_path / "x.pth", data), "missing: LayerNorm.bias")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\x80\x02N.",
        b"\x80\x09}.",
        b"\x80\x02" + b"(" * DEEP + b"t" * DEEP + b".",
        b"\x80\x02)" + b"\x85" * DEEP + b"Q.",  # a persistent id a mile deep
        b"\x80\x02})" + b"2\x86" * 300 + b"K\x01s.",  # a key of 2^300 leaves
        b"\x80\x02})" + b"2\x86" * 300 + b"Q.",  # a persistent id of 2^300 leaves
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 62) + b".",  # a bytearray of 4 EiB
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b".",
        b"\x80\x02X\xff\xff\xff\xff.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"\x80\x02}U\nstate_dict}U\x01ah\x07ss.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02ccollections\nOrderedDict\n)R}U\x05items}sb.",
        b"\x80\x02\x82\x01.",  # the registry of copyreg
        b"I" + b"9" * 10_000 + b"\n.",
        b"\x80\x02}U\nstate_dictK\x01s.",
    ],
)
def test_pickles_that_no_torch_wrote(tmp_path: Path, data: bytes) -> None:
    refused(archive(tmp_path / "x.pth", data))


def test_a_parameter_of_a_parameter_of_a_parameter(tmp_path: Path) -> None:
    data = b"\x80\x02}U\nstate_dict}U\x01a" + b"ctorch._utils\n_rebuild_parameter\n" * 1000
    data += b"N" + b"\x85R" * 1000 + b"ss."
    refused(archive(tmp_path / "x.pth", data), "no dense tensors")


def test_a_pickle_of_many_megabytes(tmp_path: Path) -> None:
    refused(archive(tmp_path / "x.pth", b"\x80\x02" + b"N0" * (3 << 20) + b"N."), "at most 4 MiB")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_pickle_with_any_bytes_changed(tmp_path: Path, whole: Path, data: st.DataObject) -> None:
    entries = parts(whole)
    (name,) = [one for one in entries if one.endswith("data.pkl")]
    spoilt = bytearray(entries[name])
    for _ in range(data.draw(st.integers(1, 3))):
        spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read_official(zipped(tmp_path / "y.pth", entries | {name: bytes(spoilt)}))
    except InputError as error:
        assert str(error).isprintable()
    else:
        assert {key: tuple(one.shape) for key, one in found.items()} == SHAPES


# ---- zips


def test_an_old_file_that_is_no_zip(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", checkpoint(state_dict()), _use_new_zipfile_serialization=False)
    refused(path, "File is not a zip file")


def test_a_compressed_bomb_is_not_unpacked(tmp_path: Path) -> None:
    entries = _by_hand({"state_dict": state_dict()}, 2) | {"a/data/bomb": bytes(50_000_000)}
    path = zipped(tmp_path / "x.pth", entries, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    refused(path, "compressed or encrypted")


def test_entries_that_claim_more_than_there_is(tmp_path: Path) -> None:
    entries = _by_hand({"state_dict": state_dict()}, 2)
    whole = zipped(tmp_path / "x.pth", entries).read_bytes()
    at, count = whole.index(b"PK\x01\x02"), 0
    while at >= 0:  # in every entry of the directory in turn: both sizes are 4 GB
        spoilt = bytearray(whole)
        spoilt[at + 20 : at + 28] = b"\xfe\xff\xff\xff" * 2
        (tmp_path / "y.pth").write_bytes(spoilt)
        if b"hooked" not in whole[at : at + 70]:  # which is never read
            refused(tmp_path / "y.pth")
            count += 1
        at = whole.find(b"PK\x01\x02", at + 4)
    assert count == 1 + len(SHAPES)


@pytest.mark.parametrize("method", [1, 8, 9, 12, 14, 99])
def test_methods_and_locks_of_other_programs(tmp_path: Path, method: int) -> None:
    whole = zipped(tmp_path / "x.pth", _by_hand({"state_dict": state_dict()}, 2)).read_bytes()
    at = whole.index(b"PK\x01\x02")
    spoilt = bytearray(whole)
    spoilt[at + 10] = method
    (tmp_path / "y.pth").write_bytes(spoilt)
    refused(tmp_path / "y.pth", "compressed or encrypted")
    spoilt = bytearray(whole)
    spoilt[at + 8] |= 1  # locked with a password
    (tmp_path / "z.pth").write_bytes(spoilt)
    refused(tmp_path / "z.pth", "compressed or encrypted")


def test_two_pickles_or_none(tmp_path: Path) -> None:
    entries = _by_hand({"state_dict": state_dict()}, 2)
    refused(
        zipped(tmp_path / "x.pth", entries | {"b/data.pkl": entries["a/data.pkl"]}), "one data.pkl"
    )
    del entries["a/data.pkl"]
    refused(zipped(tmp_path / "y.pth", entries), "one data.pkl")
    refused(zipped(tmp_path / "z.pth", {}), "one data.pkl")


def test_cut_anywhere_it_is_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path / "x.pth", checkpoint(state_dict())).read_bytes()
    draws = random.Random(0)
    for length in [
        *range(0, 100, 7),
        *(draws.randrange(len(whole)) for _ in range(80)),
        len(whole) - 1,
    ]:
        (tmp_path / "y.pth").write_bytes(whole[:length])
        refused(tmp_path / "y.pth")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_with_any_byte_changed_it_is_refused_or_loads_as_it_was(
    tmp_path: Path, whole: Path, data: st.DataObject
) -> None:
    spoilt = bytearray(whole.read_bytes())
    at = data.draw(st.integers(0, len(spoilt) - 1))
    spoilt[at] ^= data.draw(st.integers(1, 255))
    (tmp_path / "y.pth").write_bytes(spoilt)
    try:
        found = read_official(tmp_path / "y.pth")
    except InputError as error:
        assert str(error).isprintable()
    else:  # dates, padding, the optimizer's numbers
        assert same(found, state_dict())


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=400), head=st.sampled_from([b"", b"PK\x03\x04", b"PK\x05\x06"]))
def test_random_bytes(tmp_path: Path, data: bytes, head: bytes) -> None:
    (tmp_path / "x.pth").write_bytes(head + data)
    refused(tmp_path / "x.pth")
    # with an end of a directory behind it
    end = b"PK\x05\x06" + data[:18].ljust(18, b"\0")
    (tmp_path / "y.pth").write_bytes(head + data + end)
    refused(tmp_path / "y.pth")
