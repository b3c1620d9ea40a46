"""What score sets and factor sets have in common: whose answers they are, and over which plan.

Refuses a set over another dataset or plan, and two sets of one name that are not of one teacher.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from cache.errors import StoreError
from cache.manifest import Manifest
from cache.plan import Plan

__all__ = ["check_lineage", "refuse_other_settings", "sound_teacher"]


def check_lineage(folder: Path, manifest: Manifest, plan: Plan) -> None:
    """Refuse a score set or factor set that was made over another dataset or plan than this one."""
    more = "" if manifest.kind == "scores" else f" --keep {manifest.kind}"
    for kind, found in (("dataset", plan.manifest.parents["dataset"]), ("plan", plan.digest)):
        parent = manifest.parents.get(kind, "none")
        if parent != found:
            raise StoreError(
                f"{folder}: was made over the {kind} {parent}, but {plan.path} is of {kind} {found}; "
                f"remove that folder and run `kd-cache build --teacher {folder.name}{more}`, "
                "or use the store it came from.",
                code="scores.foreign",
            )


def sound_teacher(settings: Mapping[str, Any]) -> bool:
    """Whether what `score_writer.teacher_settings` wrote is there, each of its type."""
    tau, quality = settings.get("tau"), settings.get("quality")
    return (
        _is_number(tau)
        and tau > 0
        and isinstance(quality, dict)
        and all(map(_is_number, quality.values()))
        and isinstance(settings.get("teacher"), str)
        and isinstance(settings.get("teacher_digest"), str)
    )


def refuse_other_settings(
    where: str, there: Manifest, kind: str, settings: Mapping[str, Any], advice: str
) -> None:
    """Refuse two sets of one name, one of scores and one of factors, that are not of one teacher.

    Args:
        where, there: one of them.
        kind, settings: of the other one.

    Raises:
        StoreError: ``scores.exists``, naming what differs.
    """
    odd = [
        # what others published may be of any length
        f"{key} {there.settings.get(key)!r:.200} there, {settings.get(key)!r:.200} asked for"
        for key in ("quality", "tau", "teacher", "teacher_digest")
        if there.settings.get(key) != settings.get(key)
    ]
    if odd:
        raise StoreError(
            f"{where}: holds {there.kind} with other settings ({'; '.join(odd)}) than these {kind}; "
            f"{advice}.",
            code="scores.exists",
        )


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
