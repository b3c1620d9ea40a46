"""What a pickle says, as plain data: nothing of it is imported, called, built or looked up.

The opcodes are walked one by one; wherever a pickle would name a class, call it or feed it state, an inert note of that stands
instead. So there is no list of permitted names that could have a hole. Memory and time grow with the bytes that are
read, never with numbers that stand in them. Knows every opcode of protocols 0 to 5. Keys of dictionaries other than strings
are dropped: hashing is the one thing that a value could make expensive.
"""

from __future__ import annotations

import pickletools  # its genops takes opcodes apart; what they name is not imported (decision 0022)
from typing import Any, NamedTuple

__all__ = ["Call", "Name", "Persistent", "read_pickle"]


class Name(NamedTuple):
    """A class or function that the pickle names."""

    module: str
    name: str


class Persistent(NamedTuple):
    """Something that is kept outside the pickle; torch's storages are."""

    key: Any


class Call:
    """The object that a call would have made; what is put into it later lies in `entries`, state is not kept."""

    __slots__ = ("arguments", "entries", "function")

    def __init__(self, function: Any, arguments: Any) -> None:
        self.function = function
        self.arguments = arguments
        self.entries: dict[str, Any] = {}


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_STRINGS = {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE"}
_STRINGS |= {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_BYTES = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
_LITERALS = _NUMBERS | _STRINGS | _BYTES
_PUT, _GET = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}
_IDLE = {"PROTO", "FRAME", "READONLY_BUFFER"}


def read_pickle(data: bytes) -> Any:
    """The value of a pickle, made of scalars, tuples, lists, dicts and the three notes of this file.

    Raises:
        Exception: of many kinds (ValueError, IndexError, KeyError, TypeError, ...) where `data` is no pickle.
    """
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "STOP":
            return machine.pop()
        machine.step(opcode.name, argument)
    raise ValueError("it ends before its end")


class _Machine:
    """The stack of a pickle, the stacks below its marks, and its memo."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def pop(self) -> Any:
        """What lies on top."""
        return self._stack.pop()

    def step(self, name: str, argument: Any) -> None:
        """Do what an opcode says, but for what would need anything outside the pickle."""
        if name in _LITERALS:
            self._push(argument)
        elif name in _CONSTANTS:
            self._push(_CONSTANTS[name])
        elif name in _PUT:
            self._memo[argument] = self._stack[-1]
        elif name in _GET:
            self._push(self._memo[argument])
        elif name not in _IDLE:
            self._compose(name, argument)

    def _compose(self, name: str, argument: Any) -> None:
        match name:
            case "MARK":
                self._below.append(self._stack)
                self._stack = []
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._stack[-1]
            case "POP" if self._stack:
                self.pop()
            case "POP" | "POP_MARK":
                self._marked()
            case "DUP":
                self._push(self._stack[-1])
            case "EMPTY_TUPLE":
                self._push(())
            case "TUPLE":
                self._push(tuple(self._marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._push(tuple(self._last(int(name[-1]))))
            case "EMPTY_LIST" | "EMPTY_SET":
                self._push([])
            case "LIST" | "FROZENSET":
                self._push(self._marked())
            case "APPEND":
                self._extend(self._last(1))
            case "APPENDS" | "ADDITEMS":
                self._extend(self._marked())
            case "EMPTY_DICT":
                self._push({})
            case "DICT":
                pairs = self._marked()
                self._push({})
                self._enter(pairs)
            case "SETITEM":
                self._enter(self._last(2))
            case "SETITEMS":
                self._enter(self._marked())
            case "GLOBAL":
                self._push(Name(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                self._push(Name(*self._last(2)))
            case "EXT1" | "EXT2" | "EXT4":
                self._push(Name("copyreg", "extension"))
            case "REDUCE" | "NEWOBJ":
                self._push(Call(*self._last(2)))
            case "NEWOBJ_EX":
                self._push(Call(*self._last(3)[:2]))
            case "INST":
                self._push(Call(Name(*argument.split(" ", 1)), tuple(self._marked())))
            case "OBJ":
                function, *arguments = self._marked()
                self._push(Call(function, tuple(arguments)))
            case "BUILD":
                self.pop()  # the state; whose it would be stays
            case "PERSID":
                self._push(Persistent(argument))
            case "BINPERSID":
                self._push(Persistent(self.pop()))
            case "NEXT_BUFFER":
                self._push(None)
            case _:
                raise ValueError(f"the opcode {name} is not known")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _last(self, count: int) -> list[Any]:
        """Take the last `count` from the stack."""
        if len(self._stack) < count:
            raise ValueError("it takes more than it laid down")
        taken = self._stack[-count:]
        del self._stack[-count:]
        return taken

    def _marked(self) -> list[Any]:
        """Take all above the last mark, and the mark."""
        taken, self._stack = self._stack, self._below.pop()
        return taken

    def _extend(self, values: list[Any]) -> None:
        if isinstance(self._stack[-1], list):  # into anything else they are lost
            self._stack[-1].extend(values)

    def _enter(self, pairs: list[Any]) -> None:
        top = self._stack[-1]
        target = top.entries if isinstance(top, Call) else top
        if not isinstance(target, dict):
            raise ValueError("it puts entries into something that has none")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if type(key) is str:
                target[key] = value
