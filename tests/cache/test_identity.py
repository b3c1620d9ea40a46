"""Where two identities differ."""

from __future__ import annotations

from cache.identity import difference


def test_the_first_name_in_order_that_differs_is_told_and_a_missing_one_is_none() -> None:
    assert difference({"b": 1, "a": 2}, {"a": 2, "b": 1}) is None
    assert difference({"b": 1, "c": 3}, {"b": 2, "c": 4}) == ("b", 1, 2)
    assert difference({"b": 1}, {"a": 0, "b": 1}) == ("a", None, 0)
    assert difference({"a": 0, "b": 1}, {"b": 1}) == ("a", 0, None)
    assert difference({"a": None}, {}) is None
