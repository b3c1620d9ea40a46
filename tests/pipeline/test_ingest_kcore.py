"""The k-core against a loop that anyone can check, and texts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ingest.clean import clean_text
from pipeline.ingest.kcore import k_core

Pairs = list[tuple[int, int]]


def naive(pairs: Pairs, k: int) -> Pairs:
    while True:
        users, items = Counter(u for u, _ in pairs), Counter(i for _, i in pairs)
        left = [(u, i) for u, i in pairs if users[u] >= k and items[i] >= k]
        if left == pairs:
            return left
        pairs = left


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=80), st.integers(0, 6))
def test_like_the_naive_loop(pairs: Pairs, k: int) -> None:
    users, items = np.array(pairs, np.int32).reshape(-1, 2).T
    assert [pairs[i] for i in k_core(users, items, k)] == naive(pairs, k)


def test_a_chain_falls_apart_from_its_end() -> None:
    # user 0 - item 0 - user 1 - item 1 ...: each has two but the ends, so the 2-core is empty
    pairs = [(n // 2, (n + 1) // 2) for n in range(1000)]
    users, items = np.array(pairs).T
    assert len(k_core(users, items, 2)) == 0


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("Glue", "Glue."),
        ("Glue...", "Glue."),
        ("", ""),
        (None, ""),
        (".", ""),
        (["Office", "Glue &amp; Tape"], "Office Glue & Tape."),
        ('a 5" nail\r\nand more', "a 5 nailand more."),
        ({"Size": "4"}, "Size 4."),
        (12, "12."),
        ("x" * 1999, "x" * 1999 + "."),
        ("x" * 2000, ""),
        ("&lt;b&gt;", "<b>."),
        ("half \ud83d", "half."),
    ],
)
def test_texts(raw: object, cleaned: str) -> None:
    assert clean_text(raw).replace(" .", ".") == cleaned
