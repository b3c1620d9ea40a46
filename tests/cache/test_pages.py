"""Page headers of hostile Parquet: fields of any type are refused in our words, never met with a traceback."""

from __future__ import annotations

from typing import Any

import pytest

from cache.pages import _claim

SOUND = {1: 0, 2: 48, 3: 57, 5: {1: 10, 2: 0}}


def test_a_sound_header_is_counted() -> None:
    assert _claim(SOUND) >= 48


@pytest.mark.parametrize(
    "page", [True, False, 3, [], b"", None, {}, {1: 10, 2: {}}, {1: 10, 2: []}, {1: {}, 2: 0}]
)
def test_a_page_of_another_type_is_refused(page: Any) -> None:
    with pytest.raises(ValueError, match="page"):
        _claim({**SOUND, 5: page})


@pytest.mark.parametrize("size", [{}, [], None, -1, b""])
@pytest.mark.parametrize("field", [2, 3])
def test_a_size_that_is_none_is_refused(size: Any, field: int) -> None:
    with pytest.raises(ValueError, match="makes no sense"):
        _claim({**SOUND, field: size})
