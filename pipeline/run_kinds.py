"""The kinds of run that one `kd-student fit` trains: the base, and the student of a store's teachers, joined either way.

Readers are opened here, and nothing of theirs is read. Refuses what the store cannot give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cache.errors import UsageError
from cache.paths import without_checkpoints
from cache.store import Store
from pipeline.join_options import trajectories
from pipeline.student_store import Reader, reader_of, warn_small
from student.hetcomp import HetCompSettings
from student.schedule import TrainSettings
from student.targets import join_settings

__all__ = ["RunKind", "run_kinds"]


@dataclass(frozen=True, slots=True)
class RunKind:
    """Runs that differ by their seed alone."""

    name: str  #: base, distilled or hetcomp
    readers: Sequence[Reader]  #: of the teachers; none for a base
    settings: TrainSettings


def run_kinds(
    store: Store,
    base: TrainSettings,
    given: Mapping[str, Any],
    weights: Mapping[str, float] | None,
    epsilon: float | str,
) -> list[RunKind]:
    """What is trained, in that order.

    Args:
        base: what all have in common.
        given: the command's parameters.
        weights, epsilon: what two of them say, parsed before the store was opened.

    Raises:
        UsageError: ``fit.no_teachers``, ``fit.no_factors``, ``fit.no_trajectory``, ``fit.mixed_tau``, or bad weights.
        StoreError: damage, or nothing is kept of a teacher.
    """
    kinds: list[RunKind] = []
    staged = given["curriculum"]
    if given["compare"] or not given["distill"]:
        # stages are a part of the method: the base is what one would train without it
        kinds.append(RunKind("base", (), replace(base, curriculum=bool(staged))))
    if not given["distill"]:
        return kinds
    # sorted: who is named first has no say in a run, nor in one that goes on
    names = sorted(set(given["teacher"] or without_checkpoints(store.teachers)))
    if not names:
        raise UsageError(
            f"{store.label}: holds no teacher's scores; "
            + store.advice(f"kd-cache build --teacher unisrec --cache {store.path}")
            + ", or train the base with --no-distill.",
            code="fit.no_teachers",
        )
    over_all = given["kd_items"] == "all"
    needs = "--kd-items all" if over_all else "fresh batches" if base.batch_size else ""
    ranked = given["join"] == "hetcomp"
    ways = trajectories(store, names) if ranked else [[name] for name in names]
    readers = [reader_of(store, name, needs) for way in ways for name in way]
    warn_small(store, readers, int(given["cache_limit"] * 1e9))
    if ranked:
        het = HetCompSettings(
            states=tuple(map(len, ways)),
            top=given["top"],
            alpha=given["alpha"],
            items=given["kd_items"],
        )
        settings = replace(base, join=het, curriculum=bool(staged))
        return [*kinds, RunKind("hetcomp", readers, settings)]
    joined = join_settings(
        readers,
        tau=given["tau"],
        weights=weights,
        consistency=given["consistency"],
        epsilon=epsilon,
        items=given["kd_items"],
    )
    settings = replace(base, join=joined, curriculum=staged is not False)
    return [*kinds, RunKind("distilled", readers, settings)]
