"""What a teacher will cost before it is asked: bytes on disk, and seconds from a sample.

Refuses nothing and writes nothing. The bytes are exact but for a few kilobytes, the seconds a sample's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

import pipeline.build
from cache.codec import Codec
from cache.dataset import Dataset, Ints
from cache.factor_layout import FactorLayout
from cache.layout import Layout
from cache.plan import Plan, PlannedBatch, first_appearance
from cache.score_writer import TAU, log_softmax
from pipeline.build import PROBE_BATCHES, spread

if TYPE_CHECKING:
    from teachers.protocol import Teacher

__all__ = ["estimate", "estimate_factors", "estimate_seconds"]

_PROBE_RUNS, _PROBE_RUN = 8, 128


def estimate(plan: Plan, codec: Codec = "none") -> int:
    """Bytes that one teacher's scores over `plan` will take on disk, all but a few kilobytes."""
    return sum(Layout.of(plan, codec=codec).sizes().values())


def estimate_factors(plan: Plan, *, items: int, width: int) -> int:
    """Bytes that one teacher's factors will take on disk, all but a few kilobytes.

    Args:
        items: of the dataset.
        width: numbers in a vector.
    """
    per_file = pipeline.build.HISTORY_BLOCK * pipeline.build.FACTOR_BLOCKS
    layout = FactorLayout.of(plan, items=items, width=width, per_file=per_file)
    return sum(layout.sizes().values())


def estimate_seconds(
    teacher: Teacher,
    dataset: Dataset,
    instances: tuple[Ints, Ints],
    batches: Sequence[PlannedBatch],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds that `teacher` would take for a plan, from a sample of at most 1,024 instances and four batches.

    The sample is 8 runs of neighbours, spread evenly, since a teacher may encode a user's prefixes together. Items are
    encoded in full. The disk has no part in it.

    Args:
        instances: (users, ends) of the plan.
        batches: the plan's.
        clock: seconds, from any moment on.
    """
    users, ends = instances
    sample = np.concatenate(
        [
            np.arange(first, min(first + _PROBE_RUN, len(users)))
            for first in spread(len(users) // _PROBE_RUN, _PROBE_RUNS) * _PROBE_RUN
        ]
    )
    began = clock()
    items_VD = teacher.encode_items(dataset)
    seconds = clock() - began
    few = sample[: len(sample) // 8 + 1]
    teacher.encode_histories(dataset, users[few], ends[few])  # the first call pays for much else
    began = clock()
    users_TD = teacher.encode_histories(dataset, users[sample], ends[sample])
    # histories that are no vectors are encoded for each batch anew
    asked = len(users) if teacher.factorises else sum(len(b.instances) for b in batches)
    seconds += (clock() - began) * asked / len(sample)
    targets = dataset.targets(users, ends)
    chosen = spread(len(batches), PROBE_BATCHES)
    began = clock()
    for number in chosen:
        columns = targets[batches[number].instances]
        rows = np.resize(np.arange(len(sample)), len(columns))
        log_softmax(teacher.score(users_TD[rows], items_VD[first_appearance(columns)[0]]), TAU)
    return seconds + (clock() - began) * len(batches) / len(chosen)
