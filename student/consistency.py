"""Joining several teachers into one target: section 3.6 of the paper, eqs. 3-5 and 7.

Legend: K teachers, T slots, C columns. A teacher's scores s_KTC are eq. 2's softmax: each row sums to one over C.

Disagreement is measured on scores relative to uniform (C * s), so a threshold means the same at every batch size. The
paper's confidence is its negative; its Fig. 2 drops the teacher with the largest disagreement, pair by pair. Pure
functions; nothing here depends on a student, reads a file or knows a teacher's name.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

__all__ = ["Consistency", "consistency_weights", "disagreement", "join", "retemper", "threshold"]

Consistency: TypeAlias = Literal["pair", "user", "off"]


def retemper(logp_TC: Tensor, stored_tau: float, tau: float) -> Tensor:
    """The log-probabilities that the same scores have at another temperature.

    With s the bare scores, stored is `s / stored_tau - const`; a constant leaves a softmax as it is, so
    `log_softmax(stored * stored_tau / tau)` equals `log_softmax(s / tau)`.
    """
    return torch.log_softmax(logp_TC.float() * (stored_tau / tau), dim=-1)


def disagreement(scores_KTC: Tensor) -> Tensor:
    """d_KTC: how far each teacher stands from the others, `sum_k' (C s_k - C s_k')^2` (eq. 4, sign turned).

    By the mean: `sum_k' (x_k - x_k')^2 = K (x_k - m)^2 + sum_k' (x_k' - m)^2`, which needs K passes, not K^2.
    """
    gaps = (scores_KTC - scores_KTC.mean(dim=0)) * scores_KTC.shape[-1]
    squares = gaps.square_()
    total_TC = squares.sum(dim=0)
    return squares.mul_(len(scores_KTC)).add_(total_TC)


def threshold(worst: Tensor, epsilon: float | str) -> float | Tensor:
    """The number itself, or for ``"0.8q"`` that quantile of the batch's largest disagreements."""
    if isinstance(epsilon, str):
        # kthvalue rather than quantile: no interpolation, no limit on the number of entries
        rank = max(1, round(float(epsilon.removesuffix("q")) * worst.numel()))
        return worst.flatten().kthvalue(rank).values
    return epsilon


def consistency_weights(
    scores_KTC: Tensor,
    prior_K: Tensor,
    *,
    epsilon: float | str,
    by: Consistency = "pair",
) -> Tensor:
    """Weights w-hat of section 3.6.2: the contradicted teacher gets zero, the others share its weight equally.

    Args:
        prior_K: default weights, summing to one (eq. 3).
        epsilon: disagreement up to which the prior stands; a number, or a quantile such as ``"0.8q"``.
        by: decide for each pair (Fig. 2), for each user (mean over his columns, the text), or never.

    Returns:
        [K, T, C], [K, T, 1] by user, or [K, 1, 1] when off or K < 3: two teachers always disagree equally.
    """
    count = len(scores_KTC)
    prior = prior_K.to(scores_KTC)[:, None, None]
    if by == "off" or count < 3:
        return prior
    d = disagreement(scores_KTC)
    if by == "user":
        d = d.mean(dim=-1, keepdim=True)
    worst = d.amax(dim=0)
    undecided = worst > threshold(worst, epsilon)
    shared, kept = torch.zeros_like(worst), torch.ones_like(d, dtype=torch.bool)
    # teacher by teacher in whole passes: an argmax and a scatter over [K, T, C] take twice as long
    for k, share in enumerate((prior_K / (count - 1)).tolist()):
        contradicted = (d[k] == worst) & undecided
        undecided &= ~contradicted  # of equals the first is dropped
        shared.add_(contradicted, alpha=share)
        kept[k] = ~contradicted
    return (prior + shared).mul_(kept)


def join(
    scores_KTC: Tensor,
    prior_K: Tensor,
    *,
    epsilon: float | str,
    by: Consistency = "pair",
    floor: float = 1e-8,
) -> Tensor:
    """q_TC: the joined scores (eq. 5), floored and renormalised (eq. 7); each row sums to one."""
    weights = consistency_weights(scores_KTC, prior_K, epsilon=epsilon, by=by)
    joined = (weights * scores_KTC).sum(dim=0).clamp_(min=floor)
    return joined.div_(joined.sum(dim=-1, keepdim=True))
