"""What an extended store would hold and what it would cost to fill, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cache.dataset import Ints
from cache.factor_layout import FactorLayout
from cache.factors import FactorReader
from cache.layout import Layout
from cache.plan import PlannedBatch, first_appearance
from cache.scores import ScoreReader
from cache.store import FACTORS, SCORES, Store
from pipeline.grow import Growth, grown_batches

if TYPE_CHECKING:
    from teachers.protocol import Teacher

__all__ = ["Grown", "SetCost", "grow", "readers_of", "rows_asked", "set_cost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetCost:
    """What extending the sets of one name would take."""

    name: str
    kinds: tuple[str, ...]  #: scores, factors
    histories: int  #: that go through the teacher
    items: int  #: that go through the teacher
    again: bool  #: whether old items are among them, for want of kept vectors
    bytes: int  #: of the extended sets


@dataclass(frozen=True, slots=True, kw_only=True)
class Grown:
    """What the extended store would hold, before anything is written."""

    growth: Growth
    instances: tuple[Ints, Ints]
    batches: list[PlannedBatch]
    first_instance: int
    first_batch: int
    columns: int  #: the most distinct targets that any batch has
    asked: Ints  #: [n] rows of the items that new batches are about, ascending

    @property
    def new_instances(self) -> int:
        """Instances that the old plan does not have."""
        return len(self.instances[0]) - self.first_instance

    @property
    def new_batches(self) -> int:
        """Batches that the old plan does not have."""
        return len(self.batches) - self.first_batch


def grow(old: Store, growth: Growth) -> Grown:
    """Plan the extension of `old`; writes nothing."""
    (users, ends), batches = grown_batches(old.plan, growth.joined)
    targets = growth.joined.targets(users, ends)
    fresh = batches[len(old.plan) :]
    widths = [len(first_appearance(targets[batch.instances])[0]) for batch in fresh]
    return Grown(
        growth=growth,
        instances=(users, ends),
        batches=batches,
        first_instance=old.plan.num_instances,
        first_batch=len(old.plan),
        columns=max([old.plan.num_columns, *widths]),
        asked=np.unique(targets[old.plan.num_instances :]).astype(np.int32),
    )


def set_cost(old: Store, grown: Grown, name: str, teacher: Teacher) -> SetCost:
    """What it would take to extend the sets `name` of `old` by `teacher`."""
    joined, first = grown.growth.joined, grown.growth.old.num_items
    scores, factors = readers_of(old, name)
    rows = rows_asked(factors, grown.asked, first, joined.num_items)
    total = 0
    if scores:
        slots = old.plan.batch_size
        layout = Layout.fitting(batches=len(grown.batches), slots=slots, columns=grown.columns)
        total += sum(layout.sizes().values())
    if factors:
        kept = FactorLayout(
            instances=len(grown.instances[0]),
            items=joined.num_items,
            width=factors.layout.width,
            per_file=factors.layout.per_file,
        )
        total += sum(kept.sizes().values())
    fresh = grown.batches[grown.first_batch :]
    # histories that are no vectors are encoded for each batch anew
    each = sum(len(batch.instances) for batch in fresh)
    return SetCost(
        name=name,
        kinds=tuple(kind for kind, one in ((SCORES, scores), (FACTORS, factors)) if one),
        histories=grown.new_instances if teacher.factorises else each,
        items=len(rows),
        again=bool(len(rows) and rows[0] < first),
        bytes=total,
    )


def readers_of(store: Store, name: str) -> tuple[ScoreReader | None, FactorReader | None]:
    """The sets of that name, at least one.

    Raises:
        StoreError: ``scores.missing``, naming those that are there.
    """
    factors = store.factors(name) if name in store.factor_names else None
    scores = store.scores(name) if factors is None or name in store.names else None
    return scores, factors


def rows_asked(factors: FactorReader | None, asked: Ints, first: int, items: int) -> Ints:
    """Items that the teacher is asked about: the new ones where factors hold the old, else those of new batches."""
    return asked if factors is None else np.arange(first, items, dtype=np.int32)
