"""Writes one teacher's score set: checked, normalised, shard by shard, resumable at any instant.

    scores/.work-<name>/   identity.json  journal.jsonl  set/   until everything is there
    scores/<name>/         the sealed set, published by one rename of set/

A unit of work is one shard file. What a killed writer left is trusted by digest, the rest is done again; the sealed
set has the same bytes either way. Refuses NaN, infinities and wrong shapes by teacher, batch, row and column, and work
that was begun with other settings. Held in memory: one shard (about 32 MiB).

Shape legend: T slots and C columns of one batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.errors import StoreError, TeacherError, UsageError
from cache.layout import METADATA, Layout, encode_shard
from cache.manifest import Manifest
from cache.plan import Plan
from cache.unfinished import Unfinished

__all__ = [
    "TAU",
    "ScoreWriter",
    "log_softmax",
    "log_softmax_32",
    "parents_of",
    "refuse_empty",
    "score_settings",
    "teacher_settings",
]

TAU = 0.07  #: eq. 2's temperature, where nothing else is asked for


def log_softmax(raw_TC: NDArray[np.floating[Any]], tau: float) -> NDArray[np.float16]:
    """The logarithm of eq. 2: softmax of `raw / tau` over each row, in float32, kept as float16.

    Logarithms keep tau open: the softmax of ``log_softmax(s, t0) * t0 / t`` is the softmax at t.
    """
    return _halves(log_softmax_32(raw_TC, tau))


def log_softmax_32(raw_TC: NDArray[np.floating[Any]], tau: float) -> NDArray[np.float32]:
    """The same before it is rounded."""
    scaled_TC: NDArray[np.float32] = raw_TC.astype(np.float32) / np.float32(tau)
    scaled_TC -= scaled_TC.max(axis=1, keepdims=True)
    scaled_TC -= np.log(np.exp(scaled_TC).sum(axis=1, keepdims=True))
    return scaled_TC


def _halves(log_TC: NDArray[np.float32]) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):  # found and told by the caller
        return log_TC.astype(np.float16)


def teacher_settings(
    *, teacher: str, teacher_digest: str, quality: Mapping[str, float], tau: float
) -> dict[str, Any]:
    """What a score set and a factor set both say of who answered.

    Raises:
        UsageError: tau or a quality that no number can be made of.
    """
    if not (math.isfinite(tau) and tau > 0):
        raise UsageError(
            f"tau is {tau}, a number above 0 was expected; try `--tau {TAU}`.",
            code="scores.bad_tau",
        )
    for metric, value in quality.items():
        if not math.isfinite(value):
            raise UsageError(
                f"the quality of teacher {teacher!r} has {metric} = {value}, a finite number was "
                "expected; run `kd-teacher evaluate` again.",
                code="scores.bad_quality",
            )
    return {
        "quality": {metric: float(value) for metric, value in quality.items()},
        "tau": float(tau),
        "teacher": teacher,
        "teacher_digest": teacher_digest,
    }


def score_settings(
    layout: Layout,
    *,
    teacher: str,
    teacher_digest: str,
    quality: Mapping[str, float],
    tau: float,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything but the parents that decides the content of a score set; the manifest's settings.

    Raises:
        UsageError: as :func:`teacher_settings`.
    """
    who = teacher_settings(teacher=teacher, teacher_digest=teacher_digest, quality=quality, tau=tau)
    return {
        **extra,
        **who,
        "batches_per_shard": layout.per_shard,
        "codec": layout.codec,
        "dtype": layout.dtype,
        "score": "log_softmax",
    }


class ScoreWriter:
    """The unfinished score set of one teacher over one plan. Make one with :meth:`open`."""

    def __init__(self, part: Unfinished, plan: Plan, layout: Layout) -> None:
        self.plan = plan
        self.layout = layout
        self.part = part
        # of one shard, used again: fresh pages for each would cost more than its checksums
        self._buffer = np.empty(layout.shard_size(0), np.uint8)

    @classmethod
    def open(
        cls, folder: Path, plan: Plan, layout: Layout, settings: Mapping[str, Any]
    ) -> ScoreWriter:
        """Begin the score set `folder`, or go on where a killed writer stopped.

        Args:
            folder: the set's final place, ``<store>/scores/<name>``.
            settings: of :func:`score_settings`.

        Raises:
            StoreError: ``scores.foreign_work`` when the unfinished set was begun with other settings.
        """
        refuse_empty(plan)
        part = Unfinished.open(folder, parents=parents_of(plan), settings=settings)
        return cls(part, plan, layout)

    @property
    def work(self) -> Path:
        """The work folder."""
        return self.part.work

    def missing(self) -> Iterator[int]:
        """Units still to be done. Hashes the shards that are there: about 1.5 GB/s."""
        for unit in self.layout.shards:
            if not self.part.whole(self.layout.shard_path(unit)):
                yield unit

    def put(self, unit: int, raws: Sequence[NDArray[np.floating[Any]]]) -> None:
        """Normalise and write one unit.

        Args:
            raws: the teacher's bare scores of each batch in ``layout.shard_batches(unit)``, [T_b, C_b].

        Raises:
            TeacherError: a wrong shape or type, NaN or infinity; nothing of the unit is written.
        """
        numbers = self.layout.shard_batches(unit)
        self.put_logs(unit, (self.logs(i, raw) for i, raw in zip(numbers, raws, strict=True)))

    def put_logs(self, unit: int, logs: Iterable[NDArray[np.floating[Any]]]) -> None:
        """Write one unit from what is ready: of each batch what :meth:`logs` gives, or what another set holds."""
        shard = encode_shard(self.layout, unit, logs, self._buffer)
        self.part.put(self.layout.shard_path(unit), shard.data)

    def seal(self) -> Manifest:
        """Read everything back, write the manifest, publish the set by one rename, clear the work.

        Raises:
            StoreError: ``scores.incomplete`` when units are missing, ``store.wrong_digest`` when the
                disk gives back other bytes than it was given.
        """
        counts = {
            "batches": self.layout.batches,
            "columns": self.layout.columns,
            "slots": self.layout.slots,
        }
        part = self.part
        attributes = {
            "counts": counts,
            "parents": dict(part.parents),
            "settings": dict(part.settings),
        }
        return part.publish(
            kind="scores",
            format=self.layout.format,
            counts=counts,
            files=self.layout.sizes(),
            more={METADATA: self.layout.metadata(attributes)},
        )

    def logs(self, index: int, raw_TC: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        """[T_b, C_b] log-probabilities of batch `index` from the teacher's bare scores.

        Raises:
            TeacherError: as :meth:`put`.
        """
        batch = self.plan[index]
        shape = (len(batch.users), len(batch.items))
        teacher, tau = self.part.settings["teacher"], self.part.settings["tau"]
        if not np.issubdtype(raw_TC.dtype, np.floating):
            raise TeacherError(
                f"teacher {teacher!r}, batch {index}: scores of type {raw_TC.dtype} were handed in, "
                "a floating-point numpy array was expected; mend the teacher.",
                code="teacher.wrong_type",
            )
        if raw_TC.shape != shape:
            raise TeacherError(
                f"teacher {teacher!r}, batch {index}: scores of shape {raw_TC.shape} were handed in, "
                f"{shape} (users, items) was expected; mend the teacher.",
                code="teacher.wrong_shape",
            )
        _refuse_unbounded(raw_TC, teacher, index, "score")
        wide_TC = log_softmax_32(raw_TC, tau)
        log_TC = _halves(wide_TC)
        # whatever the codec: a set can be built with another one later
        _refuse_unbounded(log_TC, teacher, index, f"log-probability at tau {tau}")
        return log_TC if self.layout.codec == "none" else wide_TC


def refuse_empty(plan: Plan) -> None:
    """Refuse to ask about nothing.

    Raises:
        StoreError: ``scores.empty_plan``.
    """
    if len(plan) == 0:
        raise StoreError(
            f"{plan.path}: the plan has no batches, so there is nothing to score; "
            "plan over a dataset whose users have at least two interactions to train on.",
            code="scores.empty_plan",
        )


def parents_of(plan: Plan) -> dict[str, str]:
    """What score sets and factor sets over `plan` name as their parents."""
    return {"dataset": plan.manifest.parents["dataset"], "plan": plan.digest}


def _refuse_unbounded(
    values_TC: NDArray[np.floating[Any]], teacher: str, index: int, what: str
) -> None:
    finite_TC = np.isfinite(values_TC)
    if finite_TC.all():
        return
    row, column = (int(place) for place in np.argwhere(~finite_TC)[0])
    raise TeacherError(
        f"teacher {teacher!r}, batch {index}, row {row}, column {column}: the {what} is "
        f"{values_TC[row, column]}, a finite number was expected; mend the teacher or its item texts.",
        code="teacher.not_finite",
    )
