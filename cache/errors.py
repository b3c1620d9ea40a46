"""The one tree of foreseen errors.

    CkdError
      UsageError     exit 2   settings that are missing or contradict each other
      StoreError     exit 3   an artefact on disk that is damaged, foreign or too new
      InputError     exit 4   rows handed in that cannot be read
      DiskError      exit 5   the disk refused: full, read-only, failing
      TeacherError   exit 6   a teacher that answered nonsense
      RemoteError    exit 7   a cloud or file server that refused, failed or could not be reached
      CapacityError  exit 8   the machine or its accelerator has not the memory that was asked for

Grouped by what a caller would do about them. Every error is one sentence that says what was found, where,
what was expected and what to type next; `code` is stable and dotted, so that scripts can tell them apart.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "CapacityError",
    "CkdError",
    "DiskError",
    "InputError",
    "RemoteError",
    "StoreError",
    "TeacherError",
    "UsageError",
    "short_of_memory",
]

_NO_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "out of memory")


class CkdError(Exception):
    """A failure that was foreseen: shown as one line, never as a traceback.

    Args:
        message: one sentence for a person.
        code: a stable dotted name such as ``store.wrong_size``.
    """

    exit: ClassVar[int] = 1

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class UsageError(CkdError):
    """Settings are missing or contradict each other."""

    exit = 2


class StoreError(CkdError):
    """A dataset, plan, score set or checkpoint is damaged, foreign or too new."""

    exit = 3


class InputError(CkdError):
    """Rows that were handed in cannot be read."""

    exit = 4


class DiskError(CkdError):
    """The disk refused to take or give bytes."""

    exit = 5


class TeacherError(CkdError):
    """A teacher answered with the wrong shape, NaN or infinity."""

    exit = 6


class RemoteError(CkdError):
    """A cloud or file server refused, failed or could not be reached."""

    exit = 7


class CapacityError(CkdError):
    """The machine or its accelerator has not the memory that was asked for."""

    exit = 8


def short_of_memory(error: Exception) -> bool:
    """Whether it is what Python, numpy, Arrow or torch say of memory they did not get, which tells nothing of a file."""
    said = isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)
    return said or isinstance(error, MemoryError)
