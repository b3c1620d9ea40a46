"""Which column plays which part: chosen by the caller, else found by its usual names.

Parts of an event are user, item, time; parts of an item are item, title, brand, category, description, image.
Refuses a chosen name the file does not have, and a file without a column for a part that must be there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from cache.dataset import ITEM_COLUMNS
from cache.errors import InputError, UsageError

__all__ = ["EVENT_PARTS", "ITEM_PARTS", "PARTS", "check_parts", "find_columns"]

EVENT_PARTS = ("user", "item", "time")
ITEM_PARTS = ITEM_COLUMNS
PARTS = (*EVENT_PARTS, *(part for part in ITEM_PARTS if part != "item"))

#: usual names, the likelier first; compared in lower case
_USUAL: Mapping[str, Sequence[str]] = {
    "user": ("user", "user_id", "userid", "uid", "reviewerid", "customer_id", "session_id"),
    "item": ("item", "item_id", "itemid", "iid", "parent_asin", "asin", "product_id", "article_id"),
    "time": ("timestamp", "time", "position", "unixreviewtime", "date", "datetime", "t_dat"),
    "title": ("title", "item_name", "name", "movie_title", "product_title", "prod_name"),
    "brand": ("brand", "store", "manufacturer"),
    "category": ("category", "categories", "class", "genre", "genres"),
    "description": ("description", "detail_desc"),
    "image": ("image", "image_url", "imageurl", "imageurlhighres", "images"),
}


def check_parts(chosen: Mapping[str, str]) -> None:
    """Refuse a choice for a part that does not exist."""
    for part in chosen:
        if part not in PARTS:
            raise UsageError(
                f"column for {part!r}: there is no such part; {', '.join(PARTS)} can be named.",
                code="ingest.unknown_part",
            )


def find_columns(
    path: Path,
    names: Sequence[str],
    parts: Collection[str],
    *,
    chosen: Mapping[str, str],
    required: Collection[str],
    header_row: int = 1,
) -> dict[str, str]:
    """The file's column for each of `parts` that it has.

    Args:
        header_row: where the names stand, for the message; 0 where no row holds them.

    Raises:
        InputError: ``ingest.missing_column``.
    """
    lowered = {name.strip().lower(): name for name in reversed(names)}
    place = f"{path}:{header_row}" if header_row else f"{path}"
    found: dict[str, str] = {}
    for part in parts:
        if part in chosen:
            if chosen[part] not in names:
                raise InputError(
                    f"{place}: {part}: there is no column {chosen[part]!r}; the file has "
                    f"{_listed(names)}.",
                    code="ingest.missing_column",
                )
            found[part] = chosen[part]
            continue
        usual = next((lowered[name] for name in _USUAL[part] if name in lowered), None)
        if usual is not None:
            found[part] = usual
        elif part in required:
            raise InputError(
                f"{place}: {part}: no column has a usual name for it ({', '.join(_USUAL[part][:3])}); "
                f"the file has {_listed(names)}; say which one with --{part}.",
                code="ingest.missing_column",
            )
    return found


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:12])
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "")
