"""Room for scores: rows that begin at a cache line, and products that are the same to the bit."""

from __future__ import annotations

import pytest
import torch

from encoder.room import room_for


@pytest.mark.parametrize(("columns", "wide"), [(1, 16), (15, 16), (16, 16), (17, 32), (4385, 4400)])
def test_rows_begin_every_sixteen_numbers(columns: int, wide: int) -> None:
    room = room_for(3, columns)
    assert room.shape == (3, wide)
    assert room.is_contiguous()
    assert [row.data_ptr() % 64 for row in room] == [room.data_ptr() % 64] * 3


def test_it_is_of_the_type_that_is_asked_for() -> None:
    assert room_for(2, 5, dtype=torch.float64).dtype == torch.float64


@pytest.mark.parametrize("columns", [1, 37, 101, 450])
def test_a_product_there_is_the_bare_product(columns: int) -> None:
    random = torch.Generator().manual_seed(columns)
    users = torch.randn(33, 64, generator=random)
    table = torch.randn(columns, 64, generator=random)
    there = torch.mm(users, table.T, out=room_for(33, columns)[:, :columns])
    torch.testing.assert_close(there, users @ table.T, rtol=1e-6, atol=1e-5)
