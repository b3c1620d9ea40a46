"""Which store a `kd-student` command means, opened: by path, by URL through a mirror, or the only one in `cache/`; and what is
read of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from cache.errors import UsageError
from cache.factors import FactorReader
from cache.mirror import LIMIT, open_mirror
from cache.remote import is_url, locate
from cache.scores import ScoreReader
from cache.store import Store
from pipeline import console
from pipeline.config import find_store
from pipeline.sign import check_signed_here

__all__ = ["CacheOption", "Reader", "at_store", "open_store", "reader_of", "warn_small"]

Reader: TypeAlias = ScoreReader | FactorReader

CacheOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--cache", help="The store or its URL; by default the only one in cache/."),
]


def open_store(
    cache: str | None,
    command: str,
    limit: int = LIMIT,
    signed_by: Path | None = None,
    teachers: Sequence[str] = (),
) -> Store:
    """The store that was named: opened where it lies, or through a mirror of what lies elsewhere.

    Args:
        command: what was typed, for the refusal where there is none or more than one.
        limit: bytes of scores and factors that a mirror keeps at most.
        signed_by: a public key whose owner must have signed it, or what it keeps of `teachers`.

    Raises:
        StoreError: as :func:`cache.signature.check_signature`.
    """
    if cache is None or not is_url(cache):
        store = Store.open(find_store(Path(cache) if cache else None, command))
        if signed_by is not None:
            check_signed_here(store, signed_by, teachers)
        return store
    place = locate(cache)
    with console.progress(f"{place.label}: dataset and plan", unit="bytes") as report:
        return open_mirror(
            place,
            limit=limit,
            report=lambda at, total: report(at, total, ""),
            signed_by=signed_by,
        )


def at_store(store: Store) -> str:
    """The option that names a store in a command to type; nothing where it is the only one in `cache/`."""
    there = list(Path("cache").glob("*/plan"))
    return "" if there == [store.path / "plan"] else f" --cache {store.label}"


def reader_of(store: Store, name: str, needs: str) -> Reader:
    """What is kept of a teacher; its factors where something `needs` them.

    Raises:
        UsageError: ``fit.no_factors``; StoreError: damage, or nothing is kept of it.
    """
    if not needs:
        return store.reader(name)
    if name in store.names and name not in store.factor_names:
        raise UsageError(
            f"{store.label}: keeps no factors of {name}, which {needs} must have; "
            + store.advice(f"kd-cache build --teacher {name} --keep factors --cache {store.path}")
            + ".",
            code="fit.no_factors",
        )
    return store.factors(name)


def warn_small(store: Store, readers: Sequence[Reader], limit: int) -> None:
    """Tell where a mirror of `limit` bytes cannot hold what `readers` read."""
    if store.url:
        held = sum(entry.size for reader in readers for entry in reader.manifest.files)
        if held > limit:
            console.note(
                f"{store.label}: the teachers' sets take {console.size(held)}, --cache-limit keeps "
                f"{console.size(limit)}: shards will come again and again"
            )
