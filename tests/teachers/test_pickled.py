"""Pickles as plain data: every opcode, every protocol, and nothing that a pickle asks for is done."""

from __future__ import annotations

import collections
import io
import pickle
import pickletools
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teachers import pickled
from teachers.pickled import Call, Name, Persistent, read_pickle

PROTOCOLS = range(6)


def plain(*more: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Values that come back as they were: no sets, no keys but strings."""
    leaves = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(max_size=300),
        *more,
    )
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=5)
            | st.lists(inner, max_size=5).map(tuple)
            | st.dictionaries(st.text(max_size=3), inner, max_size=5)
        ),
        max_leaves=20,
    )


@given(plain(st.binary(max_size=300)), st.sampled_from([3, 4, 5]))
def test_plain_values_come_back_as_pickle_gives_them(value: Any, protocol: int) -> None:
    assert read_pickle(pickle.dumps(value, protocol)) == value


@given(plain(), st.sampled_from([0, 1, 2]))
def test_from_old_protocols_too(value: Any, protocol: int) -> None:
    assert read_pickle(pickle.dumps(value, protocol)) == value


def test_bytes_of_old_protocols_are_a_call_that_is_not_made() -> None:
    found = read_pickle(pickle.dumps(b"abc", 2))
    assert (found.function, found.arguments) == (Name("_codecs", "encode"), ("abc", "latin1"))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_shared_or_holds_itself_stays_so(protocol: int) -> None:
    one: list[Any] = [1]
    value = {"a": one, "b": one}
    one.append(value)
    found = read_pickle(pickle.dumps(value, protocol))
    assert found["a"] is found["b"]
    assert found["a"][1] is found


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_ordered_dict_is_a_note_with_its_entries(protocol: int) -> None:
    value = collections.OrderedDict([("b", 1), ("a", [2])])
    value.extra = "state"  # type: ignore[attr-defined]
    found = read_pickle(pickle.dumps(value, protocol))
    assert isinstance(found, Call)
    assert found.function == Name("collections", "OrderedDict")
    assert found.entries == {"b": 1, "a": [2]}


class Thing:
    def __init__(self) -> None:
        self.size = 3


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_object_is_a_note_without_its_state(protocol: int) -> None:
    found = read_pickle(pickle.dumps([Thing(), 5], protocol))
    assert isinstance(found[0], Call)
    assert not hasattr(found[0], "size")
    assert found[1] == 5


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_sets_are_lists_of_what_they_hold(protocol: int) -> None:
    found = read_pickle(pickle.dumps([{7}, frozenset({8}), 9], protocol))
    assert len(found) == 3
    assert found[2] == 9
    if protocol >= 4:  # older ones call `set`
        assert found[:2] == [[7], [8]]


def test_keys_that_are_no_strings_are_dropped() -> None:
    value = {"a": 1, 2: "b", (3,): "c", None: "d", b"e": "f"}
    assert read_pickle(pickle.dumps(value, 4)) == {"a": 1}


def test_what_lies_outside_is_a_note_of_its_key() -> None:
    class Outside(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", 7) if obj == "x" else None

    for protocol in (1, 2, 4):
        stream = io.BytesIO()
        Outside(stream, protocol).dump(["x", "y"])
        assert read_pickle(stream.getvalue()) == [Persistent(("storage", 7)), "y"]
    assert read_pickle(b"Pname\n.") == Persistent("name")


def test_every_opcode_that_there_is_is_known() -> None:
    stacks: dict[str, tuple[list[Any], list[Any]]] = {  # below the mark, and above
        "SETITEM": ([], [{}, "k", "v"]),
        "SETITEMS": ([{}], ["k", "v"]),
        "DICT": ([], ["k", "v"]),
    }
    for opcode in pickletools.opcodes:
        machine = pickled._Machine()
        below, above = stacks.get(opcode.name, ([[]], [[], [], []]))
        machine._below, machine._stack, machine._memo = [below], above, {0: None}
        if opcode.name != "STOP":  # anything that is not known raises
            machine.step(opcode.name, "module name" if opcode.name in {"GLOBAL", "INST"} else 0)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"(lp0\nI1\na.", [1]),  # LIST, PUT, APPEND
        (b"(I1\nI2\nt.", (1, 2)),
        (b"(dp0\nS'k'\nI1\ns.", {"k": 1}),
        (b"(S'k'\nI1\nd.", {"k": 1}),
        (b"I1\n2\x86.", (1, 1)),  # DUP, TUPLE2
        (b"I1\nI2\n0.", 1),  # POP
        (b"I1\n(I2\n1.", 1),  # POP_MARK
        (b"I1\n(0.", 1),  # POP of a mark
        (b"]q\x05(K\x01K\x02eh\x05\x86.", ([1, 2], [1, 2])),
    ],
)
def test_hand_written_ones(data: bytes, value: Any) -> None:
    assert read_pickle(data) == value == pickle.loads(data)  # noqa: S301


@pytest.mark.parametrize(
    "data",
    [b"", b".", b"]", b"0.", b"1.", b"t.", b"\x86.", b"a.", b"s.", b"R.", b"K\x01R.", b"b.", b"Q.",
     b"h\x01.", b"K\x01K\x02s.", b"](K\x01u.", b"](K\x01K\x02u.", b"(o.", b"\xff", b"X\xff\xff\xff\x7fa.",
     b"\x8e" + b"\xff" * 8 + b".", b"\x96" + b"\xff" * 8 + b".", b"\x8d" + b"\xff" * 8 + b".",
     b"\x8b\xff\xff\xff\x7f.", b"\x8b\xff\xff\xff\xff.", b"I" + b"9" * 5000 + b"\n.", b"cos\n"],
)  # fmt: skip
def test_what_is_no_pickle_raises(data: bytes) -> None:
    with pytest.raises(Exception):  # noqa: B017
        read_pickle(data)


# ---- nothing is done


class Trap:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_calls_are_noted_and_not_made(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "mark"
    traps = [Trap(open, str(mark), "w"), Trap(exec, f"open({str(mark)!r}, 'w')")]
    found = read_pickle(pickle.dumps(traps, protocol))
    assert [one.function.name for one in found] == ["open", "exec"]
    assert found[0].arguments == (str(mark), "w")
    assert not mark.exists()


def test_nothing_is_imported() -> None:
    before = set(sys.modules)
    for data in (b"cthis\nantigravity\n.", b"(iantigravity\nfly\n.", b"\x8c\x04this\x8c\x01d\x93."):
        read_pickle(data)
    assert set(sys.modules) == before


def test_a_large_memo_number_costs_nothing() -> None:
    # the unpickler of the standard library would lay out 2^33 pointers here
    assert read_pickle(b"K\x07r\xff\xff\xff\xffj\xff\xff\xff\xff.") == 7
    assert read_pickle(b"K\x07p" + b"9" * 18 + b"\n.") == 7


def test_neither_depth_nor_doubling_is_walked() -> None:
    deep = read_pickle(b")" + b"\x85" * 50_000 + b".")  # a tuple in a tuple in a ...
    assert isinstance(deep, tuple)
    # 2^400 leaves: as a key they would be hashed, each of them, to the end of days
    assert read_pickle(b"}" + b")" + b"2\x86" * 400 + b"K\x01s.") == {}


@settings(max_examples=200)
@given(st.binary(max_size=60))
def test_rubbish_raises_or_gives_a_value(data: bytes) -> None:
    try:
        read_pickle(data)
    except Exception as error:
        assert not isinstance(error, MemoryError | RecursionError)
