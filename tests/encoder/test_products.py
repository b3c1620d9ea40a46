"""Products by oneDNN are torch's own to rounding, forth and back, whatever the strides; who must not see them does not."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from encoder import products
from encoder.products import Linear, filled, linear, product, rowwise, slopes_of_weight, widened

sizes = st.integers(1, 70)
ways = st.tuples(st.booleans(), st.booleans())


def matrix(rows: int, columns: int, *, across: bool = False, seed: int = 0) -> Tensor:
    """Of whole numbers of -8 to 8, whose products are exact; `across`: laid out column after column."""
    noise = torch.Generator().manual_seed(seed)
    shape = (columns, rows) if across else (rows, columns)
    found = torch.randint(-8, 9, shape, generator=noise).float()
    return found.T if across else found


def assert_the_same(
    ours: Callable[..., Tensor],
    theirs: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    slopes: Tensor,
) -> None:
    """Both give the same numbers and the same gradient to each input; theirs is asked in float64."""
    singles = [each.clone().requires_grad_() for each in inputs]
    doubles = [each.double().requires_grad_() for each in inputs]
    found, expected = ours(*singles), theirs(*doubles)
    assert torch.equal(found, expected.float())
    found.backward(slopes)
    expected.backward(slopes.double())
    for mine, its in zip(singles, doubles, strict=True):
        assert mine.grad is not None
        assert its.grad is not None
        assert torch.equal(mine.grad, its.grad.float())


@pytest.fixture
def with_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were there; for what asks no more of it."""
    monkeypatch.setattr(products, "has_onednn", lambda: True)


@pytest.fixture
def without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "has_onednn", lambda: False)


def test_a_product_by_hand() -> None:
    a, b = torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[5.0, 6], [7, 8]])
    assert product(a, b).tolist() == [[19, 22], [43, 50]]
    assert product(a, b, torch.tensor([100.0, 200])).tolist() == [[119, 222], [143, 250]]


@given(sizes, sizes, sizes, ways)
def test_any_strides_give_the_same_product(
    m: int, k: int, n: int, across: tuple[bool, bool]
) -> None:
    a, b = matrix(m, k, across=across[0]), matrix(k, n, across=across[1], seed=1)
    expected = (a.double() @ b.double()).float()
    assert torch.equal(product(a, b), expected)
    bias = matrix(1, n, seed=2)[0]
    assert torch.equal(product(a, b, bias), expected + bias)


def test_matrices_with_gaps_never_reach_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plain kernel, which would take them, is a hundred times as slow."""
    wide = matrix(40, 33)
    expected = (wide[:, :30].double() @ wide.T[:30].double()).float()

    def refused(*_: object) -> None:
        raise AssertionError("oneDNN was asked")

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", refused)
    assert torch.equal(product(wide[:, :30], wide.T[:30]), expected)
    with pytest.raises(AssertionError, match="was asked"):
        product(wide, wide.T)


@pytest.mark.usefixtures("without_onednn")
def test_without_onednn_the_plain_product_stands_in() -> None:
    a, b, bias = matrix(9, 5), matrix(5, 7, seed=1), matrix(1, 7, seed=2)[0]
    assert torch.equal(product(a, b), a @ b)
    assert torch.equal(product(a, b, bias), a @ b + bias)
    assert torch.equal(slopes_of_weight(a, matrix(9, 3, seed=3)), a.T @ matrix(9, 3, seed=3))


def test_doubles_stay_doubles() -> None:
    a, b = matrix(3, 4).double() / 3, matrix(4, 5).double() / 7
    assert torch.equal(product(a, b), a @ b)


def test_an_empty_product_is_nothing() -> None:
    assert product(torch.empty(0, 4), torch.empty(4, 3)).shape == (0, 3)
    assert torch.equal(product(torch.empty(2, 0), torch.empty(0, 3)), torch.zeros(2, 3))


@pytest.mark.parametrize("widths", [(3, 5), (5, 3), (4, 4)])
@pytest.mark.parametrize("rows", [0, 1, 1024, 2500])  # summed over 1,024 rows at a time
def test_a_weights_slopes_are_summed_over_all_rows(rows: int, widths: tuple[int, int]) -> None:
    slopes, x = matrix(rows, widths[0]), matrix(rows, widths[1], seed=1)
    found = slopes_of_weight(slopes, x)
    assert torch.equal(found, (slopes.double().T @ x.double()).float())
    assert found.is_contiguous()


@given(st.integers(1, 300), sizes, sizes)
def test_a_linear_layer_and_its_gradients_are_torchs(n: int, i: int, o: int) -> None:
    x, weight, bias = matrix(n, i), matrix(o, i, seed=1), matrix(1, o, seed=2)[0]
    given = matrix(n, o, seed=3)
    assert_the_same(linear, F.linear, (x, weight, bias), given)


def test_leading_dimensions_stay() -> None:
    layer = Linear(3, 2)
    x = torch.randn(4, 5, 3)
    assert layer(x).shape == (4, 5, 2)
    torch.testing.assert_close(layer(x)[2], layer(x[2]))


def test_weights_have_the_names_that_they_have_in_torch() -> None:
    assert Linear(3, 2).state_dict().keys() == nn.Linear(3, 2).state_dict().keys()


@pytest.mark.parametrize("frozen", ["x", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient_and_the_others_theirs(frozen: str) -> None:
    parts = {"x": matrix(4, 3), "weight": matrix(2, 3, seed=1), "bias": matrix(1, 2, seed=2)[0]}
    for name, part in parts.items():
        part.requires_grad_(name != frozen)
    linear(*parts.values()).sum().backward()
    expected = {"bias": [4, 4], "weight": [parts["x"].sum(0).tolist()] * 2}
    expected["x"] = [parts["weight"].sum(0).tolist()] * 4
    for name, part in parts.items():
        assert (None if part.grad is None else part.grad.tolist()) == (
            None if name == frozen else expected[name]
        )


@pytest.mark.usefixtures("with_onednn")
def test_batches_of_any_size_are_served_by_a_few_kernels() -> None:
    def number(rows: int) -> int:
        return len(filled(torch.empty(rows, 1)))

    for most in (64, 1024, 4096):
        numbers = {number(rows) for rows in range(most // 2 + 1, most + 1)}
        assert len(numbers) <= 16
        assert max(numbers) == most
    assert all(rows <= number(rows) <= max(rows * 9 / 8, rows + 31) for rows in range(1, 5000))


@pytest.mark.usefixtures("with_onednn")
def test_rows_are_filled_by_zeros_where_onednn_multiplies_and_nowhere_else() -> None:
    x = matrix(33, 3)
    assert torch.equal(filled(x), torch.cat([x, torch.zeros(31, 3)]))
    for other in (x.double(), torch.empty(0, 3)):
        assert filled(other) is other


@pytest.mark.usefixtures("without_onednn")
def test_without_onednn_rows_stay_as_they_are() -> None:
    x = matrix(33, 3)
    assert filled(x) is x
    assert rowwise(lambda some: some, x) is x


@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), sizes, sizes)
def test_what_is_done_row_by_row_hangs_on_no_row_that_was_filled_up(
    leading: list[int], i: int, o: int
) -> None:
    """One added to a row of zeros is no row of zeros: it must neither come out nor reach a gradient."""
    x = matrix(math.prod(leading), i).view(*leading, i)
    weight, given = matrix(o, i, seed=1), matrix(math.prod(leading), o, seed=2).view(*leading, o)

    def function(some: Tensor, by: Tensor) -> Tensor:
        return F.relu(some + 1) @ by.T

    def by_rows(some: Tensor, by: Tensor) -> Tensor:
        return rowwise(lambda rows: function(rows, by), some)

    assert_the_same(by_rows, function, (x, weight), given)


def test_under_autocast_a_layer_rounds_as_torchs_does() -> None:
    x, layer = torch.randn(5, 8), Linear(8, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
        assert layer(x).dtype == torch.bfloat16


def test_an_exporter_sees_a_linear_layer() -> None:
    program = torch.export.export(Linear(8, 3).eval(), (torch.randn(5, 8),))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called == ["aten.linear.default"]


@pytest.mark.parametrize(("rows", "wide"), [(1, 64), (64, 64), (65, 128)])
def test_a_table_is_widened_by_zeros(rows: int, wide: int) -> None:
    table = matrix(rows, 3)
    found = widened(table)
    assert found.shape == (wide, 3)
    assert torch.equal(found[:rows], table)
    assert not found[rows:].any()
    assert widened(table[:, 0]).shape == (wide,)
