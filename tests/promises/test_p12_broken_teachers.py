"""P12: a broken teacher cannot poison a store.

Nonsense is refused by teacher and place, nothing of that batch is written, and once the teacher is mended the same build
ends in the bytes of one that was never disturbed. What looks sound and changes from call to call is found by asking again
(`kd-cache verify --sample`). A teacher that says the same of everything answers as it should: only its quality tells.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.errors import TeacherError
from cache.store import Store
from cache.verify import compare, verify
from pipeline.build import build, scorer
from tests.fakes import TableTeacher, tiny_store, tree
from tests.promises.grounds import code_of, in_memory
from tests.promises.ledger import all_kept


class Spoilt(TableTeacher):
    """Sound but for one kind of answer, from its n-th call on."""

    def __init__(self, where: str, spoil: Callable[[Any], Any], after: int) -> None:
        super().__init__("table")
        self._where, self._spoil, self._after = where, spoil, after

    def _answer(self, where: str, value: Any) -> Any:
        spoils = where == self._where and self.calls[where] > self._after
        return self._spoil(value) if spoils else value

    def encode_items(self, dataset: Any) -> Any:
        return self._answer("items", super().encode_items(dataset))

    def encode_histories(self, dataset: Any, users: Any, ends: Any) -> Any:
        return self._answer("histories", super().encode_histories(dataset, users, ends))

    def score(self, users_TD: Any, items_CD: Any) -> Any:
        return self._answer("score", super().score(users_TD, items_CD))


def one(value: float) -> Callable[[Any], Any]:
    def spoil(answer: Any) -> Any:
        answer = answer.copy()
        answer[-1, -1] = value
        return answer

    return spoil


SPOILS: dict[str, Callable[[Any], Any]] = {
    "NaN": one(np.nan),
    "Inf": one(np.inf),
    "-Inf": one(-np.inf),
    "all NaN": lambda answer: np.full_like(answer, np.nan),
    "a row too few": lambda answer: answer[:-1],
    "a column too many": lambda answer: np.repeat(answer, 2, axis=1),
    "another order of axes": lambda answer: np.ascontiguousarray(answer.T),
    "an axis more": lambda answer: answer[None],
    "flat": lambda answer: answer.reshape(-1),
    "whole numbers": lambda answer: answer.astype(np.int64),
    "objects": lambda answer: answer.astype(object),
    "empty": lambda answer: answer[:0],
}


@pytest.mark.parametrize("where", ["items", "histories", "score"])
def test_nonsense_is_refused_by_place_and_nothing_of_it_is_written(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.build.HISTORY_BLOCK", 7)  # several calls from a tiny plan
    told: list[str] = []
    with in_memory() as folder:
        wanted = tree(_built(folder / "clean"))
        spoils = dict(SPOILS)
        if where != "score":  # vectors are float32 or nothing; scores are rounded to float16 anyway
            spoils["float64"] = lambda answer: answer.astype(np.float64)
            del spoils["a column too many"]  # which is a vector too
        for number, (name, spoil) in enumerate(spoils.items()):
            for after in (0,) if where == "items" else (0, 2):
                store = tiny_store(folder / f"{number}-{after}")
                before = tree(store.path)
                teacher = Spoilt(where, spoil, after)
                try:
                    build(teacher, store, shard_bytes=400)
                    told.append(f"{where} {name}: taken")
                except TeacherError as error:
                    words = str(error)
                    sound = "'table'" in words and ("row" in words or "batch" in words)
                    told.append("" if sound else words)
                sealed = {
                    n: d
                    for n, d in tree(store.path).items()
                    if "/.work-" not in n and "/.lock" not in n
                }
                told.append(
                    "" if sealed == before and not verify(store.path) else f"{name}: written"
                )
                held = list(store.path.glob("scores/.work-table/set/scores.zarr/c.*"))
                most = 0 if where != "score" else after
                told.append("" if len(held) <= most else f"{name}: {len(held)} shards of {most}")
                again = tree(_built(store.path, fresh=False))
                told.append("" if again == wanted else f"{where} {name}: other bytes after mending")
    all_kept("P12", told)


def _built(path: Path, *, fresh: bool = True) -> Path:
    store = tiny_store(path) if fresh else Store.open(path)
    build(TableTeacher("table"), store, shard_bytes=400)
    return path


@pytest.mark.parametrize("keep", ["factors", "both"])
def test_nonsense_never_becomes_factors(keep: Any) -> None:
    told: list[str] = []
    with in_memory() as folder:
        for number, where in enumerate(["items", "histories", "score"]):
            for name in ("NaN", "Inf", "a row too few"):
                store = tiny_store(folder / f"{number}-{name}")
                teacher = Spoilt(where, SPOILS[name], 0)
                code = code_of(lambda t=teacher, s=store: build(t, s, keep=keep, shard_bytes=400))
                told.append(
                    "" if code.startswith("teacher.") else f"{where} {name}: {code or 'taken'}"
                )
                told.append("" if not store.teachers else f"{where} {name}: sealed")
    all_kept("P12", told)


def test_answers_that_change_are_found_by_asking_again() -> None:
    """And a teacher that does not change is not accused."""
    told: list[str] = []
    with in_memory() as folder:
        path = _built(folder / "store")
        for after, found in ((1000, False), (0, True)):
            draws = np.random.default_rng(0)
            teacher = Spoilt("score", lambda a, draws=draws: a + draws.normal(size=a.shape), after)
            store = Store.open(path)
            odd = compare(store, "table", scorer(teacher, store.dataset), sample=6)
            told.append("" if bool(odd) == found else f"{after}: {odd}")
            told.append("" if all(o.code == "scores.unlike_teacher" for o in odd) else f"{odd}")
    all_kept("P12", told)


def test_a_teacher_that_says_the_same_of_everything_is_uniform() -> None:
    with in_memory() as folder:
        store = tiny_store(folder / "store")
        build(Spoilt("score", np.zeros_like, 0), store, shard_bytes=400)
        reader = store.scores("table")
        told = []
        for index in range(len(reader)):
            rows, width = reader.shape(index)
            wanted = np.full((rows, width), np.float16(-np.log(width)))
            told.append("" if np.array_equal(reader[index], wanted) else f"batch {index}")
    all_kept("P12", told)
