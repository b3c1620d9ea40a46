"""What a person asks of a store: what is in it, how large, and the digest that stands for all of it.

Reads manifests alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.digest import canonical_json, sha256_bytes
from cache.factors import FactorReader
from cache.manifest import Manifest
from cache.scores import ScoreReader
from cache.store import FACTORS, Store

__all__ = ["Description", "ScoreSet", "describe", "store_digest", "store_statement"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSet:
    """What a person asks of one teacher's scores or factors."""

    name: str
    digest: str
    teacher_digest: str
    tau: float
    quality: Mapping[str, float]  #: validation metrics of the teacher
    bytes: int
    codec: str  #: of scores; empty for factors


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a person asks of a store."""

    path: Path
    dataset: Manifest
    plan: Manifest
    dataset_bytes: int
    plan_bytes: int
    score_sets: tuple[ScoreSet, ...]
    factor_sets: tuple[ScoreSet, ...]
    unfinished: tuple[str, ...]  #: builds begun and not finished

    @property
    def digest(self) -> str:
        """The identity of the whole store: what `kd-cache pull URL@sha256:...` pins."""
        scores = {one.name: one.digest for one in self.score_sets}
        factors = {one.name: one.digest for one in self.factor_sets}
        return store_digest(self.dataset.digest, self.plan.digest, scores, factors)


def describe(store: Store) -> Description:
    """Counts, digests and sizes of a store, from its manifests alone."""
    return Description(
        path=store.path,
        dataset=store.dataset.manifest,
        plan=store.plan.manifest,
        dataset_bytes=_bytes(store.dataset.manifest),
        plan_bytes=_bytes(store.plan.manifest),
        score_sets=tuple(_described(store.scores(name)) for name in store.names),
        factor_sets=tuple(_described(store.factors(name)) for name in store.factor_names),
        unfinished=tuple(store.unfinished),
    )


def store_digest(
    dataset: str, plan: str, scores: Mapping[str, str], factors: Mapping[str, str]
) -> str:
    """The identity of a store, or of a choice of its sets, from the digests of its parts.

    Args:
        scores, factors: digest of each score set and factor set by its name.
    """
    return sha256_bytes(store_statement(dataset, plan, scores, factors))


def store_statement(
    dataset: str, plan: str, scores: Mapping[str, str], factors: Mapping[str, str]
) -> bytes:
    """What a store's digest is the sha256 of, and what its signature signs: canonical JSON of its parts' digests."""
    parts: dict[str, Any] = {"dataset": dataset, "plan": plan, "scores": dict(scores)}
    if factors:  # without any, the digest is that of before there were factors
        parts[FACTORS] = dict(factors)
    return canonical_json(parts)


def _described(reader: ScoreReader | FactorReader) -> ScoreSet:
    settings = reader.manifest.settings
    return ScoreSet(
        name=reader.name,
        digest=reader.digest,
        teacher_digest=settings["teacher_digest"],
        tau=settings["tau"],
        quality=settings["quality"],
        bytes=_bytes(reader.manifest),
        codec=settings.get("codec", ""),
    )


def _bytes(manifest: Manifest) -> int:
    return sum(entry.size for entry in manifest.files)
