"""LightGCN: the numbers of a loop over neighbours, its loss by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cache.store import Store
from student.lightgcn import LightGCN, LightGCNConfig
from tests.student.small import first_batch, made, packed, shop
from tests.student.test_interactions import met


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return shop(tmp_path_factory.mktemp("shop") / "store")


def smoothed(model: LightGCN, pairs: set[tuple[int, int]]) -> tuple[list[Tensor], list[Tensor]]:
    """Mean over layers; in each, a vector is the sum of its neighbours' over sqrt(its degree * theirs). Plain loops."""
    users = list(model.state_dict()["user_embedding.weight"])
    items = list(model.state_dict()["item_embedding.weight"])
    of_user = [[i for i in range(len(items)) if (u, i) in pairs] for u in range(len(users))]
    of_item = [[u for u in range(len(users)) if (u, i) in pairs] for i in range(len(items))]
    layers = [(users, items)]
    for _ in range(model.config.layers):
        before_users, before_items = layers[-1]
        zero = torch.zeros_like(users[0])
        layers.append(
            (
                [
                    sum(
                        (before_items[i] / math.sqrt(len(mine) * len(of_item[i])) for i in mine),
                        zero,
                    )
                    for mine in of_user
                ],
                [
                    sum(
                        (before_users[u] / math.sqrt(len(mine) * len(of_user[u])) for u in mine),
                        zero,
                    )
                    for mine in of_item
                ],
            )
        )
    return tuple(
        [torch.stack([layer[side][n] for layer in layers]).mean(0) for n in range(count)]
        for side, count in ((0, len(users)), (1, len(items)))
    )


@pytest.mark.parametrize("layers", [1, 2, 3])
@torch.no_grad()
def test_scores_are_those_of_a_loop_over_neighbours(store: Store, layers: int) -> None:
    model = made("lightgcn", store.dataset, layers=layers)
    users, items = smoothed(model, met(store.dataset))
    asked = [7, 0, 7, 39]
    got = model.encode(packed([[1], [2, 3], [4], [5]], asked)) @ model.item_table().T
    expected = torch.stack([torch.stack([users[u] @ item for item in items]) for u in asked])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(got[0], got[2])  # one vector a user, whatever the history


def test_its_loss_is_bpr_and_the_norms_of_what_it_touches(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made("lightgcn", store.dataset, reg_weight=0.3)
    batch = first_batch(store)
    negatives = torch.arange(batch.slots) % 24
    monkeypatch.setattr(model.negatives, "forward", lambda users: negatives)
    base, logits = model.own_loss(batch, logits=True)
    users, items = smoothed(model, met(store.dataset))
    w = model.state_dict()
    total, rows = 0.0, []
    for user, row, other in zip(
        batch.packed.users.tolist(), batch.rows_T.tolist(), negatives.tolist(), strict=True
    ):
        gap = (users[user] @ items[row] - users[user] @ items[other]).item()
        total += -math.log(1 / (1 + math.exp(-gap)))
        for name, index in (("user", user), ("item", row), ("item", other)):
            total += 0.3 * (w[f"{name}_embedding.weight"][index] ** 2).sum().item() / 2
        rows.append(torch.stack([users[user] @ items[c] for c in batch.items_C.tolist()]))
    assert base.item() == pytest.approx(total / batch.slots, rel=1e-5)
    torch.testing.assert_close(logits, torch.stack(rows), atol=1e-5, rtol=1e-5)


def test_gradients_pass_the_graph_both_ways(store: Store) -> None:
    # numerically: a step along the gradient moves the loss as the gradient says
    model = made("lightgcn", store.dataset).double()
    batch = first_batch(store)

    def loss() -> Tensor:
        torch.manual_seed(0)
        return model.own_loss(batch, logits=False)[0]

    loss().backward()
    for weight in (model.user_embedding.weight, model.item_embedding.weight):
        assert weight.grad is not None
        direction = torch.randn_like(weight)
        with torch.no_grad():
            before, slope = weight.clone(), (weight.grad * direction).sum().item()
            values = []
            for step in (1e-5, -1e-5):
                weight.copy_(before + step * direction)
                values.append(loss().item())
            weight.copy_(before)
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(slope, rel=1e-5)


def test_the_defaults_are_those_of_recbole_and_the_start_too(store: Store) -> None:
    # github.com/RUCAIBox/RecBole, recbole/properties/model/LightGCN.yaml; xavier, uniform: sqrt(6 / (rows + width))
    config = LightGCNConfig()
    assert [config.hidden, config.layers, config.reg_weight] == [64, 2, 1e-5]
    model = LightGCN(config, store.dataset)
    assert sum(p.numel() for p in model.parameters()) == (40 + 24) * 64
    bounds = [(6 / (rows + 64)) ** 0.5 for rows in (40, 24)]
    for weight, bound in zip(model.parameters(), bounds, strict=True):
        assert 0.98 * bound < weight.abs().max().item() <= bound


def test_without_users_it_says_what_is_missing(store: Store) -> None:
    with pytest.raises(ValueError, match=r"expected in `packed\.users`, found none"):
        made("lightgcn", store.dataset).encode(packed([[1]]))
