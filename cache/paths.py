"""Which names may stand in a manifest: plain, relative, forward-slashed, the same on every system.

Refuses `..`, absolute and drive names, backslashes, control characters, names that Windows reserves, names
over 255 bytes and pairs that differ only by case. A store travels between teams; its names must not bite.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from cache.errors import StoreError, UsageError

__all__ = [
    "check_folder",
    "check_name",
    "check_names",
    "check_set_name",
    "checkpoint_of",
    "trajectory",
    "without_checkpoints",
]

_PART = re.compile(r"[A-Za-z0-9_.@+=-]{1,255}", re.ASCII)
_CHECKPOINT = re.compile(r"(.+)@([1-9][0-9]{0,5})", re.ASCII)
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.ASCII)


def check_name(name: str, *, where: str) -> str:
    """Return `name` if it is a safe relative path, else raise StoreError ``store.unsafe_name``."""
    parts = name.split("/")
    if not all(
        _PART.fullmatch(part) and not part.endswith(".") and not _RESERVED.fullmatch(part)
        for part in parts
    ):
        raise StoreError(
            f"{where}: the file name {name[:120]!r} is not a plain relative path; "
            "this store was not written by kd-cache, do not use it.",
            code="store.unsafe_name",
        )
    return name


def check_names(names: Iterable[str], *, where: str) -> None:
    """Every name safe, no two the same on a system that ignores case, none the folder of another."""
    seen: set[str] = set()
    folders: set[str] = set()
    for name in names:
        folded = check_name(name, where=where).casefold()
        if folded in seen:
            raise StoreError(
                f"{where}: the file name {name!r} appears twice; "
                "this store was not written by kd-cache, do not use it.",
                code="store.unsafe_name",
            )
        seen.add(folded)
        folders.update(folded[:end] for end, letter in enumerate(folded) if letter == "/")
    for name in sorted(seen & folders):
        raise StoreError(
            f"{where}: {name!r} is both a file and a folder; "
            "this store was not written by kd-cache, do not use it.",
            code="store.unsafe_name",
        )


def check_set_name(name: str, *, where: str) -> str:
    """Return `name` if a score set or factor set may be called so, else raise UsageError ``scores.bad_name``."""
    try:
        plain = check_name(name, where=where)
    except StoreError:
        plain = ""
    if not plain or "/" in plain or plain.startswith("."):
        raise UsageError(
            f"{name!r} cannot be the name of a score set; letters, digits and _ . @ + = - were "
            "expected, and no dot in front.",
            code="scores.bad_name",
        )
    return plain


def check_folder(folder: Path) -> Path:
    """Return `folder` if it is not there or is a folder, never a link to one: what is written must not land elsewhere.

    Raises:
        StoreError: ``store.not_a_folder``.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise StoreError(
            f"{folder}: is a link or no folder; stores have neither, "
            "restore it from where the store came from or remove it.",
            code="store.not_a_folder",
        )
    return folder


def checkpoint_of(name: str) -> tuple[str, int] | None:
    """(teacher, number) where `name` is that of a checkpoint on a teacher's way, such as ``unisrec@2``, else None."""
    found = _CHECKPOINT.fullmatch(name)
    return (found[1], int(found[2])) if found else None


def trajectory(name: str, names: Iterable[str]) -> list[str]:
    """The checkpoints of the teacher `name` among `names`, earliest first, and the teacher itself."""
    own = [found[1] for one in names if (found := checkpoint_of(one)) and found[0] == name]
    return [*(f"{name}@{number}" for number in sorted(own)), name]


def without_checkpoints(names: Iterable[str]) -> list[str]:
    """Those of `names` that are no checkpoint of another one of them, in their order."""
    names = list(names)
    return [name for name in names if (checkpoint_of(name) or ("", 0))[0] not in names]
