"""Batches made ready on a background thread: histories packed, teachers' scores read, checked and joined.

What the student's step needs of a batch does not depend on the student, so it is prepared while the step before runs. The
order and the numbers do not depend on the thread's timing; an error in it surfaces at the batch it belongs to. Holds
`ahead` batches: at T = 512 about 1 MB each, over all items 4 bytes a history and item. A teacher's factor set is multiplied
here, in float32: a batch of 512 x 450 at width 300 takes a few milliseconds. Legend: K teachers, T slots, C columns, D width.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.dataset import Dataset
from cache.errors import StoreError, UsageError
from cache.plan import Batch
from encoder.packed import Packed, sent
from student.batches import UNPLANNED, Batches, UserBatches
from student.consistency import Consistency, join
from student.heard import Factors, Scores
from student.prefixes import own_items, shared

if TYPE_CHECKING:
    from student.joined import Joined

__all__ = [
    "Factors",
    "Items",
    "JoinSettings",
    "Lists",
    "Prepared",
    "Scores",
    "Target",
    "called",
    "join_settings",
    "prepared",
    "scores_of",
    "target_of",
]

Items: TypeAlias = Literal["in-batch", "all"]

_FLOOR = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinSettings:
    """How the teachers are joined into one target."""

    tau: float  #: temperature of every teacher's softmax (eq. 2)
    weights: tuple[float, ...]  #: [K] default weights, summing to one (eq. 3)
    consistency: Consistency = "pair"
    epsilon: float | str = "0.8q"
    items: Items = (
        "in-batch"  #: the teachers are heard over the batch's columns (eq. 2), or over all items
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """q (eq. 7) of one batch."""

    q_TC: Tensor  #: C are the batch's columns, or all items
    entropy: float  #: mean over slots, nats
    all_items: bool = False


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


def join_settings(
    readers: Sequence[Scores],
    *,
    tau: float | None = None,
    weights: Mapping[str, float] | None = None,
    consistency: Consistency = "pair",
    epsilon: float | str = "0.8q",
    items: Items = "in-batch",
) -> JoinSettings:
    """How to join these teachers, at least one.

    Args:
        tau: temperature; the stores' own by default.
        weights: by teacher; by default proportional to each one's validation NDCG@10, equal where one is unknown.
        items: over which the teachers are heard; all of them takes factors of every teacher.

    Raises:
        UsageError: weights for other teachers than these, or that are no shares (negative, infinite, all zero);
            stores of different tau and none chosen.
    """
    names = [reader.name for reader in readers]
    taus = {reader.tau for reader in readers}
    if tau is None and len(taus) > 1:
        raise UsageError(
            f"the score sets have different temperatures {sorted(taus)}; choose one with --tau.",
            code="fit.mixed_tau",
        )
    if weights and set(weights) != set(names):
        raise UsageError(
            f"weights are given for {sorted(weights)}, the teachers are {sorted(names)}.",
            code="fit.bad_weights",
        )
    known = [reader.quality for reader in readers]
    if weights:
        raw = [weights[name] for name in names]
    elif None in known or not any(known):
        raw = [1.0] * len(readers)
    else:
        raw = [quality or 0.0 for quality in known]
    if not (all(value >= 0 for value in raw) and 0 < sum(raw) < math.inf):
        raise UsageError(
            f"weights {dict(zip(names, raw, strict=True))} found, finite numbers from 0 that are "
            "not all 0 expected; mend --weights.",
            code="fit.bad_weights",
        )
    shares = tuple(value / sum(raw) for value in raw)
    return JoinSettings(
        tau=tau or taus.pop(),
        weights=shares,
        consistency=consistency,
        epsilon=epsilon,
        items=items,
    )


def target_of(
    readers: Sequence[Scores],
    batch: Batch,
    settings: JoinSettings,
    device: torch.device | str = "cpu",
) -> Target:
    """Read and join what the teachers said of a batch.

    Args:
        device: where it is computed if it is over all items; over the batch's the processor does it.

    Raises:
        StoreError: ``store.wrong_shape``, ``store.not_finite``, or what the reader itself refuses.
        UsageError: ``fit.no_factors`` for a teacher without factors, and a batch of no plan or all items.
    """
    everything = settings.items == "all"
    place = device if everything else "cpu"
    if len(readers) == 1:  # nothing to join, and the logarithms are at hand
        logp_TC = torch.log_softmax(_logits(readers[0], batch, settings, place), dim=-1)
        q_TC = logp_TC.exp()
        entropy = -torch.dot(q_TC.flatten(), logp_TC.flatten()) / len(q_TC)
        q_TC.clamp_(min=_FLOOR)
        if everything:  # so many floors add up
            q_TC.div_(q_TC.sum(dim=-1, keepdim=True))
    else:
        q_TC = join(
            _softmaxes(readers, batch, settings, place),
            torch.tensor(settings.weights),
            epsilon=settings.epsilon,
            by=settings.consistency,
            floor=_FLOOR,
        )
        entropy = -torch.dot(q_TC.flatten(), q_TC.log().flatten()) / len(q_TC)
    if not math.isfinite(entropy):
        raise StoreError(
            f"{called(batch)}: the scores of {', '.join(reader.name for reader in readers)} hold "
            "something that is not a number; run `kd-cache verify`.",
            code="store.not_finite",
        )
    return Target(q_TC=q_TC, entropy=float(entropy), all_items=everything)


def _softmaxes(
    readers: Sequence[Scores], batch: Batch, settings: JoinSettings, device: torch.device | str
) -> Tensor:
    """[K, T, C] eq. 2 of every teacher, each computed where it stands in the whole."""
    first_TC = _logits(readers[0], batch, settings, device)
    scores_KTC = first_TC.new_empty(len(readers), *first_TC.shape)
    for k, reader in enumerate(readers):
        logits_TC = _logits(reader, batch, settings, device) if k else first_TC
        torch.softmax(logits_TC, dim=-1, out=scores_KTC[k])
    return scores_KTC


def _logits(
    reader: Scores, batch: Batch, settings: JoinSettings, device: torch.device | str
) -> Tensor:
    """[T, C] whose softmax is eq. 2 at the temperature asked for, over the batch's columns or all items; float32."""
    everything = settings.items == "all"
    if isinstance(reader, Factors):
        # the product is a batch of the plan's too: nothing is rounded to a stored logarithm in between
        users_TD = torch.from_numpy(reader.history_vectors(batch.instances))
        items_CD = torch.from_numpy(reader.item_vectors(None if everything else batch.items))
        raw_TC = users_TD.to(device).float() @ items_CD.to(device).float().T
        return raw_TC.div_(settings.tau)
    _refuse_beyond_plan(reader, batch, everything)
    logits_TC = _read(reader, batch).float()
    return logits_TC if reader.tau == settings.tau else logits_TC * (reader.tau / settings.tau)


def scores_of(
    reader: Scores,
    batch: Batch,
    rows: NDArray[np.int64],
    *,
    everything: bool,
    device: torch.device | str = "cpu",
) -> Tensor:
    """[n, C] what orders a batch's columns, or all items, for some of its slots: scores of any scale.

    Raises:
        StoreError: ``store.wrong_shape``, or what the reader itself refuses; UsageError: ``fit.no_factors``.
    """
    if isinstance(reader, Factors):
        users_nD = torch.from_numpy(reader.history_vectors(batch.instances[rows]))
        items_CD = torch.from_numpy(reader.item_vectors(None if everything else batch.items))
        return users_nD.to(device).float() @ items_CD.to(device).float().T
    _refuse_beyond_plan(reader, batch, everything)
    return _read(reader, batch)[torch.from_numpy(rows)].float()


def _refuse_beyond_plan(reader: Scores, batch: Batch, everything: bool) -> None:
    if everything or batch.index == UNPLANNED:
        raise UsageError(
            f"of {reader.name} only the scores of the plan's batches are kept; "
            f"run `kd-cache build --teacher {reader.name} --keep factors`.",
            code="fit.no_factors",
        )


def called(batch: Batch) -> str:
    """As messages name it."""
    return "a fresh batch" if batch.index == UNPLANNED else f"batch {batch.index}"


def _read(reader: Scores, batch: Batch) -> Tensor:
    """[T, C] of the type that is stored; torch widens a float16 ten times as fast as numpy."""
    stored_TC = reader[batch.index]
    expected = (len(batch.instances), len(batch.items))
    if stored_TC.shape != expected:
        raise StoreError(
            f"batch {batch.index}: scores of shape {stored_TC.shape} by {reader.name} found, "
            f"{expected} expected; the store does not fit its plan, run `kd-cache verify`.",
            code="store.wrong_shape",
        )
    # torch wants what it is given writable
    return torch.from_numpy(np.require(stored_TC, requirements=["C", "W"]))


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
    by_user = isinstance(plan, UserBatches)
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
