"""Writes one teacher's factor set: the vectors rounded to float16, file by file, resumable at any instant.

    factors/.work-<name>/   identity.json  journal.jsonl  set/   until everything is there
    factors/<name>/         the sealed set, published by one rename of set/

A unit of work is one file. Refuses vectors of another shape or beyond float16's range, by row, and teachers whose score is
not the product of what is kept. Held in memory: one file's rows. Legend: N rows, D width, T slots and C columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.errors import TeacherError
from cache.factor_layout import FactorLayout, Halves, Table
from cache.manifest import Manifest
from cache.score_writer import teacher_settings
from cache.unfinished import Unfinished

__all__ = ["MOST_NATS", "FactorWriter", "factor_settings", "halves", "refuse_other_product"]

MOST_NATS = (
    0.1  #: by which the product of what is kept may miss the teacher's score, over its temperature
)

_INSTEAD = "keep its scores instead, with `kd-cache build --keep scores`"


def factor_settings(
    *,
    teacher: str,
    teacher_digest: str,
    quality: Mapping[str, float],
    tau: float,
    rows_per_file: int,
    history_block: int,
) -> dict[str, Any]:
    """Everything but the parents that decides the content of a factor set; the manifest's settings.

    Args:
        tau: temperature that students take unless they are told another; nothing is divided by it here.
        history_block: instances that were encoded together, which decides the last bits.

    Raises:
        UsageError: tau or a quality that no number can be made of.
    """
    who = teacher_settings(teacher=teacher, teacher_digest=teacher_digest, quality=quality, tau=tau)
    return {
        **who,
        "dtype": "float16",
        "history_block": history_block,
        "rows_per_file": rows_per_file,
        "score": "product",
    }


def halves(vectors_ND: NDArray[np.float32]) -> Halves:
    """Vectors as they are kept; what float16 cannot hold becomes infinite."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(vectors_ND, dtype="<f2")


def refuse_other_product(
    teacher: str,
    score_TC: NDArray[np.float32],
    histories_TD: NDArray[np.float32],
    items_CD: NDArray[np.float32],
    tau: float,
) -> None:
    """Compare a teacher's score with the product of what would be kept; a constant a history makes no difference.

    Raises:
        TeacherError: ``teacher.not_a_product`` where they differ by more than `MOST_NATS` nats at `tau`.
    """
    users, items = (halves(some).astype(np.float32) for some in (histories_TD, items_CD))
    shapes = (*users.shape[1:], *score_TC.shape)
    if shapes == (*items.shape[1:], len(users), len(items)) and users.ndim == 2:
        with np.errstate(over="ignore", invalid="ignore"):
            gap_TC = score_TC - users @ items.T
            gap_TC -= gap_TC.mean(axis=1, keepdims=True)
            worst = float(np.abs(gap_TC).max()) / tau
        if worst <= MOST_NATS:
            return
        what = f"misses its score by up to {worst:.3g} nats at tau {tau:g} (at most {MOST_NATS} expected)"
    else:
        what = f"cannot be taken of shapes {users.shape} and {items.shape} for a score of {score_TC.shape}"
    raise TeacherError(
        f"teacher {teacher!r}: the product of its vectors, kept as float16, {what}; {_INSTEAD}.",
        code="teacher.not_a_product",
    )


class FactorWriter:
    """The unfinished factor set of one teacher over one plan."""

    def __init__(self, part: Unfinished, layout: FactorLayout) -> None:
        """`part` must have been begun with :func:`factor_settings`."""
        self.part = part
        self.layout = layout

    def missing(self) -> Iterator[tuple[Table, int]]:
        """Units still to be done. Hashes the files that are there: about 1.5 GB/s."""
        for table, number in self.layout.units:
            if not self.part.whole(self.layout.path(table, number)):
                yield table, number

    def put(self, table: Table, number: int, vectors_ND: NDArray[np.float32]) -> None:
        """Round and write one unit: the vectors of ``layout.file_rows(table, number)``.

        Raises:
            TeacherError: another shape, or a number that float16 cannot hold; nothing of the unit is written.
        """
        layout, teacher = self.layout, self.part.settings["teacher"]
        rows = layout.file_rows(table, number)
        if vectors_ND.shape != (len(rows), layout.width):
            raise TeacherError(
                f"teacher {teacher!r}, {table} from row {rows[0]}: shape {vectors_ND.shape} was handed "
                f"in, ({len(rows)}, {layout.width}) was expected; mend the teacher, or {_INSTEAD}.",
                code="teacher.wrong_shape",
            )
        kept_ND = halves(vectors_ND)
        finite = np.isfinite(kept_ND)
        if not finite.all():
            row, column = (int(place) for place in np.argwhere(~finite)[0])
            raise TeacherError(
                f"teacher {teacher!r}, {table}: row {rows[0] + row} holds {vectors_ND[row, column]:g} at "
                f"{column}, which float16 cannot hold; {_INSTEAD}.",
                code="teacher.not_finite",
            )
        self.part.put(layout.path(table, number), layout.header(table, number), kept_ND.data)

    def seal(self) -> Manifest:
        """Publish the set.

        Raises:
            StoreError: ``scores.incomplete`` when units are missing, ``store.wrong_digest`` when the
                disk gives back other bytes than it was given.
        """
        counts = {
            "instances": self.layout.instances,
            "items": self.layout.items,
            "width": self.layout.width,
        }
        return self.part.publish(kind="factors", counts=counts, files=self.layout.sizes(), more={})
