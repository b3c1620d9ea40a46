"""Batches made ready on a background thread: histories packed, teachers' scores read, checked and joined.

What the student's step needs of a batch does not depend on the student, so it is prepared while the step before runs. The
order and the numbers do not depend on the thread's timing; an error in it surfaces at the batch it belongs to. Holds
`ahead` batches: at T = 512 about 1 MB each. Legend: K teachers, T slots, C columns.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.dataset import Dataset
from cache.errors import StoreError, UsageError
from cache.plan import Batch, Plan
from encoder.packed import Packed
from student.consistency import Consistency, join, retemper

__all__ = ["JoinSettings", "Prepared", "Scores", "Target", "join_settings", "prepared", "target_of"]

_FLOOR = 1e-8


class Scores(Protocol):
    """One teacher's score set: log-probabilities of each batch's columns at temperature `tau`."""

    @property
    def name(self) -> str:
        """The teacher's."""

    @property
    def tau(self) -> float:
        """Temperature that the stored log-probabilities have."""

    @property
    def quality(self) -> float | None:
        """The teacher's validation NDCG@10, where it is known."""

    def __getitem__(self, index: int, /) -> NDArray[np.float16]:
        """[T, C] of batch `index`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinSettings:
    """How the teachers are joined into one target."""

    tau: float  #: temperature of every teacher's softmax (eq. 2)
    weights: tuple[float, ...]  #: [K] default weights, summing to one (eq. 3)
    consistency: Consistency = "pair"
    epsilon: float | str = "0.8q"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """q (eq. 7) of one batch."""

    q_TC: Tensor
    entropy: float  #: mean over slots, nats


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Everything a step needs."""

    slots: int  #: T
    packed: Packed
    items_C: Tensor  #: the batch's columns as item rows
    columns_T: Tensor  #: column of each slot's target
    rows_T: Tensor  #: item row of each slot's target
    target: Target | None  #: None without teachers


def join_settings(
    readers: Sequence[Scores],
    *,
    tau: float | None = None,
    weights: Mapping[str, float] | None = None,
    consistency: Consistency = "pair",
    epsilon: float | str = "0.8q",
) -> JoinSettings:
    """How to join these teachers.

    Args:
        tau: temperature; the stores' own by default.
        weights: by teacher; by default proportional to each one's validation NDCG@10, equal where one is unknown.

    Raises:
        UsageError: weights for other teachers than these, or stores of different tau and none chosen.
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
    raw = [weights[r.name] if weights else (r.quality or 0.0) for r in readers]
    if not weights and not all(raw):
        raw = [1.0] * len(readers)
    if min(raw) < 0 or not sum(raw) > 0:
        raise UsageError("weights must not be negative and not all zero.", code="fit.bad_weights")
    shares = tuple(value / sum(raw) for value in raw)
    return JoinSettings(
        tau=tau or taus.pop(), weights=shares, consistency=consistency, epsilon=epsilon
    )


def target_of(readers: Sequence[Scores], index: int, settings: JoinSettings) -> Target:
    """Read and join what the teachers said of batch `index`."""
    logps = [
        retemper(torch.from_numpy(reader[index].astype(np.float32)), reader.tau, settings.tau)
        for reader in readers
    ]
    if len(logps) == 1:  # nothing to join, and the logarithms are at hand
        (logp_TC,) = logps
        q_TC = logp_TC.exp()
        entropy = -torch.dot(q_TC.flatten(), logp_TC.flatten()) / len(q_TC)
        q_TC.clamp_(min=_FLOOR)
    else:
        q_TC = join(
            torch.stack(logps).exp_(),
            torch.tensor(settings.weights),
            epsilon=settings.epsilon,
            by=settings.consistency,
            floor=_FLOOR,
        )
        entropy = torch.special.entr(q_TC).sum() / len(q_TC)
    return Target(q_TC=q_TC, entropy=float(entropy))


def prepared(
    dataset: Dataset,
    plan: Plan,
    order: Sequence[int] | NDArray[np.int64],
    readers: Sequence[Scores],
    settings: JoinSettings | None,
    *,
    device: torch.device | str = "cpu",
    ahead: int = 2,
) -> Iterator[Prepared]:
    """The plan's batches in `order`, each made ready before it is asked for."""
    ready: queue.Queue[Prepared | BaseException | None] = queue.Queue(maxsize=ahead)
    abandoned = threading.Event()

    def hand_over(thing: Prepared | BaseException | None) -> bool:
        while not abandoned.is_set():
            try:
                ready.put(thing, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for index in order:
                batch = plan[int(index)]
                if not hand_over(_prepare(dataset, batch, readers, settings, device)):
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
        thread.join()


def _prepare(
    dataset: Dataset,
    batch: Batch,
    readers: Sequence[Scores],
    settings: JoinSettings | None,
    device: torch.device | str,
) -> Prepared:
    target = None
    if settings is not None:
        target = target_of(readers, batch.index, settings)
        expected = (len(batch.instances), len(batch.items))
        if tuple(target.q_TC.shape) != expected:
            raise StoreError(
                f"batch {batch.index}: scores of shape {tuple(target.q_TC.shape)} found, {expected} "
                "expected; the store does not fit its plan, run `kd-cache verify`.",
                code="store.wrong_shape",
            )
    items_C = _index(batch.items)
    columns_T = _index(batch.columns)
    ready = Prepared(
        slots=len(batch.instances),
        packed=Packed.of(*dataset.histories(batch.users, batch.ends), device),
        items_C=items_C,
        columns_T=columns_T,
        rows_T=items_C[columns_T],
        target=target,
    )
    return ready if torch.device(device).type == "cpu" else _moved(ready, device)


def _moved(ready: Prepared, device: torch.device | str) -> Prepared:
    def send(tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(device, non_blocking=True)

    target = ready.target
    return Prepared(
        slots=ready.slots,
        packed=ready.packed,
        items_C=send(ready.items_C),
        columns_T=send(ready.columns_T),
        rows_T=send(ready.rows_T),
        target=target and Target(q_TC=send(target.q_TC), entropy=target.entropy),
    )


def _index(values: NDArray[np.int32]) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))
