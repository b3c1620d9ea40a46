"""FM and DeepFM: the numbers of sums over pairs of fields and of a perceptron, pair by pair; what a batch of pairs costs."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cache.store import Store
from encoder.packed import Packed
from student import deepfm
from student.deepfm import DeepFM, DeepFMConfig
from student.fields import codes
from student.fm import FM, FMConfig
from student.pairs import Rows, pairs_loss
from tests.student.small import first_batch, made, packed, shop

HISTORIES = [[3], [1, 2, 2, 5], [0, 23], [7, 8, 9, 10, 11, 12]]
USERS = [4, 0, 39, 4]

Weights: TypeAlias = dict[str, Tensor]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return shop(tmp_path_factory.mktemp("shop") / "store")


def attributes(item: int) -> tuple[str, str]:
    """Brand and category as `shop` gives them."""
    brand = "" if item % 5 == 0 else f"brand {item % 3}"
    return brand, "" if item % 7 == 0 else f"category {item % 4}"


def rows(w: Weights, at: str, user: int, history: list[int], item: int) -> list[Tensor]:
    """The five fields' vectors, each with its weight behind it, in the order user, history, item, brand, category."""
    brands = sorted({attributes(one)[0] for one in range(24)})
    categories = sorted({attributes(one)[1] for one in range(24)})
    brand, category = attributes(item)
    # one table: 40 users, 24 items in histories, 24 items, the brands, the categories
    table = w[f"{at}fields.table.weight"]
    return [
        table[user],
        sum(table[40 + one] for one in history) / len(history),
        table[64 + item],
        table[88 + brands.index(brand)],
        table[88 + len(brands) + categories.index(category)],
    ]


def plain_fm(w: Weights, of: str, user: int, history: list[int], item: int) -> Tensor:
    """A bias, a weight for each field, a dot product for each of the ten pairs of fields."""
    fields = rows(w, of, user, history, item)
    score = w[f"{of}bias"][0] + sum(one[-1] for one in fields)
    for one, other in itertools.combinations(fields, 2):
        score = score + one[:-1] @ other[:-1]
    return score


def plain_deepfm(w: Weights, depth: int, user: int, history: list[int], item: int) -> Tensor:
    """The same plus a perceptron over the five vectors laid end to end."""
    x = torch.cat([one[:-1] for one in rows(w, "fm.", user, history, item)])
    names = ["first", *(f"layer.{number}" for number in range(depth - 1))]
    for name in names:
        x = (w[f"{name}.weight"] @ x + w[f"{name}.bias"]).clamp(min=0)
    deep = w["predict.weight"][0] @ x + w["predict.bias"][0]
    return plain_fm(w, "fm.", user, history, item) + deep


def plain(model: Any, user: int, history: list[int], item: int) -> Tensor:
    if isinstance(model, FM):
        return plain_fm(model.state_dict(), "", user, history, item)
    return plain_deepfm(model.state_dict(), model.config.depth, user, history, item)


def scores(model: Any, histories: list[list[int]], users: list[int]) -> Tensor:
    return scores_of_all(model, packed(histories, users))


def scores_of_all(model: Any, asked: Packed) -> Tensor:
    return (
        model.encode(asked) @ model.item_table().T if isinstance(model, FM) else model.logits(asked)
    )


both = pytest.mark.parametrize(
    ("name", "sizes"),
    [("fm", {}), ("deepfm", {}), ("deepfm", {"depth": 1}), ("deepfm", {"depth": 4})],
)


@both
@torch.no_grad()
def test_scores_are_sums_over_fields_and_pairs(store: Store, name: str, sizes: dict) -> None:
    model = made(name, store.dataset, **sizes)
    got = scores(model, HISTORIES, USERS)
    for row, user, history in zip(got, USERS, HISTORIES, strict=True):
        expected = torch.stack([plain(model, user, history, item) for item in range(24)])
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-5)


@both
def test_their_loss_is_pointwise_and_their_logits_come_before_the_sigmoid(
    store: Store, monkeypatch: pytest.MonkeyPatch, name: str, sizes: dict
) -> None:
    model = made(name, store.dataset, spread=0.1, **sizes)
    batch = first_batch(store)
    negatives = torch.arange(batch.slots) % 24
    draw = model.negatives if isinstance(model, FM) else model.fm.negatives
    monkeypatch.setattr(draw, "forward", lambda users: negatives)
    with torch.no_grad():
        base, logits = model.own_loss(batch, logits=True)
    assert model.own_loss(batch, logits=False)[1] is None
    items, last = batch.packed.items.tolist(), batch.packed.last.tolist()
    total, rows = 0.0, []
    for slot, user in enumerate(batch.packed.users.tolist()):
        history = items[0 if slot == 0 else last[slot - 1] + 1 : last[slot] + 1]
        for item, label in ((int(batch.rows_T[slot]), 1), (int(negatives[slot]), 0)):
            chance = 1 / (1 + math.exp(-plain(model, user, history, item).item()))
            total -= math.log(chance if label else 1 - chance)
        rows.append([plain(model, user, history, c).item() for c in batch.items_C.tolist()])
    assert base.item() == pytest.approx(total / (2 * batch.slots), rel=1e-4)
    torch.testing.assert_close(logits, torch.tensor(rows), atol=1e-5, rtol=1e-5)


def known(depth: int) -> tuple[Rows, list[Tensor]]:
    """(rows, [table, bias, weight, bias, ...]): 4 users, histories of 1, 3, 2, 1 of 9 items, vectors of 3, layers of 5."""
    torch.manual_seed(0)
    rows = Rows(
        users_T=torch.tensor([0, 1, 1, 3]),
        history_N=torch.tensor([4, 4, 5, 6, 12, 5, 12]),
        lengths_T=torch.tensor([1, 3, 2, 1]),
        items_PF=torch.randint(13, 20, (8, 3)),
    )
    shapes = [(20, 4), (1,)]
    for n, m in [(5, 15), *[(5, 5)] * (depth - 1), (1, 5)] if depth else []:
        shapes += [(n, m), (n,)]
    return rows, [torch.randn(shape, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize(("dropout", "tile"), [(0.0, 8), (0.0, 3), (0.5, 8), (0.5, 3)])
def test_the_way_back_that_is_written_out_is_that_of_finite_differences(
    depth: int, dropout: float, tile: int
) -> None:
    rows, numbers = known(depth)

    def loss(table: Tensor, bias: Tensor, *flat: Tensor) -> Tensor:
        torch.manual_seed(1)  # the same units are dropped each time
        return pairs_loss(table, bias, rows, flat, dropout=dropout, tile=tile) * 3

    assert torch.autograd.gradcheck(loss, [one.requires_grad_() for one in numbers])


@torch.no_grad()
def test_units_of_a_pair_are_dropped_before_each_layer_and_made_up_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Five fields of one number, all ones; each unit of the layer is their mean, so the score is the share that was kept."""
    count = 20_000
    found: list[Tensor] = []
    monkeypatch.setattr(F, "softplus", lambda scores: found.append(scores) or scores)
    everyone = torch.zeros(count, dtype=torch.int64)
    rows = Rows(
        users_T=everyone,
        history_N=everyone,
        lengths_T=torch.ones_like(everyone),
        items_PF=everyone.repeat(2)[:, None].expand(-1, 3),
    )
    table = torch.tensor([[1.0, -2.0]])  # the ten pairs' products are undone by five weights of -2
    flat = [torch.full((4, 5), 0.2), torch.zeros(4), torch.full((1, 4), 0.25), torch.zeros(1)]
    for dropout in (0.0, 0.2):
        pairs_loss(table, torch.zeros(1), rows, flat, dropout=dropout)
    whole, some = (torch.cat([-scores[:count], scores[count:]]) for scores in found)
    torch.testing.assert_close(whole, torch.ones(2 * count))
    # k of 5 numbers are kept, at 205/256 each, and count 256/205
    values = [0.2 * 256 / 205 * kept for kept in range(6)]
    assert sorted({round(value, 3) for value in some.tolist()}) == pytest.approx(values, abs=1e-3)
    # the standard deviation of the mean of 40,000 is sqrt(51 / 205 / 5 / 40000) = 0.0011
    assert some.mean().item() == pytest.approx(1, abs=0.005)
    assert not torch.equal(some[:count], some[count:])  # for each of the two items anew


@both
def test_the_loss_teaches_what_the_same_loss_by_torchs_own_way_back_does(
    store: Store, monkeypatch: pytest.MonkeyPatch, name: str, sizes: dict
) -> None:
    model = made(name, store.dataset, spread=0.1, **sizes).double()
    batch = first_batch(store)
    negatives = torch.arange(batch.slots) % 24
    draw = model.negatives if isinstance(model, FM) else model.fm.negatives
    monkeypatch.setattr(draw, "forward", lambda users: negatives)
    everything = scores_of_all(model, batch.packed)
    wanted, other = (everything.gather(1, rows[:, None]) for rows in (batch.rows_T, negatives))
    expected = (F.softplus(-wanted) + F.softplus(other)).mean() / 2
    base, _ = model.own_loss(batch, logits=False)
    assert base.item() == pytest.approx(expected.item(), rel=1e-12)
    grads = [torch.autograd.grad(one, list(model.parameters())) for one in (base, expected)]
    for one, way_of_torch in zip(*grads, strict=True):
        torch.testing.assert_close(one, way_of_torch)


def test_attributes_are_told_apart_and_missing_ones_are_one_value(store: Store) -> None:
    found = codes(store.dataset).tolist()
    for one, other in itertools.combinations(range(24), 2):
        for place in (0, 1):
            equal = attributes(one)[place] == attributes(other)[place]
            assert (found[one][place] == found[other][place]) == equal


@pytest.mark.parametrize("held", [0, 24 * 1536, 1 << 30], ids=["none", "a-history", "all"])
@pytest.mark.parametrize("chunk", [1, 7, 24, 50])
def test_neither_tiles_nor_what_is_held_of_them_change_scores_or_gradients(
    store: Store, monkeypatch: pytest.MonkeyPatch, chunk: int, held: int
) -> None:
    # 24 items; a pair's layers are 3 x 128 floats, 1,536 bytes
    model = made("deepfm", store.dataset, spread=0.1)
    asked = packed(HISTORIES, USERS)
    weights = torch.randn(4, 24, generator=torch.Generator().manual_seed(0))

    def scores_and_gradients() -> list[Tensor]:
        model.zero_grad()
        found = model.logits(asked)
        (found * weights).sum().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        with torch.no_grad():
            return [found.detach(), model.logits(asked), *gradients]

    whole = scores_and_gradients()
    monkeypatch.setattr(deepfm, "_CHUNK", chunk)
    monkeypatch.setattr(deepfm, "_TILE", chunk)
    monkeypatch.setattr(deepfm, "_HELD_BYTES", held)
    for one, other in zip(scores_and_gradients(), whole, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("held", [0, 1 << 30])
def test_what_is_recomputed_on_the_way_back_drops_the_same_units(
    store: Store, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    # with dropout, a gradient is right only if the second pass draws what the first drew
    monkeypatch.setattr(deepfm, "_HELD_BYTES", held)
    model = made("deepfm", store.dataset, spread=0.1, dropout=0.5).double().train()
    asked, weight = packed(HISTORIES, USERS), model.predict.weight

    def loss() -> Tensor:
        torch.manual_seed(0)
        return model.logits(asked).square().sum()

    loss().backward()
    inner = model.layer[0].weight
    direction = torch.randn_like(inner)
    slope = (inner.grad * direction).sum().item()
    with torch.no_grad():
        before, values = inner.clone(), []
        for step in (1e-6, -1e-6):
            inner.copy_(before + step * direction)
            with torch.enable_grad():
                values.append(loss().item())
    assert weight.grad is not None
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope, rel=1e-4)


_PAIRS = """
import resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from student.deepfm import DeepFM, DeepFMConfig
from tests.student.small import packed, shop

model = DeepFM(DeepFMConfig(), shop(Path(sys.argv[1]), items=512).dataset)
asked = packed([[n] for n in range(512)], [n % 40 for n in range(512)])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
logits = model.logits(asked, torch.arange(512))
assert logits.shape == (512, 512)
logits.square().mean().backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""


def test_512_x_512_pairs_and_their_gradient_take_less_than_2_gib(tmp_path: Path) -> None:
    # a process of its own, whose peak it is: 262,144 pairs x 128 x 4 bytes = 134 MB a tensor, and each of three
    # layers holds one for the way back
    done = subprocess.run(
        [sys.executable, "-c", _PAIRS, str(tmp_path / "store")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.8  # GiB; 0.4 measured, 1.2 if all pairs pass at once


def test_the_defaults_are_those_of_recbole(store: Store) -> None:
    # github.com/RUCAIBox/RecBole, recbole/properties/model/FM.yaml and DeepFM.yaml
    assert FMConfig().hidden == 10
    config = DeepFMConfig()
    assert [config.hidden, config.inner, config.depth, config.dropout] == [10, 128, 3, 0.2]
    # 40 users, 24 items twice (as items, in histories), 4 brands, 5 categories, a weight beside each vector, a bias
    values = 40 + 2 * 24 + 4 + 5
    fm = FM(FMConfig(), store.dataset)
    assert sum(p.numel() for p in fm.parameters()) == values * 11 + 1
    deep = 50 * 128 + 128 + 2 * (128 * 128 + 128) + 128 + 1
    model = DeepFM(config, store.dataset)
    assert sum(p.numel() for p in model.parameters()) == values * 11 + 1 + deep


def test_without_users_they_say_what_is_missing(store: Store) -> None:
    for name in ("fm", "deepfm"):
        model = made(name, store.dataset)
        ask = model.encode if name == "fm" else model.logits
        with pytest.raises(ValueError, match=r"expected in `packed\.users`, found none"):
            ask(packed([[1]]))
