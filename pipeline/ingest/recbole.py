"""Format `recbole`: atomic files, tab separated, every column typed in the header.

    ml.inter   user_id:token <tab> item_id:token <tab> timestamp:float        ml.item   item_id:token <tab> title:token_seq

Quotes mean nothing in them. Refuses columns without a type and ids that are not tokens.
Source: https://recbole.io/docs/user_guide/data/atomic_files.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cache.errors import InputError
from pipeline.ingest.columns import EVENT_PARTS, ITEM_PARTS, find_columns
from pipeline.ingest.delimited import Layout, delimited, read_events, records
from pipeline.ingest.rows import RowErrors
from pipeline.ingest.source import Catalogue, Source, id_problem

__all__ = ["atomic", "interaction_files", "read_atomic_items", "read_recbole"]

_TYPES = ("token", "token_seq", "float", "float_seq")
#: which types may play which part; texts may be of any
_ALLOWED: Mapping[str, Sequence[str]] = {
    "user": ("token",),
    "item": ("token",),
    "time": ("float", "token"),
}


def interaction_files(folder: Path) -> list[Path]:
    """The atomic interaction files of a folder, sorted."""
    return sorted(p for p in folder.glob("*.inter") if p.is_file())


def read_recbole(source: Path, *, items: Path | None, columns: Mapping[str, str]) -> Source:
    """Parse a .inter file, or the only one of a folder, with the .item file beside it if there is one."""
    path = source
    if source.is_dir():
        found = interaction_files(source)
        if len(found) != 1:
            raise InputError(
                f"{source}: has {len(found)} .inter files; exactly one was expected, or name the file itself.",
                code="ingest.missing_file",
            )
        path = found[0]
    layout, parts = atomic(path, EVENT_PARTS, columns, required=("user", "item"))
    events = read_events(layout, user=parts["user"], item=parts["item"], time=parts.get("time"))
    beside = path.with_suffix(".item")
    if items is None and beside.is_file():
        items = beside
    catalogue = None if items is None else read_atomic_items(items, columns)
    return Source(format="recbole", events=events, catalogue=catalogue)


def atomic(
    path: Path, parts: Sequence[str], columns: Mapping[str, str], *, required: Sequence[str]
) -> tuple[Layout, dict[str, str]]:
    """The layout of an atomic file with names freed of their types, and the columns of `parts`."""
    typed = delimited(path, delimiter="\t", quoted=False)
    names: list[str] = []
    types: dict[str, str] = {}
    for column in typed.names:
        name, _, kind = column.strip().rpartition(":")
        if not name or kind not in _TYPES:
            raise InputError(
                f"{path}:1: {column[:60]!r}: has no known type; name:type with one of "
                f"{', '.join(_TYPES)} was expected.",
                code="ingest.bad_header",
            )
        names.append(name)
        types[name] = kind
    chosen = {part: name for part, name in columns.items() if part != "item" or name in names}
    found = find_columns(path, names, parts, chosen=chosen, required=required)
    for part, name in found.items():
        if types[name] not in _ALLOWED.get(part, _TYPES):
            raise InputError(
                f"{path}:1: {name}: is of type {types[name]}; {' or '.join(_ALLOWED[part])} was expected.",
                code="ingest.bad_header",
            )
    return replace(typed, names=names), found


def read_atomic_items(path: Path, columns: Mapping[str, str]) -> Catalogue:
    """Item texts of a .item file."""
    layout, parts = atomic(path, ITEM_PARTS, columns, required=("item",))
    errors = RowErrors(path)
    catalogue = Catalogue(path=path)
    places = {part: layout.names.index(name) for part, name in parts.items()}
    for row, cells in records(layout, errors):
        item = cells[places["item"]]
        problem = id_problem(item)
        if problem:
            errors.add(row, parts["item"], problem)
            continue
        texts = {part: cells[at] for part, at in places.items() if part != "item"}
        broken = [part for part, text in texts.items() if text and id_problem(f".{text}")]
        for part in broken:
            errors.add(row, parts[part], str(id_problem(f".{texts[part]}")))
        if not broken and not catalogue.put(item, texts):
            errors.add(row, parts["item"], f"{item!r} is listed a second time; once was expected")
    errors.raise_any()
    return catalogue
