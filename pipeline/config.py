"""Where settings come from: flags, then `kd.toml` in the working directory, then defaults; and where things lie.

    kd.toml            data/<name>   pretrained/<teacher>   tuned/<name>/<teacher>   cache/<name>   runs/<name>/...
    [kd-student.fit]
    cache = "cache/toys"
    kd-weight = 5

`kd.toml` has a table for each command, with the command's long options as keys. Unknown tables and keys are refused.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from cache.errors import UsageError
from cache.manifest import MANIFEST

__all__ = [
    "PROGRAMS",
    "check_finite",
    "default_map",
    "find_dataset",
    "find_store",
    "parse_epsilon",
    "tuned_folder",
]

PROGRAMS = ("kd-cache", "kd-teacher", "kd-student")

_FILE = Path("kd.toml")


def default_map(commands: Mapping[str, Any], program: str) -> dict[str, dict[str, Any]]:
    """Defaults of each subcommand of `program` that `kd.toml` sets, by parameter name.

    Args:
        commands: the program's subcommands by name.

    Raises:
        UsageError: ``config.bad_toml``, ``config.unknown_key``, ``config.bad_value``.
    """
    if not _FILE.is_file():
        return {}
    try:
        document = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{_FILE}: cannot be read ({error}).", code="config.bad_toml") from error
    for name, tables in document.items():
        if name not in PROGRAMS or not isinstance(tables, dict):
            _unknown(f"[{name}]", PROGRAMS)
    defaults: dict[str, dict[str, Any]] = {}
    for name, values in document.get(program, {}).items():
        if name not in commands or not isinstance(values, dict):
            _unknown(f"[{program}.{name}]", commands)
        defaults[name] = dict(
            _default(commands[name].params, f"[{program}.{name}]", key, value)
            for key, value in values.items()
        )
    return defaults


def _default(parameters: Sequence[Any], where: str, key: str, value: Any) -> tuple[str, Any]:
    """(parameter name, default) that one line of `kd.toml` sets."""
    known = {
        option.removeprefix("--"): (parameter, option in parameter.secondary_opts)
        for parameter in parameters
        for option in [*parameter.opts, *parameter.secondary_opts]
        if option.startswith("--")
    }
    if key not in known:
        _unknown(f"{key} in {where}", known)
    parameter, negative = known[key]
    flag, several = getattr(parameter, "is_flag", False), getattr(parameter, "multiple", False)
    wanted = "true or false" if flag else "a list" if several else "one value"
    if isinstance(value, bool) is not flag or isinstance(value, dict):
        _bad_value(key, where, value, wanted)
    if isinstance(value, list) is not several:
        _bad_value(key, where, value, wanted)
    return parameter.name, (not value if negative else value)


def check_finite(**options: float | None) -> None:
    """Refuse NaN and infinity, which pass every range, by the option's name.

    Raises:
        UsageError: ``config.not_finite``.
    """
    for name, value in options.items():
        if value is not None and not math.isfinite(value):
            raise UsageError(
                f"--{name.replace('_', '-')} {value}: a finite number was expected.",
                code="config.not_finite",
            )


def find_store(given: Path | None, command: str) -> Path:
    """The store that was named, or the only one below `cache/`."""
    return given or _only("store", Path("cache"), f"plan/{MANIFEST}", f"{command} --cache", "plan")


def parse_epsilon(text: str) -> float | str:
    """What `--epsilon` says: a number, or a quantile such as ``0.8q``.

    Raises:
        UsageError: ``fit.bad_epsilon``.
    """
    try:
        value = float(text.removesuffix("q"))
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf or (text.endswith("q") and value > 1):
        raise UsageError(
            f"--epsilon {text}: a number from 0, or a quantile from 0q to 1q, expected.",
            code="fit.bad_epsilon",
        )
    return text if text.endswith("q") else value


def find_dataset(given: Path | None, command: str) -> Path:
    """The dataset that was named, or the only one below `data/`."""
    return given or _only("dataset", Path("data"), MANIFEST, f"{command} --data", "ingest")


def tuned_folder(teacher: str, store: Path) -> Path:
    """The tuned teacher that `--teacher` means: a folder if there is one, else tuned/<store's name>/<teacher>."""
    named = Path(teacher)
    if (named / "config.json").is_file():
        return named
    is_path = len(named.parts) > 1
    folder = named if is_path else Path("tuned") / store.resolve().name / teacher
    if not (folder / "config.json").is_file():
        there = sorted(path.parent.name for path in folder.parent.glob("*/config.json"))
        remedy = (
            f"there {'are' if len(there) > 1 else 'is'} {', '.join(there)}"
            if there
            else f"run `kd-teacher tune unisrec --data data/{store.resolve().name}` first"
        )
        raise UsageError(
            f"no tuned teacher in {folder}; {remedy}, or say where it lies with a path.",
            code="teacher.missing",
        )
    return folder


def _only(noun: str, root: Path, mark: str, option: str, maker: str) -> Path:
    shown = root.glob("[!.]*") if root.is_dir() else ()  # what is hidden is being made
    found = sorted(p for p in shown if (p / mark).is_file())
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(map(str, found[:5]))
        raise UsageError(
            f"{len(found)} {noun}s in {root}/ ({names}); say which with `{option} PATH`.",
            code=f"{noun}.ambiguous",
        )
    raise UsageError(
        f"no {noun} in {root}/; make one with `kd-cache {maker}`, or say where it is with `{option} PATH`.",
        code=f"{noun}.missing",
    )


def _bad_value(key: str, where: str, value: Any, wanted: str) -> NoReturn:
    raise UsageError(
        f"{_FILE}: {key} in {where} is {value!r}, {wanted} was expected.", code="config.bad_value"
    )


def _unknown(what: str, known: Iterable[str]) -> NoReturn:
    raise UsageError(
        f"{_FILE}: {what} is not known; known are {', '.join(sorted(known))}.",
        code="config.unknown_key",
    )
