"""Where settings come from: flags, then `kd.toml` in the working directory, then defaults; and where things lie.

    kd.toml            data/<name>   pretrained/<teacher>   tuned/<name>/<teacher>   cache/<name>   runs/<name>/...
    [kd-student.fit]
    cache = "cache/toys"
    kd-weight = 5

`kd.toml` has a table for each command, with the command's long options as keys. Unknown tables and keys are refused.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from cache.errors import UsageError
from cache.manifest import MANIFEST

__all__ = ["default_map", "find_dataset", "find_store", "tuned_folder"]

_FILE = Path("kd.toml")


def default_map(commands: Mapping[str, Any], program: str) -> dict[str, dict[str, Any]]:
    """Defaults of each subcommand of `program` that `kd.toml` sets, by parameter name.

    Args:
        commands: the program's subcommands by name.

    Raises:
        UsageError: ``config.bad_toml``, ``config.unknown_key``.
    """
    if not _FILE.is_file():
        return {}
    try:
        document = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{_FILE}: cannot be read ({error}).", code="config.bad_toml") from error
    defaults: dict[str, dict[str, Any]] = {}
    for name, values in document.get(program, {}).items():
        if name not in commands or not isinstance(values, dict):
            _unknown(f"[{program}.{name}]", commands)
        options = {
            option.lstrip("-"): parameter.name
            for parameter in commands[name].params
            for option in [*parameter.opts, *parameter.secondary_opts]
            if option.startswith("--")
        }
        defaults[name] = {}
        for key, value in values.items():
            if (parameter_name := options.get(key)) is None:
                _unknown(f"{key} in [{program}.{name}]", options)
            defaults[name][parameter_name] = value
    return defaults


def find_store(given: Path | None, command: str) -> Path:
    """The store that was named, or the only one below `cache/`."""
    return given or _only("store", Path("cache"), f"plan/{MANIFEST}", f"{command} --cache", "plan")


def find_dataset(given: Path | None, command: str) -> Path:
    """The dataset that was named, or the only one below `data/`."""
    return given or _only("dataset", Path("data"), MANIFEST, f"{command} --data", "ingest")


def tuned_folder(teacher: str, store: Path) -> Path:
    """The tuned teacher that `--teacher` means: a folder if there is one, else tuned/<store's name>/<teacher>."""
    named = Path(teacher)
    if (named / "config.json").is_file():
        return named
    folder = Path("tuned") / store.resolve().name / teacher
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"no tuned teacher in {folder}; run `kd-teacher tune {teacher} --data data/"
            f"{store.resolve().name}` first, or give its folder as --teacher.",
            code="teacher.missing",
        )
    return folder


def _only(noun: str, root: Path, mark: str, option: str, maker: str) -> Path:
    found = sorted(p for p in root.glob("*") if (p / mark).is_file()) if root.is_dir() else []
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


def _unknown(what: str, known: Mapping[str, Any]) -> NoReturn:
    raise UsageError(
        f"{_FILE}: {what} is not known; known are {', '.join(sorted(known))}.",
        code="config.unknown_key",
    )
