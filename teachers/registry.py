"""Which teachers there are: those of this package and plug-ins of the entry point group `ckd.teachers`.

An entry point names a function `load(folder: pathlib.Path) -> Teacher`; see teachers/protocol.py for what it must return.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from cache.errors import UsageError
from teachers.folder import read_config
from teachers.protocol import Teacher

__all__ = ["load_teacher"]

_GROUP = "ckd.teachers"


def load_teacher(folder: Path) -> Teacher:
    """The tuned teacher that lies in `folder`, whatever its kind.

    Raises:
        UsageError: ``teacher.missing``, ``teacher.unknown``; StoreError: damaged.
    """
    kind = str(read_config(folder)["teacher"])
    if kind == "unisrec":
        from teachers.unisrec_teacher import UniSRecTeacher  # torch only when asked for

        return UniSRecTeacher.load(folder)
    if kind == "recformer":
        from teachers.recformer_teacher import RecformerTeacher

        return RecformerTeacher.load(folder)
    if kind == "unim2rec":
        from teachers.unim2rec_teacher import UniM2RecTeacher

        return UniM2RecTeacher.load(folder)
    plugins = {one.name: one for one in entry_points(group=_GROUP)}
    if kind not in plugins:
        known = ", ".join(sorted({"unisrec", "unim2rec", "recformer", *plugins}))
        raise UsageError(
            f"{folder}: needs the teacher {kind!r}, known are {known}; install the package that brings it.",
            code="teacher.unknown",
        )
    load: Callable[[Path], Any] = plugins[kind].load()
    teacher: Teacher = load(folder)
    return teacher
