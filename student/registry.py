"""Which students there are: those of this package and plug-ins of the entry point group `ckd.students`.

An entry point names a pair `(Config, make)`: a dataclass whose fields are JSON values with defaults, and a function
`make(config, dataset)` that returns a `torch.nn.Module` with the methods of student/protocol.py. Nothing of ours need be
imported for either. Where Config has the fields hidden, layers, heads, inner or dropout, the options of those names reach
them; `max_length` is set to the dataset's longest history; `--set` reaches any other. What Config cannot take it refuses by
a ValueError. A class variable `kd_weight` is the student's own default of `--kd-weight`. Models are imported when they are
asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, NoReturn

from cache.dataset import Dataset
from cache.errors import UsageError

__all__ = ["BUILT_IN", "StudentKind", "find_student"]

_GROUP = "ckd.students"

#: name -> (what tables call it, module, class; its configuration is called <class>Config)
BUILT_IN = {
    "sasrec": ("SASRec", "student.sasrec", "SASRec"),
    "gru4rec": ("GRU4Rec", "student.gru4rec", "GRU4Rec"),
    "bert4rec": ("BERT4Rec", "student.bert4rec", "BERT4Rec"),
    "fmlprec": ("FMLP-Rec", "student.fmlprec", "FMLPRec"),
    "recguru": ("RecGURU", "student.recguru", "RecGURU"),
    "lightgcn": ("LightGCN", "student.lightgcn", "LightGCN"),
    "fm": ("FM", "student.fm", "FM"),
    "deepfm": ("DeepFM", "student.deepfm", "DeepFM"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentKind:
    """A kind of student that can be made for a dataset."""

    name: str
    title: str  #: for tables
    config: Callable[..., Any]  #: a dataclass
    make: Callable[[Any, Dataset], Any]  #: (config, dataset) to a module, on the processor

    @property
    def kd_weight(self) -> float | None:
        """Lambda of eq. 10 where none is asked for, if the student has one of its own."""
        # a field of that name is a setting of the student, whatever it means there
        return None if "kd_weight" in self.fields else getattr(self.config, "kd_weight", None)

    @property
    def fields(self) -> frozenset[str]:
        """Names of its settings."""
        return frozenset(one.name for one in fields(self.config))  # type: ignore[arg-type]


def find_student(name: str) -> StudentKind:
    """The kind of student of that name.

    Raises:
        UsageError: ``student.unknown``, ``student.bad_plugin``.
    """
    if name in BUILT_IN:
        title, module, cls = BUILT_IN[name]
        there = import_module(module)
        return StudentKind(
            name=name, title=title, config=getattr(there, f"{cls}Config"), make=there.make
        )
    plugins = {one.name: one for one in entry_points(group=_GROUP)}
    if name not in plugins:
        known = ", ".join([*BUILT_IN, *sorted(plugins)])
        raise UsageError(
            f"student {name!r} is not known, known are {known}; "
            "choose one of them, or install the package that brings it.",
            code="student.unknown",
        )
    found = plugins[name].load()
    if not isinstance(found, tuple) or len(found) != 2:
        _bad(name, f"names a {type(found).__name__}")
    config, make = found
    if not (isinstance(config, type) and is_dataclass(config)) or any(
        one.default is MISSING and one.default_factory is MISSING for one in fields(config)
    ):
        _bad(name, "its first part is no dataclass of fields with defaults")
    return StudentKind(name=name, title=name, config=config, make=make)


def _bad(name: str, what: str) -> NoReturn:
    raise UsageError(
        f"student {name!r}: {what}, a pair (Config, make) was expected in the entry point group "
        f"{_GROUP}; mend the package that brings it.",
        code="student.bad_plugin",
    )
