"""`--set NAME=VALUE` of `kd-student fit`: what one student alone has, such as BERT4Rec's share of masked places.

Any field of a student's configuration, a plug-in's too, that neither has an option of its own nor follows from the data.
Values have the type of the field's default. A name that the student does not know is refused when it was typed; in kd.toml
it is for those students that know it, and left away with a word. What a value may be the configuration itself says, by a
ValueError.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from typing import Annotated, Any, NoReturn

import typer

from cache.errors import UsageError
from pipeline import console
from student.registry import StudentKind

__all__ = ["SetOption", "made", "own_settings"]

SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A setting of this student alone, such as bert4rec's mask_ratio=0.3; repeat it. "
        "A wrong name is told the right ones.",
        metavar="<name=value>",
    ),
]

_FROM_DATA = frozenset({"max_length", "source", "source_items"})
_WANTED = {bool: "true or false", int: "a whole number", float: "a number"}


def own_settings(
    given: Collection[str], kind: StudentKind, options: Collection[str], *, typed: bool
) -> dict[str, Any]:
    """The values that `given` sets, by field; the last where one is set twice.

    Args:
        given: `name=value` each.
        options: fields that have an option of their own.
        typed: on the command line, so that a name the student does not know is a mistake.

    Raises:
        UsageError: ``fit.other_option``, ``fit.bad_setting``.
    """
    known = sorted(kind.fields - _FROM_DATA - frozenset(options))
    defaults = kind.config()
    values: dict[str, Any] = {}
    for one in given:
        name, equals, text = (part.strip() for part in one.partition("="))
        if not equals or not name:
            _bad(one, "name=value was expected")
        if name in options:
            _bad(one, f"`--{name} {text}` says that")
        if name in known:
            values[name] = _value(one, text, getattr(defaults, name))
        elif typed:
            raise UsageError(
                f"--set {one}: means nothing to {kind.name}, which knows "
                f"{', '.join(known) or 'no such setting'}; leave it away.",
                code="fit.other_option",
            )
        else:
            console.note(f"kd.toml: {name} of its `set` means nothing to {kind.name}, left away")
    return values


def made(kind: StudentKind, values: dict[str, Any]) -> Any:
    """The configuration of these values.

    Raises:
        UsageError: ``fit.bad_setting`` where it takes no such value.
    """
    try:
        return kind.config(**values)
    except ValueError as error:
        raise UsageError(
            f"{kind.name}: {error}; choose another value.", code="fit.bad_setting"
        ) from error


def _value(one: str, text: str, default: Any) -> Any:
    """What `text` says where the field's default is `default`."""
    if isinstance(default, str):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if isinstance(default, float) and type(value) is int:
        value = _as_float(value)
    kind = type(default)
    unlike = kind in _WANTED and type(value) is not kind
    if unlike or value is None or (isinstance(value, float) and not math.isfinite(value)):
        _bad(one, f"{_WANTED.get(kind, 'a JSON value')} was expected")
    return value


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _bad(one: str, what: str) -> NoReturn:
    raise UsageError(f"--set {one}: {what}.", code="fit.bad_setting")
