"""BERT4Rec: the numbers of a plain one written from its public description; what is masked, what is learnt from it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from encoder.packed import Packed
from student.bert4rec import BERT4Rec, BERT4RecConfig, cloze_places
from tests.student.small import first_batch, made, packed, shop

ITEMS = 20

histories_of = st.lists(
    st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=40), min_size=1, max_size=6
)


def model(*, spread: float = 0.3, **sizes: float) -> BERT4Rec:
    torch.manual_seed(0)
    config = BERT4RecConfig(**{"hidden": 12, "heads": 2, "inner": 20, **sizes})
    new = BERT4Rec(config, ITEMS).eval()
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(torch.randn_like(parameter) * spread)
    return new


def plain_bert4rec(given: BERT4Rec, tokens: list[int]) -> Tensor:
    """[places, V] logits of one sequence of items and masks; every place looks at every place.

    Blocks as BERT has them (attention, residual and norm, two layers with gelu, residual and norm), then a layer with gelu
    and a norm, and the product with the item vectors plus a bias for each item.
    """
    w, config = given.state_dict(), given.config

    def norm(x: Tensor, name: str) -> Tensor:
        gap = x - x.mean(dim=-1, keepdim=True)
        spread = ((gap**2).mean(dim=-1, keepdim=True) + 1e-12).sqrt()
        return gap / spread * w[f"{name}.weight"] + w[f"{name}.bias"]

    def dense(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def gelu(x: Tensor) -> Tensor:
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    table = w["item_embedding.weight"]
    x = norm(table[tokens] + w["position_embedding.weight"][: len(tokens)], "LayerNorm")
    size = config.hidden // config.heads
    for number in range(config.layers):
        at = f"trm_encoder.layer.{number}.multi_head_attention"
        parts = [dense(x, f"{at}.{part}") for part in ("query", "key", "value")]
        mixed = []
        for head in range(config.heads):
            query, key, value = (part[:, head * size : (head + 1) * size] for part in parts)
            mixed.append(torch.softmax(query @ key.T / math.sqrt(size), dim=-1) @ value)
        x = norm(dense(torch.cat(mixed, dim=-1), f"{at}.dense") + x, f"{at}.LayerNorm")
        at = f"trm_encoder.layer.{number}.feed_forward"
        x = norm(dense(gelu(dense(x, f"{at}.dense_1")), f"{at}.dense_2") + x, f"{at}.LayerNorm")
    x = norm(gelu(dense(x, "output_ffn")), "output_ln")
    return x @ table[:ITEMS].T + w["output_bias"]


@settings(max_examples=20)
@given(histories_of, st.sampled_from([1, 2, 3]), st.sampled_from([1, 2]))
@torch.no_grad()
def test_scores_are_those_of_the_mask_after_the_history(
    histories: list[list[int]], heads: int, layers: int
) -> None:
    new = model(heads=heads, layers=layers)
    got = new.encode(packed(histories)) @ new.item_table().T
    for scores, history in zip(got, histories, strict=True):
        expected = plain_bert4rec(new, [*history, ITEMS])[-1]
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_at_the_default_sizes_and_the_longest_history_too() -> None:
    new = model(hidden=64, inner=256, spread=0.05)
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, ITEMS, length).tolist() for length in (50, 1, 15, 16, 31, 32)]
    got = new.encode(packed(histories)) @ new.item_table().T
    expected = torch.stack([plain_bert4rec(new, [*one, ITEMS])[-1] for one in histories])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_the_defaults_are_those_of_recbole() -> None:
    # github.com/RUCAIBox/RecBole, recbole/properties/model/BERT4Rec.yaml of 1.2.0
    config = BERT4RecConfig()
    assert [config.hidden, config.inner, config.layers, config.heads] == [64, 256, 2, 2]
    assert [config.dropout, config.mask_ratio, config.ft_ratio] == [0.2, 0.2, 0.5]


def test_the_number_of_parameters_by_hand() -> None:
    new = BERT4Rec(BERT4RecConfig(), 100)
    # 101 item rows with the mask, 51 places, a norm; two blocks as in SASRec; a layer, a norm, a bias an item
    expected = 101 * 64 + 51 * 64 + 128 + 2 * 49984 + 64 * 64 + 64 + 128 + 100
    assert sum(p.numel() for p in new.parameters()) == expected


# ------------------------------------------------------------------------------------ the Cloze loss


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Any:
    store = shop(tmp_path_factory.mktemp("shop") / "store", items=ITEMS)
    return store.dataset, first_batch(store)


def sequences(batch: Any) -> list[list[int]]:
    """Histories with their targets."""
    items, last = batch.packed.items.tolist(), batch.packed.last.tolist()
    starts = [0, *(place + 1 for place in last[:-1])]
    histories = [items[a : b + 1] for a, b in zip(starts, last, strict=True)]
    return [[*h, int(t)] for h, t in zip(histories, batch.rows_T, strict=True)]


@torch.no_grad()
def test_a_batch_that_masks_the_target_alone_is_the_task_itself(batch: Any) -> None:
    dataset, asked = batch
    new = made("bert4rec", dataset, ft_ratio=1.0)
    base, logits = new.own_loss(asked, logits=True)
    rows = [plain_bert4rec(new, [*one[:-1], ITEMS])[-1] for one in sequences(asked)]
    losses = [-row.log_softmax(0)[one[-1]] for row, one in zip(rows, sequences(asked), strict=True)]
    assert base.item() == pytest.approx(sum(losses).item() / len(losses), rel=1e-5)
    torch.testing.assert_close(logits, torch.stack(rows)[:, asked.items_C], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_with_everything_masked_the_loss_is_a_mean_over_all_places(batch: Any) -> None:
    dataset, asked = batch
    new = made("bert4rec", dataset, ft_ratio=0.0, mask_ratio=1.0)
    base, logits = new.own_loss(asked, logits=True)
    losses: list[float] = []
    for one in sequences(asked):
        logp = plain_bert4rec(new, [ITEMS] * len(one)).log_softmax(-1)
        losses += [-logp[place, item].item() for place, item in enumerate(one)]
    assert base.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    # the teachers are still answered at the place after the whole, unmasked history
    rows = [plain_bert4rec(new, [*one[:-1], ITEMS])[-1] for one in sequences(asked)]
    torch.testing.assert_close(logits, torch.stack(rows)[:, asked.items_C], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_masked_items_are_guessed_from_what_is_left(
    batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, asked = batch
    new = made("bert4rec", dataset, ft_ratio=0.0, mask_ratio=0.4)
    seen: list[tuple[list[float], list[int]]] = []

    def spy(draws_N: Tensor, layout: Packed, ratio: float) -> Tensor:
        places = cloze_places(draws_N, layout, ratio)
        seen.append((draws_N.tolist(), places.tolist()))
        return places

    monkeypatch.setattr("student.bert4rec.cloze_places", spy)
    torch.manual_seed(0)
    base, none = new.own_loss(asked, logits=False)
    assert none is None
    ((draws, places),) = seen
    losses, offset = [], 0
    for one in sequences(asked):
        mine = draws[offset : offset + len(one)]
        hidden = [n for n, draw in enumerate(mine) if draw < 0.4 or draw == min(mine)]
        assert [offset + n for n in hidden] == [p for p in places if 0 <= p - offset < len(one)]
        tokens = [ITEMS if n in hidden else item for n, item in enumerate(one)]
        logp = plain_bert4rec(new, tokens).log_softmax(-1)
        losses += [-logp[n, one[n]].item() for n in hidden]
        offset += len(one)
    assert len(losses) == len(places) < len(draws)
    assert base.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_half_of_the_batches_mask_the_target_alone(batch: Any, tmp_path: Path) -> None:
    dataset, asked = batch
    new = made("bert4rec", dataset)  # in eval mode: only masks move the loss
    losses = []
    with torch.no_grad():
        for seed in range(200):
            torch.manual_seed(seed)
            losses.append(new.own_loss(asked, logits=False)[0].item())
    most = max(set(losses), key=losses.count)
    # 100 expected, standard deviation 7
    assert 65 < losses.count(most) < 135
    assert len(set(losses)) > 50
