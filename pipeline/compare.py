"""Two sets of finished runs side by side: what a second teacher, another student or another setting changed.

A set is a folder with runs of one kind, such as the seeds of `kd-student fit --seeds 5`. Refuses runs of several kinds in one
set, and sets that were judged on different datasets: their users are not the same. Reads records and ranks, no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cache.errors import StoreError, UsageError
from pipeline.runs import RECORD, Run, missing_run, open_run

__all__ = ["check_comparable", "heads", "runs_in"]


def runs_in(folder: Path) -> list[Run]:
    """The finished run that `folder` is, or those at any depth below it, in order of their paths.

    Raises:
        UsageError: ``run.missing``; ``compare.mixed`` where they are of several kinds.
        StoreError: ``run.damaged``.
    """
    folders = [folder] if (folder / RECORD).is_file() else _below(folder)
    if not folders:
        raise missing_run(folder, RECORD)
    runs = [open_run(one) for one in folders]
    kinds = {_kind(run): run.folder for run in runs}
    if len(kinds) > 1:
        one, other, *_ = kinds.values()
        raise UsageError(
            f"{folder}: holds runs of {len(kinds)} kinds, among them {one} and {other}, one kind expected; "
            "name the folder of one.",
            code="compare.mixed",
        )
    return runs


def check_comparable(first: Sequence[Run], second: Sequence[Run]) -> None:
    """Refuse runs that ranked the items of different datasets.

    Raises:
        StoreError: ``compare.foreign``, naming both digests.
    """
    expected = _dataset(first[0])
    for run in [*first, *second]:
        if _dataset(run) != expected:
            raise StoreError(
                f"{run.folder}: was judged on the dataset {_dataset(run)[:19]}, {first[0].folder} on "
                f"{expected[:19]}; compare runs of one dataset.",
                code="compare.foreign",
            )


def heads(first: Path, second: Path) -> tuple[str, str]:
    """The shortest ends of two paths that tell them apart: `unisrec` and `three`, or `a/seed-0` and `b/seed-0`."""
    parts = [path.resolve().parts for path in (first, second)]
    for length in range(1, max(map(len, parts))):
        one, other = (str(Path(*some[-length:])) for some in parts)
        if one != other:
            return one, other
    return str(first), str(second)


def _below(folder: Path) -> list[Path]:
    return sorted(file.parent for file in folder.glob(f"*/**/{RECORD}"))


def _kind(run: Run) -> str:
    """All that decides its weights but for the seed, as one text."""
    return str(sorted((k, str(v)) for k, v in run.record["identity"].items() if k != "train.seed"))


def _dataset(run: Run) -> str:
    digest: str = run.record["identity"]["dataset"]
    return digest
