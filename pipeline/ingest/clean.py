"""Item texts, cleaned as UniSRec's preprocessing describes it, so that published numbers compare.

Lists are joined by spaces, HTML entities resolved, double quotes and line ends removed, trailing dots made exactly
one; a text that then has 2,000 characters or more is taken for page source and emptied. Pure functions, one text at a time.

Source: the preprocessing that https://github.com/RUCAIBox/UniSRec publishes with its data sets.
"""

from __future__ import annotations

import html
from typing import Any

__all__ = ["TOO_LONG", "clean_text", "plain_text"]

TOO_LONG = 2000

_DROPPED = str.maketrans("", "", '"\n\r\0')


def plain_text(value: Any) -> str:
    """One string of whatever a metadata field holds: a string, a list of strings, a mapping, nothing."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return " ".join(part for part in map(plain_text, value) if part)
    if isinstance(value, dict):
        return " ".join(f"{key} {plain_text(part)}" for key, part in value.items())
    return str(value)


def clean_text(value: Any) -> str:
    """The cleaned text, or "" for an empty or overlong one.

    `clean_text(clean_text(x))` can differ from `clean_text(x)` only where entities were escaped twice.
    """
    text = html.unescape(plain_text(value)).translate(_DROPPED).strip()
    text = text.encode("utf-8", "ignore").decode("utf-8")  # JSON may hold half a surrogate pair
    if len(text) >= TOO_LONG:
        return ""
    bare = text.rstrip(".")
    return f"{bare}." if bare else ""
