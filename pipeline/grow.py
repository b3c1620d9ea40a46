"""What grew: a store's dataset set beside a later one of the same log, joined so that every old row keeps its number.

Users and items are recognised by their ids. Refuses, with counts and the first ids, whatever would make an old instance
mean something else: an item that is gone or reads otherwise, a user who is gone or whose sequence is not the beginning of
his later one, histories cut elsewhere, and ids that are not there to recognise anybody by. Held in memory: both datasets'
sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cache.dataset import EXTENDS, ITEM_COLUMNS, Dataset, Ints, write_dataset
from cache.errors import StoreError
from cache.plan import Plan, PlannedBatch
from pipeline.curriculum import PlanSettings, difficulty, plan_batches

__all__ = ["Growth", "grown_batches", "grown_settings", "join"]

_KEY = np.int64(1) << 32
_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """Two datasets joined: rows of the old one first, then what is new in the order of the new one."""

    old: Dataset
    new: Dataset
    items: NDArray[np.int64]  #: [V] row in `new` of each item
    users: NDArray[np.int64]  #: [U] row in `new` of each user
    joined: Dataset  #: the result, before it is written: its path is that of `new`
    late: int  #: interactions left out because they stand inside old histories
    waiting: int  #: users whose newest interaction is left out until another one follows

    @property
    def new_items(self) -> int:
        """Items that the old dataset does not have."""
        return len(self.items) - self.old.num_items

    @property
    def new_users(self) -> int:
        """Users that the old dataset does not have."""
        return len(self.users) - self.old.num_users

    @property
    def new_interactions(self) -> int:
        """Interactions that the old dataset does not have."""
        return len(self.joined.flat) - len(self.old.flat)

    def write(self, path: Path) -> Dataset:
        """Freeze the joined dataset at `path`."""
        ids = self.new.user_ids()
        assert ids is not None  # of anonymous users nothing was joined
        settings = dict(self.joined.manifest.settings)
        return write_dataset(
            path,
            items=self.new.items.take(pa.array(self.items)),
            user_ids=ids.take(pa.array(self.users)).combine_chunks(),
            flat=self.joined.flat,
            offsets=self.joined.offsets,
            max_length=settings.pop("max_length"),
            settings=settings,
        )


def join(old: Dataset, new: Dataset) -> Growth:
    """Set a later dataset of the same log beside an old one.

    A k-core lets an interaction in once its item is bought often enough, and it may stand inside a history that the teachers
    have read without it. Such an interaction, of an item that the first dataset of the line did not have, is left out.

    Leave-one-out moves on with a user's new items: what was his validation and test item then stands in the training
    part. The one exception is a user of two interactions, who trained on the second: with one more it would be his
    validation item, so the third waits until a fourth is there.

    Raises:
        StoreError: ``extend.anonymous``, ``extend.other_length``, ``extend.items_gone``, ``extend.items_changed``,
            ``extend.users_gone``, ``extend.history_changed``, ``extend.nothing_new``.
    """
    for dataset in (old, new):
        if dataset.user_ids() is None:
            raise StoreError(
                f"{dataset.path}: its users' ids were left out (--anonymise), so nobody can tell whose the new "
                "interactions are; extend a store whose users have ids, or plan a new one.",
                code="extend.anonymous",
            )
    if old.max_length != new.max_length:
        raise StoreError(
            f"{new.path}: cuts histories at {new.max_length} items, {old.path} at {old.max_length}; "
            f"ingest it again with --max-length {old.max_length}.",
            code="extend.other_length",
        )
    items = _match(old, new, "item", old.items["item"], new.items["item"])
    _refuse_other_texts(old, new, items[: old.num_items])
    users = _match(old, new, "user", old.user_ids(), new.user_ids())
    rank_V = np.empty(len(items), np.int32)
    rank_V[items] = np.arange(len(items), dtype=np.int32)
    flat = rank_V[new.flat[_ranges(new.offsets[:-1][users], new.lengths[users])]]
    offsets = _starts(new.lengths[users])
    late = _inside_histories(old, new, flat, offsets)
    flat, offsets = _without(flat, offsets, late)
    lengths_U = np.diff(offsets)
    waits = np.flatnonzero((old.lengths == 2) & (lengths_U[: old.num_users] == 3))
    flat, offsets = _without(flat, offsets, offsets[waits + 1] - 1)
    if len(flat) == len(old.flat) and len(items) == old.num_items:
        raise StoreError(
            f"{new.path}: has nothing that {old.path} does not have; ingest a later state of the log.",
            code="extend.nothing_new",
        )
    before = old.manifest.settings.get(EXTENDS, [])
    step = {"dataset": old.digest, "items": old.num_items, "users": old.num_users}
    inherited = {key: value for key, value in new.manifest.settings.items() if key != EXTENDS}
    settings = {**inherited, EXTENDS: [*before, step], "extended_with": new.digest}
    counts = {"users": len(users), "items": len(items), "interactions": len(flat)}
    manifest = replace(new.manifest, settings=settings, counts=counts, files=())
    return Growth(
        old=old,
        new=new,
        items=items,
        users=users,
        joined=Dataset(path=new.path, manifest=manifest, flat=flat, offsets=offsets),
        late=len(late),
        waiting=len(waits),
    )


def grown_batches(plan: Plan, joined: Dataset) -> tuple[tuple[Ints, Ints], list[PlannedBatch]]:
    """((users, ends) of the instances, batches) of a plan over `joined` that goes on from `plan`; nothing is written.

    The old plan's instances and batches come first, unchanged. What `joined` can train on beyond them gets batches of its
    own in the same buckets and rounds: its difficulties (eq. 1) are taken with the popularity and the longest history of all
    that there is now, and cut into as many buckets of equal size.
    """
    settings = _plan_settings(plan)
    users, ends = joined.training_instances(settings.instances)
    fresh = ~np.isin(users * _KEY + ends, plan.instance_users * _KEY + plan.instance_ends)
    first = plan.num_instances
    all_users = np.concatenate([plan.instance_users, users[fresh]])
    all_ends = np.concatenate([plan.instance_ends, ends[fresh]])
    batches = [
        PlannedBatch(round=batch.round, bucket=batch.bucket, instances=batch.instances)
        for batch in map(plan.__getitem__, range(len(plan)))
    ]
    ssl = difficulty(joined, all_users, all_ends, alpha=settings.alpha, kind=settings.popularity)
    batches += [
        replace(batch, instances=batch.instances + np.int32(first))
        for batch in plan_batches(ssl[first:], settings)
    ]
    return (all_users, all_ends), batches


def grown_settings(plan: Plan) -> dict[str, Any]:
    """Settings of the plan that :func:`grown_batches` makes."""
    return {**plan.manifest.settings, EXTENDS: plan.digest}


def _plan_settings(plan: Plan) -> PlanSettings:
    found = plan.manifest.settings
    settings = PlanSettings(
        **{one.name: found[one.name] for one in fields(PlanSettings) if one.name in found}
    )
    settings.check()
    return settings


def _match(old: Dataset, new: Dataset, noun: str, old_ids: Any, new_ids: Any) -> NDArray[np.int64]:
    """Rows in `new` of all that is there: those of `old` in their order, then the others."""
    place = pc.index_in(old_ids, value_set=pc.cast(new_ids, pa.string()))
    gone = np.flatnonzero(pc.is_null(place).to_numpy())
    if len(gone):
        raise StoreError(
            f"{new.path}: {_told(old_ids, gone, noun, f'of {old.path} not there')}; "
            "ingest the whole log, not only what came since, with the same --k-core.",
            code=f"extend.{noun}s_gone",
        )
    rows = place.to_numpy().astype(np.int64)
    others = np.ones(len(new_ids), np.bool_)
    others[rows] = False
    return np.concatenate([rows, np.flatnonzero(others)])


def _inside_histories(
    old: Dataset, new: Dataset, flat: Ints, offsets: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Places in `flat`, the later sequences in the old numbers, that stand between the interactions of old sequences.

    Raises:
        StoreError: ``extend.history_changed`` where old interactions are gone, or one of an item of old is between them.
    """
    lengths = np.diff(offsets)[: old.num_users]
    compared = np.minimum(old.lengths, lengths)
    ours, theirs = _ranges(old.offsets[:-1], compared), _ranges(offsets[: old.num_users], compared)
    owner = np.repeat(np.arange(old.num_users), compared)
    other = np.zeros(old.num_users, np.bool_)
    other[owner[old.flat[ours] != flat[theirs]]] = True
    other |= lengths < old.lengths
    first = min([old.num_items, *(items for _, items in old.extends)])
    places: list[int] = []
    changed = []
    for user in np.flatnonzero(other).tolist():
        begin, end = offsets[user], offsets[user + 1]
        inside = _between(old.sequence(user).tolist(), flat[begin:end].tolist(), first)
        if inside is None:
            changed.append(user)
        else:
            places += (begin + np.array(inside)).tolist()
    if changed:
        what = "whose old interactions are not the first ones there"
        raise StoreError(
            f"{new.path}: {_told(old.user_ids(), np.array(changed), 'user', what)}; "
            "ingest the whole log in the order that it had, with later interactions at the end.",
            code="extend.history_changed",
        )
    return np.array(places, np.int64)


def _between(before: Sequence[int], after: Sequence[int], first: int) -> list[int] | None:
    """Places of `after` between the elements of `before`; None where one of a row below `first` is, or one is missing."""
    inside: list[int] = []
    found = 0
    for place, row in enumerate(after):
        if found == len(before):
            return inside
        if row == before[found]:
            found += 1
        elif row < first:
            return None
        else:
            inside.append(place)
    return inside if found == len(before) else None


def _without(
    flat: Ints, offsets: NDArray[np.int64], places: NDArray[np.int64]
) -> tuple[Ints, NDArray[np.int64]]:
    """Sequences without the elements at some places."""
    gone = np.zeros(len(flat) + 1, np.int64)
    gone[places + 1] = 1
    return np.delete(flat, places), offsets - np.cumsum(gone)[offsets]


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _refuse_other_texts(old: Dataset, new: Dataset, rows: NDArray[np.int64]) -> None:
    now = new.items.take(pa.array(rows))
    for name in ITEM_COLUMNS:
        odd = np.flatnonzero(pc.not_equal(old.items[name], now[name]).to_numpy())
        if len(odd):
            raise StoreError(
                f"{new.path}: {_told(old.items['item'], odd, 'item', f'with another {name} than in {old.path}')}, "
                "and the teachers have read the old one; ingest with the old item texts, or plan a new store.",
                code="extend.items_changed",
            )


def _told(ids: Any, rows: NDArray[np.intp], noun: str, what: str) -> str:
    """3 users whose ... ('a', 'b', 'c')."""
    first: Sequence[str] = ids.take(pa.array(rows[:_SHOWN])).to_pylist()
    more = ", ..." if len(rows) > _SHOWN else ""
    nouns = noun if len(rows) == 1 else f"{noun}s"
    return f"{len(rows):,} {nouns} {what} ({', '.join(map(repr, first))}{more})"


def _ranges(firsts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers first, first + 1, ... of each, laid end to end."""
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(firsts, counts) + within
