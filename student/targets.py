"""What the teachers say together of one batch: scores read, checked, brought to one temperature and joined (eqs. 2-5, 7).

A teacher's factor set is multiplied here, in float32: a batch of 512 x 450 at width 300 takes a few milliseconds. Refuses
scores that do not fit the batch or hold no numbers. Legend: K teachers, T slots, C columns, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.errors import StoreError, UsageError
from cache.plan import Batch
from student.batches import UNPLANNED
from student.consistency import Consistency, join
from student.heard import Factors, Scores

__all__ = [
    "Factors",
    "Items",
    "JoinSettings",
    "Scores",
    "Target",
    "called",
    "join_settings",
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
