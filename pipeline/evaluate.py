"""Leave-one-out evaluation with all items ranked: one protocol for every student and teacher.

The history is not masked unless asked; ties count against the model. Memory is bounded: scores live in one block of
about 4 MiB. Ranking costs little more than its matrix product. Legend: n users, D width, V items.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.dataset import Dataset, Ints
from cache.errors import TeacherError
from encoder.packed import Packed
from encoder.products import product, widened
from student.protocol import AnyStudent, Student

__all__ = ["rank_histories", "rank_student", "ranks_of_targets"]

_BLOCK_ENTRIES = 1 << 20  # larger blocks are asked of the kernel afresh
_ENCODE = 4096

Encode = Callable[[Packed], Tensor]


@torch.inference_mode()
def ranks_of_targets(
    users_nD: Tensor,
    items_VD: Tensor,
    targets_n: Tensor,
    *,
    bias_V: Tensor | None = None,
    masked: Callable[[int, int], tuple[Tensor, Tensor]] | None = None,
    users_n: Ints | None = None,
) -> NDArray[np.int64]:
    """Rank of each user's target among all items by `users @ items.T (+ bias)`.

    Args:
        masked: for users start..stop, (row within the block, item) pairs that may not be recommended.
        users_n: their rows, for the refusal; by default their places here.

    Returns:
        [n] ranks from 1; an item that scores the same as the target stands before it.

    Raises:
        TeacherError: ``model.not_finite`` where a target's score is NaN.
    """
    block = _block(len(items_VD))
    across = widened(items_VD).T
    bias = None if bias_V is None else widened(bias_V)

    def score(start: int, stop: int) -> Tensor:
        return product(users_nD[start:stop], across, bias)[:, : len(items_VD)]

    return _ranks(score, block, targets_n, masked, users_n)


def _block(num_items: int) -> int:
    """Users whose scores of all items are in memory at a time."""
    return max(1, _BLOCK_ENTRIES // max(num_items, 1))


def _ranks(
    score: Callable[[int, int], Tensor],
    block: int,
    targets_n: Tensor,
    masked: Callable[[int, int], tuple[Tensor, Tensor]] | None,
    users_n: Ints | None,
) -> NDArray[np.int64]:
    """As :func:`ranks_of_targets`; `score(start, stop)` are these users' scores of all items, to be written over."""
    ranks = torch.empty(len(targets_n), dtype=torch.int64, device=targets_n.device)
    for start in range(0, len(targets_n), block):
        scores = score(start, min(start + block, len(targets_n)))
        target = scores.gather(1, targets_n[start : start + block, None])
        if masked is not None:
            where, what = masked(start, start + len(scores))
            scores[where, what] = -torch.inf
            scores.scatter_(1, targets_n[start : start + block, None], target)
        # in place and summed as floats: exact up to 2^24 items, and one pass of memory less
        ranks[start : start + block] = scores.ge_(target).sum(dim=1).long()
    found = ranks.cpu().numpy()
    if len(found) and found.min() < 1:
        place = int(found.argmin())
        user = place if users_n is None else int(users_n[place])
        raise TeacherError(
            f"the model's score of user {user} is not a number; "
            "train again with a smaller learning rate.",
            code="model.not_finite",
        )
    return found


@torch.inference_mode()
def rank_histories(
    encode: Encode,
    items_VD: Tensor,
    dataset: Dataset,
    held_out: tuple[Ints, Ints],
    *,
    mask_history: bool = False,
    bias_V: Tensor | None = None,
) -> NDArray[np.int64]:
    """Ranks of the held-out targets for a model that turns packed histories into vectors.

    Args:
        encode: Packed of B histories to [B, D].
        held_out: (users, ends) as `dataset.held_out` gives them.
        mask_history: the other protocol: items of the whole history, however long, are not ranked.
    """
    users, ends, order = _by_length(dataset, held_out)
    device = items_VD.device
    vectors = [
        encode(_packed(dataset, users[s : s + _ENCODE], ends[s : s + _ENCODE], device))
        for s in range(0, len(users), _ENCODE)
    ]
    if not vectors:
        return np.empty(0, np.int64)
    ranks = np.empty(len(users), np.int64)
    ranks[order] = ranks_of_targets(
        torch.cat(vectors),
        items_VD,
        _targets(dataset, users, ends, device),
        bias_V=bias_V,
        masked=_histories(dataset, users, ends, device) if mask_history else None,
        users_n=users,
    )
    return ranks


@torch.inference_mode()
def rank_student(
    model: AnyStudent,
    dataset: Dataset,
    held_out: tuple[Ints, Ints],
    *,
    mask_history: bool = False,
    device: torch.device | str = "cpu",
) -> NDArray[np.int64]:
    """Ranks of the held-out targets, whichever way the student scores; as :func:`rank_histories`."""
    if isinstance(model, Student):
        return rank_histories(
            model.encode, model.item_table(), dataset, held_out, mask_history=mask_history
        )
    users, ends, order = _by_length(dataset, held_out)

    def score(start: int, stop: int) -> Tensor:
        return model.logits(_packed(dataset, users[start:stop], ends[start:stop], device)).clone()

    ranks = np.empty(len(users), np.int64)
    ranks[order] = _ranks(
        score,
        _block(dataset.num_items),
        _targets(dataset, users, ends, device),
        _histories(dataset, users, ends, device) if mask_history else None,
        users,
    )
    return ranks


def _by_length(
    dataset: Dataset, held_out: tuple[Ints, Ints]
) -> tuple[Ints, Ints, NDArray[np.int64]]:
    """(users, ends, where they stood), like lengths together: fewer and fuller rectangles."""
    users, ends = held_out
    order = np.argsort(np.minimum(ends, dataset.max_length), kind="stable")
    return users[order], ends[order], order


def _packed(dataset: Dataset, users: Ints, ends: Ints, device: torch.device | str) -> Packed:
    return Packed.of(*dataset.histories(users, ends), device, users=users)


def _targets(dataset: Dataset, users: Ints, ends: Ints, device: torch.device | str) -> Tensor:
    return torch.from_numpy(dataset.targets(users, ends).astype(np.int64)).to(device)


def _histories(
    dataset: Dataset, users: Ints, ends: Ints, device: torch.device | str
) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    """What may not be recommended to users start..stop: (row within the block, item) of their whole histories."""

    def masked(start: int, stop: int) -> tuple[Tensor, Tensor]:
        whole = [
            dataset.sequence(u)[:e]
            for u, e in zip(users[start:stop], ends[start:stop], strict=True)
        ]
        rows = np.repeat(np.arange(stop - start), [len(one) for one in whole])
        items = np.concatenate(whole).astype(np.int64)
        return torch.from_numpy(rows).to(device), torch.from_numpy(items).to(device)

    return masked
