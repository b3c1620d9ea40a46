"""Item vectors of an extended store: old items' rows are carried along, only new items' texts are encoded.

Old rows are taken where they are found: beside the old store's dataset, beside the dataset that it was planned from, beside
the later one. New rows come from the later dataset if it brings a set of that name, else from the text encoder whose digest
the set's name carries. Where old rows are nowhere, old texts are encoded too, since they decide the whitening.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache.dataset import Dataset
from cache.errors import CkdError, UsageError
from cache.vectors import list_vectors, read_vectors, vectors_manifest
from pipeline.grow import Growth
from teachers.text import Progress, TextSettings, encode_texts, keep_vectors, named

__all__ = ["Source", "carry", "find_source"]

_OF_PICTURES = re.compile(r".*-image-[0-9a-f]{12}")  # as teachers/images.py names what it makes


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the rows of one vector set come from."""

    name: str
    old: Dataset | None  #: has the old items' rows, in the order of the old dataset
    later: Dataset | None  #: has rows of all items, in an order of its own
    encoder: (
        tuple[Path, TextSettings, dict[str, Any]] | None
    )  #: folder, settings, what it says of itself

    def encoded(self, growth: Growth) -> int:
        """How many texts have to be encoded."""
        if self.later is not None:
            return 0
        return growth.new_items if self.old is not None else len(growth.items)


def find_source(
    name: str, growth: Growth, beside: Sequence[Dataset], text: TextSettings | None
) -> Source:
    """Where the set `name` can be had from; nothing is encoded.

    Args:
        beside: datasets with the old items in the old order, whose vectors may be taken.
        text: the encoder; by default minilm.

    Raises:
        UsageError: ``extend.no_vectors`` where neither vectors nor the encoder of that name are at hand.
    """
    old = next((one for one in beside if name in list_vectors(one)), None)
    if name in list_vectors(growth.new):
        return Source(name=name, old=old, later=growth.new, encoder=None)
    if _OF_PICTURES.fullmatch(name):
        raise UsageError(
            f"{growth.new.path}: has no vectors {name!r}, which the teacher reads and which were made of pictures, and "
            "those of new items cannot be added to them; tune a teacher on the later dataset by "
            "`kd-teacher tune unim2rec --pictures`, or extend one that was tuned with --image-vectors.",
            code="extend.no_vectors",
        )
    asked = text or TextSettings(pooling="cls" if "-cls-" in name else "mean")
    try:
        folder, made_by, found = named(asked)
    except CkdError:
        if text is not None:
            raise
        found = "none"
    if found != name:
        raise UsageError(
            f"{growth.new.path}: has no vectors {name!r}, which the teacher reads, and the text encoder at hand makes "
            f"{found!r}; name the one that the teacher was tuned with by --text and --pooling, or ingest vectors "
            "of that name.",
            code="extend.no_vectors",
        )
    return Source(name=name, old=old, later=None, encoder=(folder, asked, made_by))


def carry(
    source: Source,
    growth: Growth,
    extended: Dataset,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> None:
    """Keep the set beside `extended`; one that is there from an earlier run stays."""
    name = source.name
    if name in list_vectors(extended):
        return
    before = read_vectors(source.old, name) if source.old is not None else None
    made_by: dict[str, Any] = {"origin": "ingested"}
    if source.later is not None:
        made_by = dict(vectors_manifest(source.later, name).settings)
        vectors_VW = read_vectors(source.later, name)[growth.items]
        if before is not None and before.shape[1] == vectors_VW.shape[1]:
            vectors_VW[: len(before)] = before
    elif source.encoder is not None:
        folder, settings, made_by = source.encoder
        first = 0 if before is None else len(before)
        texts = extended.texts()[first:]
        vectors_VW = encode_texts(folder, texts, settings, device=device, progress=progress)
        if before is not None:
            vectors_VW = np.concatenate([before, vectors_VW])
    keep_vectors(extended, name, vectors_VW, made_by)
