"""What a thing on disk was made from, as a flat mapping of JSON values, and where two such differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["difference"]


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """(name, found there, wanted) of the first name, in order, that differs; a name that is missing counts as None."""
    for key in sorted(found.keys() | wanted.keys()):
        if found.get(key) != wanted.get(key):
            return key, found.get(key), wanted.get(key)
    return None
