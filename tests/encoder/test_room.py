"""Room for scores: rows that begin at a cache line, and products that are the same to the bit."""

from __future__ import annotations

import threading

import pytest
import torch

from encoder.room import Scratch, room_for


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


def test_scratch_is_the_same_memory_until_more_is_asked_for() -> None:
    scratch, like = Scratch(), torch.empty(0)
    first = scratch.room(16, 32, like=like)
    assert first.shape == (16, 32)
    assert scratch.room(3, 7, like=like).data_ptr() == first.data_ptr()
    assert scratch.room(18, 32, like=like).data_ptr() == first.data_ptr()  # an eighth more
    large = scratch.room(64, 32, like=like)
    assert large.data_ptr() != first.data_ptr()
    assert scratch.room(16, 32, like=like).data_ptr() == large.data_ptr()
    assert scratch.room(2, 5, like=like.double()).dtype == torch.float64


def test_scratch_made_in_inference_mode_is_written_outside() -> None:
    scratch, like = Scratch(), torch.empty(0)
    with torch.inference_mode():
        scratch.room(2, 3, like=like)
    with torch.no_grad():
        scratch.room(2, 3, like=like).zero_()


def test_two_threads_have_no_scratch_in_common() -> None:
    scratch, like, found = Scratch(), torch.empty(0), []
    mine = scratch.room(4, 4, like=like)
    other = threading.Thread(target=lambda: found.append(scratch.room(4, 4, like=like)))
    other.start()
    other.join()
    assert found[0].data_ptr() != mine.data_ptr()
