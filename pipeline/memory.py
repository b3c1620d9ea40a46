"""What a process holds without using it, given back to the system; and what is said when there is no more.

Steps whose tensors are of ever other sizes tear the C library's heap to pieces: a RecGURU's training held twice what it
needed after 60 steps and went on growing. Giving back takes some 0.1 s for 300 MB. No number depends on it.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from functools import cache

from cache.errors import CapacityError, short_of_memory

__all__ = ["give_back", "short_of"]

_ASKED = re.compile(r"allocate (\d+(?:\.\d+)?) (\w+)")


def give_back() -> None:
    """Have the C library return what is free; nothing where it is another one than glibc."""
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return found


def short_of(error: MemoryError | RuntimeError) -> CapacityError | None:
    """The error to show for one that tells of memory that was not there; None for any other."""
    if not short_of_memory(error):
        return None
    asked = _ASKED.search(str(error))
    many = "more" if not asked else f"{_gib(*asked.groups())} at once, more"
    return CapacityError(
        f"memory: {many} than the machine or its accelerator has free was asked for; ask for less, such as a smaller "
        "--batch-size, --hidden or --max-length, or make room.",
        code="memory.short",
    )


def _gib(number: str, unit: str) -> str:
    """As it was said, but for bytes."""
    return f"{int(number) / 2**30:.1f} GiB" if unit == "bytes" else f"{number} {unit}"
