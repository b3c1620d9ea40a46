"""Format `recformer`: the JSON set that Recformer's public code trains on.

    train.json {user: [items]}   val.json, test.json {user: [item]}   smap.json {product: item}   umap.json {person: user}
    meta_data.json {product: {title, brand, category}}

A user's sequence is train, then val, then test; users may lack the latter two. The files are small and read whole.
Source: finetune_data/process.py of https://github.com/AaronHeee/RecFormer
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cache.atomic import disk_errors
from cache.errors import InputError
from pipeline.ingest.source import Catalogue, Events, Source, encode_ids, id_problem

__all__ = ["FILES", "read_recformer"]

FILES = ("train.json", "val.json", "test.json", "smap.json", "umap.json", "meta_data.json")
_TEXTS = ("title", "brand", "category", "description")


def read_recformer(source: Path) -> Source:
    """Parse a folder with the six files."""
    train, val, test, smap, umap, meta = (_load(source / name) for name in FILES)
    people, products = _reverse(source / "umap.json", umap), _reverse(source / "smap.json", smap)
    users: list[str] = []
    items: list[str] = []
    times: list[int] = []
    for user in dict.fromkeys([*train, *val, *test]):
        sequence = [
            _known(source / name, products, item)
            for name, part in zip(FILES, (train, val, test), strict=False)
            for item in _items(source / name, user, part.get(user, []))
        ]
        users += [_known(source / "train.json", people, user)] * len(sequence)
        items += sequence
        times += range(len(sequence))
    if not items:
        raise InputError(
            f"{source / 'train.json'}: holds no items; at least one was expected.",
            code="ingest.empty",
        )
    catalogue = Catalogue(path=source / "meta_data.json")
    for product in sorted(set(items) & meta.keys()):
        fields = meta[product]
        if not isinstance(fields, dict):
            raise InputError(
                f"{catalogue.path}: {product}: is not an object of texts.", code="ingest.bad_json"
            )
        try:
            catalogue.put(product, {name: fields[name] for name in _TEXTS if name in fields})
        except RecursionError as error:
            raise InputError(
                f"{catalogue.path}: {product}: is nested too deep for texts; a string or a list was expected.",
                code="ingest.bad_json",
            ) from error
    if meta and not catalogue.texts:
        raise InputError(
            f"{catalogue.path}: lists none of the items with interactions; the files do not belong together.",
            code="ingest.bad_index",
        )
    events = Events(
        path=source / "train.json",
        users=encode_ids(pa.array(users, pa.string())),
        items=encode_ids(pa.array(items, pa.string())),
        times=np.array(times, np.int64),
    )
    return Source(format="recformer", events=events, catalogue=catalogue, default_k=0)


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(
            f"{path}: is not there; {', '.join(FILES[:-1])} and {FILES[-1]} were expected together.",
            code="ingest.missing_file",
        )
    try:
        with disk_errors(path):
            value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: is not JSON ({error}); fetch the file again.", code="ingest.bad_json"
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds no JSON object; one was expected.", code="ingest.bad_json")
    return value


def _reverse(path: Path, index: Mapping[str, Any]) -> dict[str, str]:
    raw = {str(number): name for name, number in index.items()}
    problems = [problem for name in index if (problem := id_problem(name))]
    if len(raw) != len(index) or problems:
        raise InputError(
            f"{path}: {problems[0] if problems else 'gives two ids the same number'}.",
            code="ingest.bad_index",
        )
    return raw


def _items(path: Path, user: str, value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    raise InputError(f"{path}: user {user}: a list of items was expected.", code="ingest.bad_json")


def _known(path: Path, raw: Mapping[str, str], number: Any) -> str:
    if str(number) in raw:
        return raw[str(number)]
    raise InputError(
        f"{path}: {number!r} has no entry in umap.json or smap.json; the files do not belong together.",
        code="ingest.bad_index",
    )
