"""Joining several teachers into one target: section 3.6 of the paper, eqs. 3-5 and 7.

Legend: K teachers, T slots, C columns. A teacher's scores s_KTC are eq. 2's softmax: each row sums to one over C.

Disagreement is measured on scores relative to uniform (C * s), so a threshold means the same at every batch size. The
paper's confidence is its negative; its Fig. 2 drops the teacher with the largest disagreement, pair by pair. Pure
functions; nothing here depends on a student, reads a file or knows a teacher's name.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
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
        # of order rather than torch's quantile: no interpolation, no limit on the number of entries
        rank = max(1, round(float(epsilon.removesuffix("q")) * worst.numel()))
        if worst.device.type == "cpu":  # the same number as kthvalue's, eight times sooner
            return float(np.partition(worst.flatten().numpy(), rank - 1)[rank - 1])
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
    if by == "pair" and len(scores_KTC) > 2 and scores_KTC.device.type == "cpu":
        joined = _joined_by_pair(scores_KTC, prior_K.tolist(), epsilon)
    else:
        weights = consistency_weights(scores_KTC, prior_K, epsilon=epsilon, by=by)
        joined = weights[0] * scores_KTC[0]
        for weight, scores_TC in zip(weights[1:], scores_KTC[1:], strict=True):
            joined.addcmul_(weight, scores_TC)
    joined.clamp_(min=floor)
    return joined.div_(joined.sum(dim=-1, keepdim=True))


def _joined_by_pair(scores_KTC: Tensor, prior_K: list[float], epsilon: float | str) -> Tensor:
    """[T, C] eq. 5 with the weights of `consistency_weights`, without making them: a third of the time.

    With m the teachers' mean, dropping teacher k takes `K / (K - 1) w_k (x_k - m)` from the sum by the default weights; the
    worst is the largest or the smallest. Both are computed of the gaps to the first teacher, so nothing is lost where
    all agree, and the dropped one is looked up only for the pairs that drop one.
    """
    count = len(scores_KTC)
    first_TC = scores_KTC[0]
    gaps_kTC = scores_KTC[1:] - first_TC
    joined = first_TC * sum(prior_K)
    squares = torch.zeros_like(joined)
    for gap_TC, share in zip(gaps_kTC, prior_K[1:], strict=True):
        joined.add_(gap_TC, alpha=share)
        squares.addcmul_(gap_TC, gap_TC)
    mean_TC = gaps_kTC.sum(dim=0).div_(count)
    above = gaps_kTC.amax(dim=0).clamp_(min=0).sub_(mean_TC)
    least_TC = gaps_kTC.amin(dim=0).clamp_(max=0)
    below = torch.sub(mean_TC, least_TC, out=least_TC)
    far_TC = torch.maximum(above, below, out=above)
    # eq. 4 of the farthest, K far^2 + sum (x_k - m)^2, over C^2
    worst = squares.addcmul_(far_TC, far_TC, value=count).addcmul_(mean_TC, mean_TC, value=-count)
    worst.mul_(joined.shape[-1] ** 2)
    odd = np.flatnonzero(worst.numpy() > threshold(worst, epsilon))
    mean, far = (one.numpy().ravel()[odd] for one in (mean_TC, far_TC))
    flat_kn = gaps_kTC.flatten(1).numpy()
    taken: NDArray[np.floating[Any]] = np.zeros_like(mean)
    left = np.ones(len(odd), np.bool_)
    for k, share in enumerate(prior_K):
        apart = flat_kn[k - 1][odd] - mean if k else -mean
        dropped = np.equal(np.abs(apart), far) & left  # of equals the first
        left &= ~dropped
        taken += np.multiply(apart, dropped, out=apart) * mean.dtype.type(share)
    flat_n = joined.numpy().ravel()
    flat_n[odd] -= taken * mean.dtype.type(count / (count - 1))
    return joined
