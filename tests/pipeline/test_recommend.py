"""Top-N lists: whose, of what, in which order, and written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import csv

from cache.dataset import Dataset, open_dataset, write_dataset
from cache.errors import TeacherError, UsageError
from pipeline import recommend as module
from pipeline.recommend import (
    Lists,
    read_users,
    recommend,
    rows_of_users,
    tables,
    user_names,
    write_lists,
)
from tests.student.small import NAMES, made, shop


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return shop(tmp_path_factory.mktemp("lists") / "store").dataset


def everyone(dataset: Dataset) -> np.ndarray:
    return np.arange(dataset.num_users, dtype=np.int32)


def joined(parts: Iterator[Lists]) -> list[tuple[int, int, int, float]]:
    return [
        row
        for one in parts
        for row in zip(
            one.users.tolist(),
            one.items.tolist(),
            one.ranks.tolist(),
            one.scores.tolist(),
            strict=True,
        )
    ]


def of_user(model: Any, dataset: Dataset, user: int) -> np.ndarray:
    """[V] scores of one user alone, from his last `max_length` items whatever part they stand in."""
    history = dataset.sequence(user)[-dataset.max_length :]
    packed = module.Packed.of(history, np.array([len(history)]), users=np.array([user]))
    with torch.inference_mode():
        if hasattr(model, "encode"):
            return (model.encode(packed) @ model.item_table().T)[0].numpy()
        return model.logits(packed)[0].numpy()


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_student_lists_the_best_items_of_the_whole_history(
    name: str, exclude: bool, dataset: Dataset
) -> None:
    """Against a plain sort of each user's scores, alone; what he had is struck out of the sorted list."""
    model = made(name, dataset)
    users = np.array([31, 0, 7], np.int32)
    found = joined(recommend(model, dataset, users, 5, exclude_history=exclude))
    wanted = []
    for user in users.tolist():
        scores = of_user(model, dataset, user)
        had = set(dataset.sequence(user).tolist()) if exclude else set()
        order = [item for item in np.argsort(-scores, kind="stable").tolist() if item not in had]
        wanted += [(user, item, rank, scores[item]) for rank, item in enumerate(order[:5], 1)]
    assert [row[:3] for row in found] == [row[:3] for row in wanted]
    assert [row[3] for row in found] == pytest.approx([row[3] for row in wanted], abs=1e-5)


def test_users_come_in_batches_that_change_nothing(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made("sasrec", dataset)
    whole = joined(recommend(model, dataset, everyone(dataset), 3))
    monkeypatch.setattr(module, "_ENCODE", 7)
    monkeypatch.setattr(module, "_BLOCK_ENTRIES", 2 * dataset.num_items)  # two users a block
    parts = list(recommend(model, dataset, everyone(dataset), 3))
    assert max(len(set(one.users.tolist())) for one in parts) == 2
    assert [row[:3] for row in joined(iter(parts))] == [row[:3] for row in whole]


class Flat(torch.nn.Module):
    """A scorer with the same scores for everybody."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores = torch.tensor(scores)

    def logits(self, packed: Any, items_C: Any = None) -> torch.Tensor:
        return self.scores.expand(len(packed.last), -1)


def test_of_equal_scores_the_earlier_item_comes_first(dataset: Dataset) -> None:
    """All 24 items score 0 but item 9: it leads, and then come items 0 and 1, though 22 others score the same."""
    scores = [0.0] * 24
    scores[9] = 1.0
    found = joined(recommend(Flat(scores), dataset, np.array([3], np.int32), 3))
    assert found == [(3, 9, 1, 1.0), (3, 0, 2, 0.0), (3, 1, 3, 0.0)]


def test_who_had_nearly_everything_gets_a_shorter_list(tmp_path: Path) -> None:
    """4 items, of which he had 0, 1 and 2: item 3 is all that is left; and who had nothing gets no list."""
    write_dataset(
        tmp_path / "data",
        items=pa.table({"item": list("abcd")}),
        user_ids=pa.array(["ann", "bob"]),
        flat=np.array([0, 1, 2]),
        offsets=np.array([0, 3, 3]),
    )
    dataset = open_dataset(tmp_path / "data")
    model = Flat([4.0, 3.0, 2.0, 1.0])
    found = joined(recommend(model, dataset, everyone(dataset), 10, exclude_history=True))
    assert found == [(0, 3, 1, 1.0)]
    assert len(joined(recommend(model, dataset, everyone(dataset), 10))) == 4


def test_a_score_that_is_no_number_is_refused_with_its_user(dataset: Dataset) -> None:
    with pytest.raises(TeacherError, match="user 5 are not numbers"):
        list(recommend(Flat([0.0] * 23 + [float("nan")]), dataset, np.array([5], np.int32), 3))


def test_users_are_found_by_id_each_once_in_the_order_asked(dataset: Dataset) -> None:
    names = user_names(dataset)
    assert rows_of_users(names, ["u7", "u0", "u7"], "toys").tolist() == [7, 0]


def test_unknown_users_are_refused_with_the_first_few_named(dataset: Dataset) -> None:
    asked = ["u1", "x1", "x2", "x3", "x4", "x5"]
    with pytest.raises(UsageError) as caught:
        rows_of_users(user_names(dataset), asked, "toys")
    assert "toys: has no user 'x1', 'x2', 'x3' and 2 more (of 6 asked for" in str(caught.value)
    assert caught.value.code == "recommend.unknown_users"


def test_users_of_an_anonymised_dataset_are_their_row_numbers(dataset: Dataset) -> None:
    nameless: Any = SimpleNamespace(user_ids=lambda: None, num_users=3)
    assert user_names(nameless).to_pylist() == ["0", "1", "2"]


def test_a_file_of_users_has_one_a_line(tmp_path: Path) -> None:
    (tmp_path / "users").write_bytes(b"u1\r\n\nan na\nu2")
    assert read_users(tmp_path / "users") == ["u1", "an na", "u2"]
    (tmp_path / "users").write_bytes(b"\xef\xbb\xbfu1\nu2\n")  # as Windows writes it
    assert read_users(tmp_path / "users") == ["u1", "u2"]
    (tmp_path / "users").write_bytes(b"u1\n\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8 text at byte 3"):
        read_users(tmp_path / "users")


def written_rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path, page_checksum_verification=True).to_pylist()
    if path.suffix == ".csv":
        rows = csv.read_csv(path).to_pylist()
        return [row | {"item": str(row["item"])} for row in rows]
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_all_formats_hold_the_same_rows(kind: Any, dataset: Dataset, tmp_path: Path) -> None:
    model = made("sasrec", dataset)
    users = np.array([4, 2], np.int32)
    lists = list(recommend(model, dataset, users, 3))
    parts = tables(iter(lists), dataset, user_names(dataset), titles=True)
    seen: list[int] = []
    path = tmp_path / f"lists.{kind}"
    assert write_lists(path, parts, kind, titles=True, report=seen.append) == 6
    assert seen == [6]
    wanted = [
        {"user": f"u{u}", "item": f"i{i}", "rank": r, "score": pytest.approx(s, rel=1e-6), "title": f"Title {i}"}
        for u, i, r, s in joined(iter(lists))
    ]  # fmt: skip
    rows = written_rows(path)
    assert rows == wanted
    assert list(rows[0]) == ["user", "item", "rank", "score", "title"]


def test_an_error_midway_leaves_the_former_file_and_nothing_beside(
    dataset: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "lists.csv"
    path.write_text("of yesterday")
    lists = recommend(made("sasrec", dataset), dataset, everyone(dataset), 3)

    def broken() -> Iterator[pa.Table]:
        yield from tables(lists, dataset, user_names(dataset))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_lists(path, broken(), "csv")
    assert [one.name for one in tmp_path.iterdir()] == ["lists.csv"]
    assert path.read_text() == "of yesterday"
