"""Top-N lists for users by a trained student, as serving would make them: from the whole history, held-out items too.

    user   item   rank   score   [title]

One row a recommendation, users in the order they were asked for, ranks from 1; of equal scores the earlier item of the
dataset comes first. Memory is bounded: users come in batches, scores in one block of about 8 MiB, rows are written as
they are made. Refuses unknown users by name, and scores that are no number. Legend: b users of a block, V items, N wanted.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pyarrow import csv
from torch import Tensor

from cache.atomic import disk_errors, written
from cache.dataset import Dataset, Ints
from cache.errors import TeacherError, UsageError
from encoder.packed import Packed
from encoder.products import product, widened
from student.protocol import AnyStudent, Student

__all__ = [
    "Format",
    "Lists",
    "read_users",
    "recommend",
    "rows_of_users",
    "tables",
    "user_names",
    "write_lists",
]

Format: TypeAlias = Literal["parquet", "csv", "jsonl"]

_ENCODE = 4096  # users whose histories are encoded together
_BLOCK_ENTRIES = 1 << 21
_NAMED = 3  # unknown users that a refusal names

Write: TypeAlias = Callable[[pa.Table], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """The recommendations of some users, row by row."""

    users: Ints  #: rows of users
    items: Ints  #: rows of items
    ranks: Ints  #: from 1
    scores: NDArray[np.float32]  #: of the model's own scale


def user_names(dataset: Dataset) -> pa.ChunkedArray:
    """[U] what users are called: their own ids, or their row numbers where the dataset was anonymised."""
    ids = dataset.user_ids()
    if ids is not None:
        return ids
    return pa.chunked_array([pa.array(np.arange(dataset.num_users)).cast(pa.string())])


def read_users(path: Path) -> list[str]:
    """The user ids of a text file, one a line; empty lines are left out.

    Raises:
        DiskError; UsageError: ``recommend.bad_users`` where it is not UTF-8.
    """
    with disk_errors(path):
        data = path.read_bytes()
    try:
        lines = data.decode("utf-8-sig").splitlines()  # Windows puts a mark in front
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: is not UTF-8 text at byte {error.start:,}, one user id a line was expected.",
            code="recommend.bad_users",
        ) from error
    return [line for line in lines if line]


def rows_of_users(names: pa.ChunkedArray, asked: Sequence[str], where: str) -> Ints:
    """The rows of the users that were asked for, each once, in that order.

    Args:
        names: [U] as :func:`user_names` gives them.
        where: what the users are looked for in, for the refusal.

    Raises:
        UsageError: ``recommend.unknown_users``, naming the first few.
    """
    wanted = list(dict.fromkeys(asked))
    found = pc.index_in(pa.array(wanted, pa.string()), value_set=names)
    if found.null_count:
        unknown = [one for one, at in zip(wanted, found.to_pylist(), strict=True) if at is None]
        told = ", ".join(repr(one) for one in unknown[:_NAMED])
        more = f" and {len(unknown) - _NAMED:,} more" if len(unknown) > _NAMED else ""
        raise UsageError(
            f"{where}: has no user {told}{more} (of {len(wanted):,} asked for, it holds "
            f"{len(names):,}); leave them away or name their own store with --cache.",
            code="recommend.unknown_users",
        )
    rows: Ints = found.to_numpy().astype(np.int32)
    return rows


@torch.inference_mode()
def recommend(
    model: AnyStudent,
    dataset: Dataset,
    users: Ints,
    top: int,
    *,
    exclude_history: bool = False,
) -> Iterator[Lists]:
    """The `top` best items of each user, some thousand users at a time.

    Args:
        users: rows of users, in the order that is wanted; who has no history gets no list.
        exclude_history: recommend no item that the user had, however long ago; fewer rows where few are left.

    Raises:
        TeacherError: ``model.not_finite`` where a score is NaN.
    """
    users = users[dataset.lengths[users] > 0]
    table_VD = widened(model.item_table()) if isinstance(model, Student) else None
    block = max(1, _BLOCK_ENTRIES // max(dataset.num_items, 1))
    for start in range(0, len(users), _ENCODE):
        some = users[start : start + _ENCODE]
        vectors_bD = None
        if table_VD is not None:
            vectors_bD = model.encode(_packed(dataset, some))  # type: ignore[union-attr]
        for at in range(0, len(some), block):
            rows = some[at : at + block]
            if vectors_bD is not None and table_VD is not None:
                scores_bV = product(vectors_bD[at : at + block], table_VD.T)[:, : dataset.num_items]
            else:
                scores_bV = model.logits(_packed(dataset, rows)).clone()  # type: ignore[union-attr]
            yield _best(scores_bV.float(), dataset, rows, top, exclude_history)


def tables(
    lists: Iterator[Lists], dataset: Dataset, names: pa.ChunkedArray, *, titles: bool = False
) -> Iterator[pa.Table]:
    """The same with the ids of users and items in place of their rows, and the items' titles if wanted."""
    items = dataset.items
    for one in lists:
        columns = {
            "user": names.take(pa.array(one.users)),
            "item": items["item"].take(pa.array(one.items)),
            "rank": pa.array(one.ranks),
            "score": pa.array(one.scores),
        }
        if titles:
            columns["title"] = items["title"].take(pa.array(one.items))
        yield pa.table(columns)


def write_lists(
    path: Path,
    parts: Iterator[pa.Table],
    kind: Format,
    *,
    titles: bool = False,
    report: Callable[[int], None] = lambda rows: None,
) -> int:
    """Write rows as they come; `path` is the whole of them or as it was. Returns how many there are.

    Args:
        report: told the rows written so far.

    Raises:
        DiskError: the disk refused; whatever the parts raise.
    """
    schema = pa.schema(
        [
            ("user", pa.string()),
            ("item", pa.string()),
            ("rank", pa.int32()),
            ("score", pa.float32()),
            *([("title", pa.string())] if titles else []),
        ]
    )
    done = 0
    with written(path) as file, _WRITERS[kind](file, schema) as write:
        for part in parts:
            write(part.cast(schema))
            done += part.num_rows
            report(done)
    return done


def _packed(dataset: Dataset, users: Ints) -> Packed:
    ends = dataset.lengths[users].astype(np.int32)
    return Packed.of(*dataset.histories(users, ends), users=users)


def _best(
    scores_bV: Tensor, dataset: Dataset, users: Ints, top: int, exclude_history: bool
) -> Lists:
    """The best of one block; `scores_bV` is written over."""
    unsound = scores_bV.isnan().any(dim=1)
    if bool(unsound.any()):
        raise TeacherError(
            f"the model's scores of user {int(users[int(unsound.int().argmax())])} are not numbers; "
            "train again with a smaller learning rate.",
            code="model.not_finite",
        )
    if exclude_history:
        had = [dataset.sequence(int(user)) for user in users]
        at = np.repeat(np.arange(len(users)), [len(one) for one in had])
        scores_bV[
            torch.from_numpy(at), torch.from_numpy(np.concatenate(had).astype(np.int64))
        ] = -torch.inf
    wanted = min(top, scores_bV.shape[1])
    scores_bN, items_bN = scores_bV.topk(wanted)
    # torch leaves open which of equal scores it takes: ask again where it had a choice
    tied = (scores_bV >= scores_bN[:, -1:]).sum(dim=1) > wanted
    tied |= (scores_bN[:, 1:] == scores_bN[:, :-1]).any(dim=1)
    if bool(tied.any()):
        sorted_ = scores_bV[tied].sort(dim=1, descending=True, stable=True)
        scores_bN[tied], items_bN[tied] = sorted_.values[:, :wanted], sorted_.indices[:, :wanted]
    kept = (scores_bN > -torch.inf).numpy()
    ranks_bN = np.broadcast_to(np.arange(1, wanted + 1, dtype=np.int32), kept.shape)
    return Lists(
        users=np.broadcast_to(users[:, None], kept.shape)[kept],
        items=items_bN.numpy()[kept].astype(np.int32),
        ranks=ranks_bN[kept],
        scores=scores_bN.numpy()[kept],
    )


@contextmanager
def _parquet(file: io.RawIOBase, schema: pa.Schema) -> Iterator[Write]:
    with pq.ParquetWriter(
        file, schema, compression="zstd", write_page_checksum=True, version="2.6"
    ) as writer:
        yield writer.write_table


@contextmanager
def _csv(file: io.RawIOBase, schema: pa.Schema) -> Iterator[Write]:
    with csv.CSVWriter(file, schema) as writer:
        yield writer.write_table


@contextmanager
def _json_lines(file: io.RawIOBase, schema: pa.Schema) -> Iterator[Write]:
    def write(table: pa.Table) -> None:
        lines = (json.dumps(_plain(row), ensure_ascii=False) for row in table.to_pylist())
        file.write("".join(f"{line}\n" for line in lines).encode())

    yield write


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """The shortest decimal that is still that float32."""
    return row | {"score": float(str(np.float32(row["score"])))}


_WRITERS: dict[Format, Callable[[io.RawIOBase, pa.Schema], AbstractContextManager[Write]]] = {
    "parquet": _parquet,
    "csv": _csv,
    "jsonl": _json_lines,
}
