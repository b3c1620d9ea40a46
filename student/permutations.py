"""Rankings as HetComp (Kang et al., WWW 2023) distils them: lists of items, how far two stand apart, losses by order alone.

A reconstruction: the paper's abstract and what is publicly said of its code, not its equations, were at hand; see
docs/decisions/0018-hetcomp.md. Pure functions on tensors: nothing here depends on a student, reads a file or knows a
teacher's name. Ranks count from 0. Legend: K teachers, T slots, C columns, L items of a list.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "coarse_loss",
    "discrepancy",
    "ensemble",
    "fine_loss",
    "list_loss",
    "list_size",
    "top_columns",
]

_FADE = 10.0  #: ranks in which an item's importance falls to 1/e


def list_size(top: int, columns: int) -> int:
    """L: how many items a list holds of `top` asked for; half of the columns at most, so that a rest remains."""
    return max(1, min(top, columns // 2))


def top_columns(scores_TC: Tensor, size: int) -> Tensor:
    """[T, L] the columns of the highest scores, best first."""
    return scores_TC.topk(size, dim=-1).indices


def ensemble(lists_KTL: Tensor, columns: int) -> Tensor:
    """[T, L] the teachers' lists joined: an item's importance is the sum over teachers of exp(-rank / 10).

    An item that a list does not hold has no importance to that teacher.
    """
    importance_TC = torch.zeros(lists_KTL.shape[1], columns, device=lists_KTL.device)
    fade_L = torch.exp(-torch.arange(lists_KTL.shape[2], device=lists_KTL.device) / _FADE)
    for list_TL in lists_KTL:
        importance_TC.scatter_add_(1, list_TL, fade_L.expand(list_TL.shape))
    return top_columns(importance_TC, lists_KTL.shape[2])


def discrepancy(logits_TC: Tensor, list_TL: Tensor) -> Tensor:
    """[T] D@L: 1 - NDCG@L of the student's ranking, where the item at rank t of the list gains 2^exp(-t / 10) - 1.

    0 where the student's first L items are the list in its order, 1 where none of them is in it.
    """
    size = list_TL.shape[1]
    ranks_L = torch.arange(size, device=logits_TC.device)
    discount_L = 1 / torch.log2(ranks_L + 2.0)
    gain_L = 2 ** torch.exp(-ranks_L / _FADE) - 1
    found_TC = torch.zeros(logits_TC.shape, device=logits_TC.device)
    own_TL = top_columns(logits_TC, size)
    found_TC.scatter_(1, own_TL, discount_L.expand(own_TL.shape))
    gained_T = (found_TC.gather(1, list_TL) * gain_L).sum(dim=1)
    return 1 - gained_T / (gain_L * discount_L).sum()


def coarse_loss(logits_TC: Tensor, list_TL: Tensor) -> Tensor:
    """[T] that the list's items stand above the rest, in whatever order: each in a softmax against the rest alone.

    Mean over the list, nats. Does not change when the list is shuffled.
    """
    rest_T1 = _rest(logits_TC, list_TL)
    own_TL = logits_TC.gather(1, list_TL)
    return (torch.logaddexp(own_TL, rest_T1) - own_TL).mean(dim=1)


def fine_loss(logits_TC: Tensor, list_TL: Tensor) -> Tensor:
    """[T] ListMLE of the list, the rest unordered below: each item in a softmax against those behind it and the rest.

    Mean over the list, nats: minus the logarithm of the list's Plackett-Luce probability, divided by L.
    """
    own_TL = logits_TC.gather(1, list_TL)
    behind_TL = own_TL.flip(1).logcumsumexp(dim=1).flip(1)
    return (torch.logaddexp(behind_TL, _rest(logits_TC, list_TL)) - own_TL).mean(dim=1)


def list_loss(logits_TC: Tensor, list_TL: Tensor, final_T: Tensor) -> Tensor:
    """Mean over slots, nats: fine where every teacher is at its last state, else coarse.

    Fine is the mean over two lists, the first half and the first tenth, so that the very first items count most.
    """
    size = list_TL.shape[1]
    halves_T = fine_loss(logits_TC, list_TL[:, : max(1, size // 2)])
    tenths_T = fine_loss(logits_TC, list_TL[:, : max(1, size // 10)])
    return torch.where(final_T, (halves_T + tenths_T) / 2, coarse_loss(logits_TC, list_TL)).mean()


def _rest(logits_TC: Tensor, list_TL: Tensor) -> Tensor:
    """[T, 1] logarithm of the summed exponentials of the columns that are not in the list."""
    return logits_TC.scatter(1, list_TL, -torch.inf).logsumexp(dim=1, keepdim=True)
