"""Ranking all items: ties, masks, blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cache.errors import TeacherError
from encoder.packed import Packed
from pipeline import evaluate
from pipeline.evaluate import rank_histories, rank_student, ranks_of_targets
from tests.fakes import tiny_dataset


def test_ties_count_against_the_model() -> None:
    users, items = torch.ones(2, 1), torch.tensor([[1.0], [2.0], [2.0], [0.0]])
    ranks = ranks_of_targets(users, items, torch.tensor([1, 0]))
    assert ranks.tolist() == [2, 3]


@given(st.integers(0, 2**31), st.integers(1, 60))
def test_blocks_do_not_change_ranks(seed: int, entries: int) -> None:
    g = torch.Generator().manual_seed(seed)
    users, items = torch.randn(9, 3, generator=g), torch.randn(7, 3, generator=g)
    bias, targets = torch.randn(7, generator=g), torch.randint(7, (9,), generator=g)
    scores = users @ items.T + bias
    by_hand = [int((row >= row[t]).sum()) for row, t in zip(scores, targets, strict=True)]
    before = evaluate._BLOCK_ENTRIES
    evaluate._BLOCK_ENTRIES = entries
    try:
        assert ranks_of_targets(users, items, targets, bias_V=bias).tolist() == by_hand
    finally:
        evaluate._BLOCK_ENTRIES = before


def test_a_score_that_is_no_number_is_refused() -> None:
    users = torch.tensor([[1.0], [float("nan")]])
    with pytest.raises(TeacherError, match="user 1 is not a number"):
        ranks_of_targets(users, torch.ones(3, 1), torch.tensor([0, 0]))


class Broken(torch.nn.Module):
    """Scores that are numbers for everybody but one user."""

    def __init__(self, user: int, items: int) -> None:
        super().__init__()
        self.user, self.items = user, items

    def encode(self, packed: Packed) -> Tensor:
        assert packed.users is not None
        return torch.where(packed.users == self.user, torch.nan, 1.0)[:, None]

    def item_table(self) -> Tensor:
        return torch.ones(self.items, 1)


class BrokenScorer(torch.nn.Module):
    """The same, that scores by itself."""

    def __init__(self, user: int, items: int) -> None:
        super().__init__()
        self.by_vectors = Broken(user, items)

    def logits(self, packed: Packed, items_C: Tensor | None = None) -> Tensor:
        return self.by_vectors.encode(packed) @ self.by_vectors.item_table().T


@pytest.mark.parametrize("kind", [Broken, BrokenScorer])
def test_the_user_whose_score_is_no_number_is_named_by_row(kind: Any, tmp_path: Path) -> None:
    """Users are ranked in the order of their lengths, which is nobody's business."""
    dataset = tiny_dataset(tmp_path / "d")
    users, ends = dataset.held_out("test")
    places = np.argsort(np.minimum(ends, dataset.max_length), kind="stable")
    (user, *_) = (int(users[at]) for place, at in enumerate(places) if users[at] != place)
    with pytest.raises(TeacherError, match=f"score of user {user} is not a number"):
        rank_student(kind(user, dataset.num_items), dataset, (users, ends))


def test_masking_takes_the_history_out_but_never_the_target(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "d")
    table = torch.randn(dataset.num_items, 4, generator=torch.Generator().manual_seed(0))

    def encode(packed: Packed) -> Tensor:
        return table[packed.items[packed.last]]

    users, ends = dataset.held_out("test")
    plain = rank_histories(encode, table, dataset, (users, ends))
    masked = rank_histories(encode, table, dataset, (users, ends), mask_history=True)
    for place, (user, end) in enumerate(zip(users, ends, strict=True)):
        history, target = dataset.sequence(user)[:end], dataset.sequence(user)[end]
        scores = table @ table[history[-1]]
        above = np.flatnonzero((scores >= scores[target]).numpy())
        assert plain[place] == len(above)
        assert masked[place] == len(set(above.tolist()) - (set(history.tolist()) - {target}))
