"""Students that learn from a second dataset beside the store's: `--source data/games`.

Such a student's settings have the fields `source` and `source_items`, which say what it learnt from: the digest goes into the
identity of a run, never a path. Its module has `learn_from(dataset)`; once trained it needs the other dataset no more.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cache.dataset import Dataset
from cache.errors import UsageError
from student.registry import StudentKind

__all__ = ["with_source"]


def with_source(kind: StudentKind, config: Any, dataset: Dataset, source: Dataset | None) -> Any:
    """`config`, saying from which other domain the student learns; as it was for a student of one domain.

    Raises:
        UsageError: ``fit.no_source`` without one, ``fit.other_option`` where it means nothing, ``fit.bad_source``
            where it is the very dataset of the store.
    """
    if "source" not in kind.fields:
        if source is not None:
            raise UsageError(
                f"--source means nothing to {kind.name}, which learns from the store's dataset alone; "
                "leave it away.",
                code="fit.other_option",
            )
        return config
    if source is None:
        raise UsageError(
            f"{kind.name} learns from two domains and one was given; name another dataset with --source "
            "data/NAME.",
            code="fit.no_source",
        )
    if source.digest == dataset.digest:
        raise UsageError(
            f"--source {source.path}: is the very dataset of the store; name one of another domain.",
            code="fit.bad_source",
        )
    return replace(config, source=source.digest, source_items=source.num_items)
