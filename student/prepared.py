"""Batches made ready on a background thread: histories packed, teachers' scores read, checked and joined.

What the student's step needs of a batch does not depend on the student, so it is prepared while the step before runs. The
order and the numbers do not depend on the thread's timing; an error in it surfaces at the batch it belongs to. Holds
`ahead` batches: at T = 512 about 1 MB each, over all items 4 bytes a history and item. Whoever leaves off before the last
batch closes the generator, which waits for the thread. Legend: K teachers, T slots, C columns.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.dataset import Dataset
from cache.plan import Batch
from encoder.packed import Packed, sent
from student.batches import Batches, FreshBatches
from student.heard import Scores
from student.joined import Joined
from student.prefixes import own_items, shared
from student.targets import JoinSettings, Target, target_of

__all__ = ["Lists", "Prepared", "prepared"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """Rankings of one batch's items, where teachers are joined by rank; see student/hetcomp.py. L items of a list."""

    instances: NDArray[np.int32]  #: [T] whose they are
    order_TL: Tensor  #: the teachers' together: columns, best first
    final_T: Tensor  #: whether every teacher is at its last state
    now_KTL: Tensor  #: each teacher's own, at its present state
    next_KTL: Tensor  #: and at its next one
    all_items: bool = False  #: columns are rows of all items, not of the batch's


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Everything a step needs."""

    slots: int  #: T
    packed: Packed
    items_C: Tensor  #: the batch's columns as item rows
    columns_T: Tensor  #: column of each slot's target
    rows_T: Tensor  #: item row of each slot's target
    target: Target | None  #: None without teachers, and where they are joined by rank
    lists: Lists | None = None  #: where they are
    own_TC: Tensor | None = None  #: columns that are other items of the slot's own user

    @property
    def all_items(self) -> bool:
        """Whether the teachers are heard over all items."""
        return any(one.all_items for one in (self.target, self.lists) if one)

    def to(self, device: torch.device | str) -> Prepared:
        """The same batch with its tensors on `device`."""
        moved: Prepared = _on(self, device)
        return moved


def prepared(
    dataset: Dataset,
    plan: Batches,
    order: Sequence[int] | NDArray[np.int64],
    readers: Sequence[Scores],
    settings: JoinSettings | None,
    *,
    device: torch.device | str = "cpu",
    ahead: int = 2,
    tiled: bool = True,
    own: bool = False,
    lists: Callable[[Batch], Lists] | None = None,
    kept: Joined | None = None,
) -> Generator[Prepared, None, None]:
    """The plan's batches in `order`, each made ready before it is asked for, at most `ahead` (at least 1) at a time.

    Args:
        plan: the plan, or fresh batches; those by user are laid out for `causal_states`.
        tiled: False for a student without attention: `Packed.of` has less to do.
        own: tell which columns are a user's own items, in batches by user.
        lists: makes the teachers' rankings of a batch, where they are joined by rank.
        kept: targets of former epochs over the same plan, readers and settings.
    """
    by_user = isinstance(plan, FreshBatches) and plan.by_user
    ready: queue.Queue[Prepared | BaseException | None] = queue.Queue(maxsize=max(1, ahead))
    abandoned = threading.Event()

    def hand_over(thing: Prepared | BaseException | None) -> bool:
        while not abandoned.is_set():
            try:
                ready.put(thing, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def target(batch: Batch) -> Target | None:
        if settings is None:
            return None
        if kept is not None and (known := kept.get(batch.index)):
            return known
        made = target_of(readers, batch, settings, device)
        if kept is not None:
            kept.put(batch.index, made)
        return made

    def work() -> None:
        try:
            for index in order:
                batch = plan[int(index)]
                made = _prepare(dataset, batch, target(batch), device, tiled, by_user)
                if own and by_user:
                    own_TC = sent(torch.from_numpy(own_items(dataset, batch)), device)
                    made = replace(made, own_TC=own_TC)
                if lists is not None:
                    made = replace(made, lists=_on(lists(batch), device))
                if not hand_over(made):
                    return
            hand_over(None)
        except BaseException as error:
            hand_over(error)

    thread = threading.Thread(target=work, name="prepare-batches", daemon=True)
    thread.start()
    try:
        while (thing := ready.get()) is not None:
            if isinstance(thing, BaseException):
                raise thing
            yield thing
    finally:
        abandoned.set()
        if thread is not threading.current_thread():  # the garbage collector may run anywhere
            thread.join()


def _prepare(
    dataset: Dataset,
    batch: Batch,
    target: Target | None,
    device: torch.device | str,
    tiled: bool,
    by_user: bool,
) -> Prepared:
    items_C = _index(batch.items)
    columns_T = _index(batch.columns)
    return Prepared(
        slots=len(batch.instances),
        packed=shared(dataset, batch, device)
        if by_user
        else Packed.of(
            *dataset.histories(batch.users, batch.ends), device, users=batch.users, tiled=tiled
        ),
        items_C=sent(items_C, device),
        columns_T=sent(columns_T, device),
        rows_T=sent(items_C[columns_T], device),
        target=target and replace(target, q_TC=_moved(target.q_TC, device)),
    )


def _on(value: Any, device: torch.device | str) -> Any:
    """Tensors sent, wherever they stand in dataclasses and tuples."""
    if isinstance(value, Tensor):
        return _moved(value, device)
    if isinstance(value, tuple):
        return tuple(_on(one, device) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{f.name: _on(getattr(value, f.name), device) for f in fields(value)}
        )
    return value


def _moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Sent, unless it was made there."""
    return tensor if tensor.device.type != "cpu" else sent(tensor, device)


def _index(values: NDArray[np.int32]) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))
