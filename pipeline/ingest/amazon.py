"""Formats `amazon2018` and `amazon2023`: reviews as JSON lines, or ratings alone, with the metadata of the products.

    Toys.json[.gz] or Toys_5.json[.gz] or Toys.csv (item,user,rating,timestamp without a header)   meta_Toys.json[.gz]
    Toys.jsonl[.gz] (2023)                                                                    meta_Toys.jsonl[.gz]

As UniSRec's preprocessing has it: any rating counts as an interaction, and only products with metadata stay.
Sources: https://nijianmo.github.io/amazon/ (2018) and https://amazon-reviews-2023.github.io (2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.errors import InputError, UsageError
from pipeline.ingest.delimited import delimited, read_events
from pipeline.ingest.jsonlines import json_events, objects
from pipeline.ingest.rows import RowErrors
from pipeline.ingest.source import Catalogue, Source, id_problem

__all__ = ["DIALECTS", "Dialect", "metadata_files", "read_amazon", "review_files"]

_SUFFIXES = (".json", ".json.gz", ".jsonl", ".jsonl.gz", ".csv", ".csv.gz")
_META = "meta_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What one release calls its fields."""

    user: str
    item: str
    time: str
    texts: Mapping[str, str]  #: our column by theirs


DIALECTS: Mapping[str, Dialect] = {
    "amazon2018": Dialect(
        user="reviewerID",
        item="asin",
        time="unixReviewTime",
        texts={
            "title": "title",
            "brand": "brand",
            "category": "category",
            "description": "description",
            "imageURLHighRes": "image",
            "imageURL": "image",
        },
    ),
    "amazon2023": Dialect(
        user="user_id",
        item="parent_asin",
        time="timestamp",
        texts={
            "title": "title",
            "store": "brand",
            "categories": "category",
            "description": "description",
            "images": "image",
        },
    ),
}


def review_files(folder: Path) -> list[Path]:
    """Files of a folder that may hold reviews or ratings, sorted."""
    return sorted(
        p
        for p in folder.iterdir()
        if p.is_file() and p.name.endswith(_SUFFIXES) and not p.name.startswith(_META)
    )


def metadata_files(folder: Path) -> list[Path]:
    """The metadata files of a folder, sorted."""
    return sorted(
        p for p in folder.glob(f"{_META}*") if p.is_file() and p.name.endswith(_SUFFIXES[:4])
    )


def read_amazon(source: Path, *, dialect: str, items: Path | None) -> Source:
    """Parse a reviews or ratings file, or a folder with exactly one of them, and its metadata."""
    path = source
    if source.is_dir():
        found = review_files(source)
        if len(found) != 1:
            raise InputError(
                f"{source}: has {len(found)} files of reviews or ratings; exactly one was expected, "
                "or name the file itself.",
                code="ingest.missing_file",
            )
        path = found[0]
    meta = items or _metadata_of(path)
    fields = DIALECTS[dialect]
    if ".csv" in path.suffixes[-2:]:
        layout = delimited(path, delimiter=",", names=("item", "user", "rating", "timestamp"))
        events = read_events(layout, user="user", item="item", time="timestamp")
    else:
        events = json_events(path, user=fields.user, item=fields.item, time=fields.time)
    wanted = frozenset(events.items.names.to_pylist())
    return Source(
        format=dialect,
        events=events,
        catalogue=_read_metadata(meta, fields, wanted),
        only_listed=True,
    )


def _metadata_of(path: Path) -> Path:
    """The metadata file that goes with `path`: of the same name, else the only one beside it."""
    stem = path.name
    for suffix in sorted(_SUFFIXES, key=len, reverse=True):
        stem = stem.removesuffix(suffix)
    found = metadata_files(path.parent)
    same = [p for p in found if p.name.partition(".")[0] == _META + stem.removesuffix("_5")]
    if len(same) == 1 or (not same and len(found) == 1):
        return (same or found)[0]
    raise UsageError(
        f"{path}: {len(found)} files {_META}* lie beside it and it is not clear which describes its products; "
        "name the metadata with --items.",
        code="ingest.no_metadata",
    )


def _read_metadata(path: Path, dialect: Dialect, wanted: frozenset[str]) -> Catalogue:
    """Texts of the wanted products; of two listings of a product the fuller one, whatever their order."""
    catalogue = Catalogue(path=path)
    errors = RowErrors(path)
    for row, value in objects(path, errors):
        item = value.get(dialect.item)
        problem = id_problem(item) if isinstance(item, str | None) else "is not a string"
        if problem:
            errors.add(row, dialect.item, problem)
        elif item in wanted:
            try:
                catalogue.put(item, _texts(value, dialect))
            except RecursionError:
                errors.add(row, "line", "is nested too deep for texts")
    errors.raise_any()
    return catalogue


def _texts(value: Mapping[str, Any], dialect: Dialect) -> dict[str, Any]:
    texts: dict[str, Any] = {}
    for theirs, ours in dialect.texts.items():
        if value.get(theirs):
            texts.setdefault(ours, value[theirs])
    return texts
