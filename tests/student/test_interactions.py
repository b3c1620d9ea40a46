"""Who met what; negatives that a user never met, uniform, drawn from the step's own generator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cache.dataset import Dataset
from student.interactions import Negatives, training_pairs
from tests.student.small import shop


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return shop(tmp_path_factory.mktemp("shop") / "store").dataset


def met(dataset: Dataset) -> set[tuple[int, int]]:
    """By hand: all but the last two of each user's items."""
    return {
        (user, int(item))
        for user in range(dataset.num_users)
        for item in dataset.sequence(user)[: dataset.train_lengths[user]]
    }


def test_pairs_are_those_of_the_training_parts_each_once(dataset: Dataset) -> None:
    users, items = training_pairs(dataset)
    assert list(zip(users.tolist(), items.tolist(), strict=True)) == sorted(met(dataset))
    # what is held out is not there unless it was met before
    held = {(int(u), int(dataset.sequence(u)[-1])) for u in dataset.held_out("test")[0]}
    assert held - met(dataset)


def test_a_negative_was_never_met_and_every_other_item_comes_up(dataset: Dataset) -> None:
    draw, known = Negatives(dataset), met(dataset)
    torch.manual_seed(0)
    users = torch.arange(dataset.num_users).repeat(300)
    counts = np.zeros((dataset.num_users, dataset.num_items), int)
    np.add.at(counts, (users.numpy(), draw(users).numpy()), 1)
    for user in range(dataset.num_users):
        unmet = [item for item in range(dataset.num_items) if (user, item) not in known]
        assert counts[user].sum() == counts[user, unmet].sum() == 300
        # at most 24 items: 12.5 or more expected of each, a standard deviation of 3.5
        assert counts[user, unmet].min() >= 1
        assert counts[user, unmet].max() < 300 / len(unmet) + 6 * (300 / len(unmet)) ** 0.5


def test_draws_follow_the_generator(dataset: Dataset) -> None:
    draw, users = Negatives(dataset), torch.arange(dataset.num_users)
    torch.manual_seed(5)
    first, second = draw(users), draw(users)
    torch.manual_seed(5)
    assert torch.equal(draw(users), first)
    assert not torch.equal(first, second)


def test_a_user_who_has_met_everything_gets_something(dataset: Dataset, tmp_path: Path) -> None:
    draw = Negatives(dataset)
    draw.keys = torch.arange(dataset.num_users * dataset.num_items)
    assert 0 <= int(draw(torch.zeros(1, dtype=torch.int64))) < dataset.num_items
