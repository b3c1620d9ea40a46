"""Writes one teacher's score set: checked, normalised, shard by shard, resumable at any instant.

    scores/.work-<name>/   identity.json  journal.jsonl  set/   until everything is there
    scores/<name>/         the sealed set, published by one rename of set/

A unit of work is one shard file. What a killed writer left is trusted by digest, the rest is done again; the sealed
set has the same bytes either way. Refuses NaN, infinities and wrong shapes by teacher, batch, row and column, and work
that was begun with other settings. Held in memory: one shard (about 32 MiB).

Shape legend: T slots and C columns of one batch.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.atomic import disk_errors, put, sweep, sync_folder
from cache.digest import canonical_json
from cache.errors import StoreError, TeacherError, UsageError
from cache.journal import JOURNAL, Journal
from cache.layout import METADATA, Layout, encode_shard
from cache.manifest import Manifest, seal
from cache.paths import check_name
from cache.plan import Plan

__all__ = ["TAU", "ScoreWriter", "clear_work", "log_softmax", "score_settings", "work_folder"]

TAU = 0.07  #: eq. 2's temperature, where nothing else is asked for

_IDENTITY = "identity.json"
_SET = "set"


def log_softmax(raw_TC: NDArray[np.floating[Any]], tau: float) -> NDArray[np.float16]:
    """The logarithm of eq. 2: softmax of `raw / tau` over each row, in float32, kept as float16.

    Logarithms keep tau open: the softmax of ``log_softmax(s, t0) * t0 / t`` is the softmax at t.
    """
    scaled_TC = raw_TC.astype(np.float32) / np.float32(tau)
    scaled_TC -= scaled_TC.max(axis=1, keepdims=True)
    scaled_TC -= np.log(np.exp(scaled_TC).sum(axis=1, keepdims=True))
    with np.errstate(over="ignore"):  # found and told by the caller
        return scaled_TC.astype(np.float16)


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
        **extra,
        "batches_per_shard": layout.per_shard,
        "codec": "none",
        "dtype": "float16",
        "quality": {metric: float(value) for metric, value in quality.items()},
        "score": "log_softmax",
        "tau": float(tau),
        "teacher": teacher,
        "teacher_digest": teacher_digest,
    }


def work_folder(folder: Path) -> Path:
    """Where the unfinished score set that will become `folder` lies."""
    return folder.parent / f".work-{folder.name}"


class ScoreWriter:
    """The unfinished score set of one teacher over one plan. Make one with :meth:`open`."""

    def __init__(
        self, folder: Path, plan: Plan, layout: Layout, settings: Mapping[str, Any]
    ) -> None:
        self.folder = folder  #: where the sealed set will lie
        self.plan = plan
        self.layout = layout
        self.settings = settings
        self.work = work_folder(folder)
        self.journal = Journal(self.work)

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
        check_name(folder.name, where=str(folder.parent))
        if len(plan) == 0:
            raise StoreError(
                f"{plan.path}: the plan has no batches, so there is nothing to score; "
                "plan over a dataset whose users have at least two interactions to train on.",
                code="scores.empty_plan",
            )
        work = work_folder(folder)
        identity = {"parents": _parents(plan), "settings": dict(settings)}
        path = work / _IDENTITY
        if path.is_file():
            _refuse_other_work(work, path, identity)
        else:  # never begun, or killed before the first word
            with disk_errors(work):
                shutil.rmtree(work, ignore_errors=True)
                work.mkdir(parents=True)
                sync_folder(work.parent)
            put(path, canonical_json(identity) + b"\n")
        sweep(work)
        return cls(folder, plan, layout, settings)

    def missing(self) -> Iterator[int]:
        """Units still to be done. Hashes the shards that are there: about 1.5 GB/s."""
        for unit in self.layout.shards:
            if not self.journal.whole(self._name(unit)):
                yield unit

    def put(self, unit: int, raws: Sequence[NDArray[np.floating[Any]]]) -> None:
        """Normalise and write one unit.

        Args:
            raws: the teacher's bare scores of each batch in ``layout.shard_batches(unit)``, [T_b, C_b].

        Raises:
            TeacherError: a wrong shape or type, NaN or infinity; nothing of the unit is written.
        """
        numbers = self.layout.shard_batches(unit)
        shard = encode_shard(
            self.layout,
            unit,
            (self._normalise(i, raw) for i, raw in zip(numbers, raws, strict=True)),
        )
        self.journal.put(self._name(unit), shard.data)

    def seal(self) -> Manifest:
        """Read everything back, write the manifest, publish the set by one rename, clear the work.

        Raises:
            StoreError: ``scores.incomplete`` when units are missing, ``store.wrong_digest`` when the
                disk gives back other bytes than it was given.
        """
        missing = list(self.missing())
        if missing:
            raise StoreError(
                f"{self.work}: {len(missing)} of {len(self.layout.shards)} shards are not there yet; "
                "run the same `kd-cache build` again.",
                code="scores.incomplete",
            )
        staged = self.work / _SET
        counts = {
            "batches": self.layout.batches,
            "columns": self.layout.columns,
            "slots": self.layout.slots,
        }
        parents = _parents(self.plan)
        attributes = {"counts": counts, "parents": parents, "settings": dict(self.settings)}
        put(staged / METADATA, self.layout.metadata(attributes))
        self._clear_strays(staged)
        manifest = seal(
            staged, kind="scores", parents=parents, settings=self.settings, counts=counts
        )
        for entry in manifest.files:
            given = self.journal.digest(f"{_SET}/{entry.path}")
            if given is not None and given != entry.sha256:
                (staged / "manifest.json").unlink()
                raise StoreError(
                    f"{staged / entry.path}: the disk gave back other bytes than it was given; "
                    "check the disk, then run the same `kd-cache build` again.",
                    code="store.wrong_digest",
                )
        with disk_errors(self.folder):
            for path in [*(p for p in staged.rglob("*") if p.is_dir()), staged]:
                sync_folder(path)
            staged.rename(self.folder)
            sync_folder(self.folder.parent)
        clear_work(self.folder)
        return manifest

    def _name(self, unit: int) -> str:
        return f"{_SET}/{self.layout.shard_path(unit)}"

    def _clear_strays(self, staged: Path) -> None:
        expected = {METADATA, *self.layout.sizes()}
        with disk_errors(staged):
            for path in sorted(staged.rglob("*"), reverse=True):
                if path.relative_to(staged).as_posix() in expected:
                    continue
                if path.is_symlink() or not path.is_dir():
                    path.unlink()
                elif not any(path.iterdir()):
                    path.rmdir()

    def _normalise(self, index: int, raw_TC: NDArray[np.floating[Any]]) -> NDArray[np.float16]:
        batch = self.plan[index]
        shape = (len(batch.users), len(batch.items))
        teacher, tau = self.settings["teacher"], self.settings["tau"]
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
        log_TC = log_softmax(raw_TC, tau)
        _refuse_unbounded(log_TC, teacher, index, f"log-probability at tau {tau}")
        return log_TC


def clear_work(folder: Path) -> None:
    """Remove the work folder of the sealed set `folder`; what a writer killed at the very end left."""
    work = work_folder(folder)
    with disk_errors(work):
        # the journal goes first: a half-removed folder must never look like work to go on with
        for name in (JOURNAL, _IDENTITY):
            (work / name).unlink(missing_ok=True)
        if work.is_dir():
            shutil.rmtree(work)
            sync_folder(work.parent)


def _parents(plan: Plan) -> dict[str, str]:
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


def _refuse_other_work(work: Path, path: Path, identity: dict[str, Any]) -> None:
    with disk_errors(path):
        data = path.read_bytes()
    if data == canonical_json(identity) + b"\n":
        return
    try:
        begun = json.loads(data)
        old = {**begun["parents"], **begun["settings"]}
        new = {**identity["parents"], **identity["settings"]}
        odd = [
            f"{key} {old.get(key)!r} there, {new.get(key)!r} now"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]
    except (ValueError, TypeError, KeyError, RecursionError):
        odd = []
    raise StoreError(
        f"{work}: an unfinished build with other settings lies there "
        f"({'; '.join(odd) or 'its identity.json is damaged'}); "
        "run the command that began it, or remove that folder to start afresh.",
        code="scores.foreign_work",
    )
