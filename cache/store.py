"""A store: one frozen dataset, one plan over it, per teacher a score set, a factor set or both, at one path that teams share.

    cache/toys/   dataset/   plan/   scores/<name>/   factors/<name>/

Each part is written once and sealed; adding a teacher adds a folder and touches nothing else. Parts name their parents'
digests: a plan of another dataset or scores of another plan are refused with both. Clocks and hosts stand in
`cache/toys.log` beside the store, never inside. Opening hashes dataset and plan; scores are hashed as they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from cache.atomic import disk_errors, staging
from cache.dataset import Dataset, copy_part, open_dataset
from cache.errors import StoreError
from cache.factors import FactorReader
from cache.lineage import refuse_other_settings
from cache.manifest import MANIFEST, Manifest, read_manifest
from cache.mapped import Bring
from cache.paths import check_folder, check_set_name
from cache.plan import Plan, open_plan
from cache.scores import ScoreReader

__all__ = [
    "DatasetSource",
    "PlanSource",
    "Store",
    "copy_factor_set",
    "copy_score_set",
    "refuse_other_teacher",
]

DATASET, PLAN, SCORES, FACTORS = "dataset", "plan", "scores", "factors"

#: a plan to copy in, or a function that writes one at the given path over the given dataset
PlanSource: TypeAlias = Plan | Callable[[Path, Dataset], Plan]


#: a dataset to copy in, or a function that writes one at the given path
DatasetSource: TypeAlias = Dataset | Callable[[Path], Dataset]


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """An opened store. Make one with :meth:`open` or :meth:`create`."""

    path: Path
    dataset: Dataset
    plan: Plan
    bring: Bring | None = (
        None  #: fetches a file of a set of a store that lies elsewhere; see mirror.py
    )
    url: str = ""  #: where that is

    @property
    def label(self) -> str:
        """How a person named it."""
        return self.url or str(self.path)

    @classmethod
    def open(cls, path: Path, *, deep: bool = True) -> Store:
        """Open a store and check that its plan was made over its dataset.

        Args:
            deep: hash the files of dataset and plan, not only compare sizes.

        Raises:
            StoreError: ``store.missing`` without a store there; a part damaged; ``store.lineage``.
        """
        _refuse_non_store(path)
        inner, plan = read_manifest(path / DATASET, "dataset"), read_manifest(path / PLAN, "plan")
        parent = plan.parents.get("dataset", "none")
        if parent != inner.digest:
            raise StoreError(
                f"{path / PLAN / MANIFEST}: was made over the dataset {parent}, but "
                f"{path / DATASET / MANIFEST} is the dataset {inner.digest}; restore the two from "
                "one store, or make a new one with `kd-cache plan`.",
                code="store.lineage",
            )
        dataset = open_dataset(path / DATASET, deep=deep)
        return cls(path=path, dataset=dataset, plan=open_plan(path / PLAN, dataset, deep=deep))

    @classmethod
    def create(cls, path: Path, dataset: DatasetSource, plan: PlanSource) -> Store:
        """Make a store at `path`: staged whole, checked, published by one rename.

        Args:
            dataset: to copy in, or a function that writes one into the store.
            plan: a plan over `dataset` to copy in, or a function that writes one into the store.

        Raises:
            StoreError: ``store.exists``; or the plan is of another dataset.
        """
        with staging(path) as folder, disk_errors(path):
            if isinstance(dataset, Dataset):
                copy_part(dataset.path, folder / DATASET, dataset.manifest)
            else:
                dataset(folder / DATASET)
            inside = open_dataset(folder / DATASET, deep=True)
            if isinstance(plan, Plan):
                copy_part(plan.path, folder / PLAN, plan.manifest)
            else:
                plan(folder / PLAN, inside)
            open_plan(folder / PLAN, inside, deep=True)
            (folder / SCORES).mkdir()
        return cls.open(path, deep=False)

    @property
    def names(self) -> list[str]:
        """The finished score sets, sorted."""
        return _finished(self.path / SCORES)

    @property
    def factor_names(self) -> list[str]:
        """The finished factor sets, sorted."""
        return _finished(self.path / FACTORS)

    @property
    def teachers(self) -> list[str]:
        """Names under which scores or factors are kept, sorted."""
        return sorted({*self.names, *self.factor_names})

    @property
    def unfinished(self) -> list[str]:
        """Names of builds that were begun and are not finished, sorted."""
        return sorted(
            {
                path.name.removeprefix(".work-")
                for part in (SCORES, FACTORS)
                for path in (self.path / part).glob(".work-*")
            }
        )

    def folder(self, name: str) -> Path:
        """Where the score set `name` lies, or would.

        Raises:
            UsageError: ``scores.bad_name``.
            StoreError: ``store.not_a_folder`` for a link.
        """
        return self._set_folder(SCORES, name)

    def factor_folder(self, name: str) -> Path:
        """Where the factor set `name` lies, or would.

        Raises:
            UsageError: ``scores.bad_name``.
            StoreError: ``store.not_a_folder`` for a link.
        """
        return self._set_folder(FACTORS, name)

    def _set_folder(self, kind: str, name: str) -> Path:
        folder = check_folder(self.path / kind)
        return check_folder(folder / check_set_name(name, where=str(folder)))

    def scores(self, name: str) -> ScoreReader:
        """Open the score set `name`.

        Raises:
            StoreError: ``scores.missing``, naming those that are there; damaged or foreign.
        """
        folder = self.folder(name)
        if not folder.is_dir():
            there = ", ".join(self.teachers) or "none"
            raise StoreError(
                f"{self.label}: has no scores of {name!r} (there: {there}); "
                f"{self.advice(f'kd-cache build --teacher {name}')}.",
                code="scores.missing",
            )
        return ScoreReader.open(folder, self.plan, bring=self.bring)

    def factors(self, name: str) -> FactorReader:
        """Open the factor set `name`.

        Raises:
            StoreError: ``factors.missing``, naming those that are there; damaged or foreign; ``scores.exists``
                where the scores of that name are another teacher's.
        """
        folder = self.factor_folder(name)
        if not folder.is_dir():
            there = ", ".join(self.factor_names) or "none"
            raise StoreError(
                f"{self.label}: has no factors of {name!r} (there: {there}); "
                + self.advice(f"kd-cache build --teacher {name} --keep factors --cache {self.path}")
                + ".",
                code="factors.missing",
            )
        reader = FactorReader.open(folder, self.plan, self.dataset.num_items, bring=self.bring)
        # of a factor set's own settings nothing inside it is a witness; the scores beside it are
        beside = self.folder(name)
        if (beside / MANIFEST).exists():
            refuse_other_settings(
                f"{folder} beside {beside}, which",
                read_manifest(beside, SCORES),
                FACTORS,
                reader.manifest.settings,
                "one of the two has changed, restore it from where the store came from",
            )
        return reader

    def reader(self, name: str) -> ScoreReader | FactorReader:
        """What is kept of a teacher: its scores, or where there are none its factors.

        Raises:
            StoreError: ``scores.missing``, naming those that are there; damaged or foreign.
        """
        if self.factor_folder(name).is_dir() and not self.folder(name).is_dir():
            return self.factors(name)
        return self.scores(name)

    def advice(self, build: str) -> str:
        """How to come by what it lacks: a mirror is not built into, it shows what lies elsewhere."""
        return f"run `{build}`" if not self.url else "ask for it where the store was pushed from"

    @property
    def log(self) -> Path:
        """The file beside the store that keeps what may not stand inside: times and hosts."""
        return self.path.with_name(f"{self.path.name}.log")


def copy_score_set(source: Store, name: str, target: Store) -> Manifest:
    """Copy one sealed score set between two stores over the same plan; every byte is checked.

    Raises:
        StoreError: ``store.lineage`` with both digests when the plans differ; ``store.exists``;
            ``scores.exists`` where the target has another teacher's factors under that name.
    """
    return _copy_set(source.path, source.plan, source.scores(name), target.folder(name), target)


def copy_factor_set(source: Store, name: str, target: Store) -> Manifest:
    """Copy one sealed factor set between two stores over the same plan; every byte is checked.

    Raises:
        StoreError: as :func:`copy_score_set`.
    """
    folder = target.factor_folder(name)
    return _copy_set(source.path, source.plan, source.factors(name), folder, target)


def refuse_other_teacher(store: Store, name: str, kind: str, settings: Mapping[str, Any]) -> None:
    """Refuse to keep, under one name, the scores of one teacher and the factors of another.

    Args:
        kind: scores or factors, of what is to be kept.
        settings: of the set that is to be kept.

    Raises:
        StoreError: ``scores.exists``, naming what differs from the other kind of set that is there.
    """
    other, folder = (FACTORS, store.factor_folder(name))
    if kind == FACTORS:
        other, folder = SCORES, store.folder(name)
    if not folder.exists():
        return
    there = read_manifest(folder, other)
    refuse_other_settings(
        str(folder),
        there,
        kind,
        settings,
        "give these another name with `--name`, or remove that folder",
    )


def _copy_set(
    path: Path, plan: Plan, reader: ScoreReader | FactorReader, folder: Path, target: Store
) -> Manifest:
    kind, name = reader.manifest.kind, reader.name
    if plan.digest != target.plan.digest:
        keep = "" if kind == SCORES else f" --keep {kind}"
        raise StoreError(
            f"{path} is of plan {plan.digest}, {target.path} of plan "
            f"{target.plan.digest}; {kind} of different plans cannot stand in one store, "
            f"run `kd-cache build --teacher {name}{keep}` there.",
            code="store.lineage",
        )
    refuse_other_teacher(target, name, kind, reader.manifest.settings)
    with disk_errors(folder):
        copy_part(reader.folder, folder, reader.manifest, deep=True)
    return reader.manifest


def _finished(folder: Path) -> list[str]:
    """Names of the sealed sets in a folder, sorted."""
    if not folder.is_dir():
        return []
    return sorted(
        child.name
        for child in folder.iterdir()
        if not child.name.startswith(".") and (child / MANIFEST).is_file()
    )


def _refuse_non_store(path: Path) -> None:
    if path.is_dir():
        for part in (DATASET, PLAN, SCORES, FACTORS):
            check_folder(path / part)
    if not path.is_dir() or not (path / DATASET).is_dir() or not (path / PLAN).is_dir():
        what = "is not a store" if path.exists() else "is not there"
        raise StoreError(
            f"{path}: {what}, a folder with dataset/, plan/ and scores/ was expected; "
            "make one with `kd-cache plan`, or check the path.",
            code="store.missing",
        )
