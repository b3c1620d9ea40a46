"""Format `unisrec`: a folder as UniSRec's preprocessing writes it; whole sequences are put together from their prefixes.

    Toys.train.inter  .valid.inter  .test.inter      user_id:token  item_id_list:token_seq  item_id:token, a row a prefix
    [Toys.text]  [Toys.user2index  Toys.item2index]  [Toys.feat1CLS  Toys.feat3CLS]    raw float32, a row an index

Histories in the rows are cut (at 50 there); longer sequences are stitched, each row continuing the one before. Every row
is compared with the sequence it came from; rows that do not continue one another are refused by number.
Source: dataset/preprocessing in https://github.com/RUCAIBox/UniSRec
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache.atomic import disk_errors
from cache.errors import InputError
from pipeline.ingest.delimited import broken_stream, delimited, open_text, records
from pipeline.ingest.recbole import atomic
from pipeline.ingest.rows import RowErrors
from pipeline.ingest.source import Catalogue, Events, Source, encode_ids, id_problem

__all__ = ["dataset_names", "read_unisrec"]

_FEATURES = ("feat1CLS", "feat3CLS")
_FLOAT = 4
_INDEX = re.compile(r"\d{1,18}", re.ASCII)


class _Prefix:
    """One row: the items before the target, and the target."""

    __slots__ = ("history", "row", "target")

    def __init__(self, row: int, history: list[str], target: str) -> None:
        self.row, self.history, self.target = row, history, target


def dataset_names(folder: Path) -> list[str]:
    """Names with a .train.inter file in `folder`, sorted."""
    return sorted(p.name.removesuffix(".train.inter") for p in folder.glob("*.train.inter"))


def read_unisrec(source: Path) -> Source:
    """Parse a folder that holds one data set, or its .train.inter file."""
    if source.is_file():
        folder, names = source.parent, [source.name.removesuffix(".train.inter")]
    else:
        folder, names = source, dataset_names(source)
    if len(names) != 1:
        raise InputError(
            f"{source}: has {len(names)} .train.inter files ({', '.join(names[:5])}); "
            "exactly one was expected, or name the file itself.",
            code="ingest.missing_file",
        )
    stem = folder / names[0]
    train = _beside(stem, ".train.inter")
    sequences = _training_parts(train)
    held_out = [_beside(stem, suffix) for suffix in (".valid.inter", ".test.inter")]
    if any(path.is_file() for path in held_out):  # corpora for pre-training have no such files
        for path in held_out:
            _append_targets(path, sequences)
    raw_users = _index(_beside(stem, ".user2index"))
    raw_items = _index(_beside(stem, ".item2index"))
    events = _events(train, sequences, raw_users, raw_items)
    catalogue = _texts(_beside(stem, ".text"), raw_items)
    features = {
        name: _features(path, catalogue, raw_items)
        for name in _FEATURES
        if (path := _beside(stem, f".{name}")).is_file()
    }
    return Source(
        format="unisrec", events=events, catalogue=catalogue, features=features, default_k=0
    )


def _beside(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)


def _prefixes(path: Path) -> dict[str, list[_Prefix]]:
    """Rows of one file by user, in file order."""
    if not path.is_file():
        raise InputError(
            f"{path}: is not there; .train.inter, .valid.inter and .test.inter were expected together.",
            code="ingest.missing_file",
        )
    layout = delimited(path, delimiter="\t", quoted=False)
    names = [name.partition(":")[0].strip() for name in layout.names]
    for name in ("user_id", "item_id_list", "item_id"):
        if name not in names:
            raise InputError(
                f"{path}:1: {name}: there is no such column; the file has {', '.join(layout.names)}.",
                code="ingest.missing_column",
            )
    at_user, at_list, at_item = (names.index(n) for n in ("user_id", "item_id_list", "item_id"))
    errors = RowErrors(path)
    found: dict[str, list[_Prefix]] = {}
    for row, cells in records(layout, errors):
        history = cells[at_list].split(" ")
        for name, value in (
            ("user_id", cells[at_user]),
            ("item_id_list", min(history, key=len)),
            ("item_id", cells[at_item]),
        ):
            problem = id_problem(value)
            if problem:
                errors.add(row, name, problem)
        found.setdefault(cells[at_user], []).append(_Prefix(row, history, cells[at_item]))
    errors.raise_any()
    return found


def _training_parts(path: Path) -> dict[str, list[str]]:
    """The training part of every user that has at least two items in it."""
    by_user = _prefixes(path)
    cut = max((len(p.history) for rows in by_user.values() for p in rows), default=0)
    errors = RowErrors(path)
    parts = {user: _stitch(rows, cut, errors) for user, rows in by_user.items()}
    errors.raise_any()
    return parts


def _stitch(rows: list[_Prefix], cut: int, errors: RowErrors) -> list[str]:
    """The sequence whose prefixes `rows` are.

    Uncut histories are ordered by length. Cut ones all have the same length, so their order is that of the file:
    downwards in the public files, from the longest prefix to a single item; upwards is understood too.
    """
    short = sorted((p for p in rows if len(p.history) < cut), key=lambda p: len(p.history))
    full = [p for p in rows if len(p.history) == cut]
    upwards = len(rows[0].history) < len(rows[-1].history)
    orders = [full, full[::-1]] if upwards else [full[::-1], full]
    first_broken = 0
    for order in orders:
        sequence, broken = _chain([*short, *order], cut)
        if not broken:
            return sequence
        first_broken = first_broken or broken
    errors.add(first_broken, "item_id_list", "does not continue the user's other rows")
    return []


def _chain(ordered: list[_Prefix], cut: int) -> tuple[list[str], int]:
    """(sequence, 0), or what was built so far and the row that does not continue it."""
    sequence: list[str] = []
    for prefix in ordered:
        if len(sequence) <= len(prefix.history):  # nothing is cut off yet: the history is all
            continues = prefix.history[: len(sequence)] == sequence
            sequence = [*prefix.history, prefix.target]
        else:
            continues = len(prefix.history) == cut and prefix.history == sequence[-cut:]
            sequence.append(prefix.target)
        if not continues:
            return sequence, prefix.row
    return sequence, 0


def _append_targets(path: Path, sequences: dict[str, list[str]]) -> None:
    """Add each user's held-out item; the row's history must be the end of what is known of the user."""
    errors = RowErrors(path)
    by_user = _prefixes(path)
    cut = max((len(p.history) for rows in by_user.values() for p in rows), default=0)
    for user in sorted(sequences.keys() - by_user.keys()):
        errors.add(0, "user_id", f"{user!r} has training rows and no row here; one was expected")
    for user, rows in by_user.items():
        first = rows[0]
        for again in rows[1:]:
            errors.add(again.row, "user_id", f"{user!r} has a second row; one was expected")
        known = sequences.setdefault(user, [*first.history])
        if first.history != known[-cut:]:
            errors.add(first.row, "item_id_list", "does not end the user's sequence so far")
        known.append(first.target)
    errors.raise_any()


def _index(path: Path) -> dict[str, str] | None:
    """Raw id by index, of a two-column file without a header; None where there is no file."""
    if not path.is_file():
        return None
    errors = RowErrors(path)
    raw: dict[str, str] = {}
    known: set[str] = set()
    with open_text(path) as file, broken_stream(path):
        for row, line in enumerate(file, start=1):
            cells = line.rstrip("\r\n").split("\t")
            if len(cells) != 2:
                errors.add(row, "row", f"has {len(cells)} cells; 2 were expected: id and index")
                continue
            problem = id_problem(cells[0])
            if problem:
                errors.add(row, "id", problem)
            elif cells[0] in known:
                errors.add(row, "id", f"{cells[0]!r} is listed a second time; once was expected")
            elif not _INDEX.fullmatch(cells[1]) or cells[1] in raw:
                shown = repr(cells[1][:40])
                errors.add(row, "index", f"{shown}; whole numbers, each once, were expected")
            else:
                raw[cells[1]] = cells[0]
            known.add(cells[0])
    errors.raise_any()
    if sorted(map(int, raw)) != list(range(len(raw))):
        raise InputError(
            f"{path}: the {len(raw)} indices are not 0 to {len(raw) - 1}; fetch the file again.",
            code="ingest.bad_index",
        )
    return raw


def _events(
    path: Path,
    sequences: Mapping[str, list[str]],
    raw_users: Mapping[str, str] | None,
    raw_items: Mapping[str, str] | None,
) -> Events:
    """One event an item of a sequence, timed by its position."""
    if not sequences:
        raise InputError(f"{path}: holds no rows; at least one was expected.", code="ingest.empty")
    flat = [item for sequence in sequences.values() for item in sequence]
    for kind, tokens, raw in (("user", sequences, raw_users), ("item", flat, raw_items)):
        unknown = set() if raw is None else set(tokens) - raw.keys()
        if unknown:
            raise InputError(
                f"{path}: the {kind} {min(unknown)!r} (and {len(unknown) - 1} more) is not in the "
                f".{kind}2index file; the files do not belong together.",
                code="ingest.bad_index",
            )
    lengths = np.array([len(sequence) for sequence in sequences.values()])
    starts = np.cumsum(lengths) - lengths
    users = np.array([raw_users[u] if raw_users else u for u in sequences], object)
    return Events(
        path=path,
        users=encode_ids(pa.array(np.repeat(users, lengths), pa.string())),
        items=encode_ids(pa.array([raw_items[i] if raw_items else i for i in flat], pa.string())),
        times=np.arange(len(flat), dtype=np.int64) - np.repeat(starts, lengths),
    )


def _texts(path: Path, raw_items: Mapping[str, str] | None) -> Catalogue:
    """The joined texts as titles: they were cleaned when the file was written; "." stands for none."""
    catalogue = Catalogue(path=path)
    if not path.is_file():
        return catalogue
    layout, parts = atomic(path, ("item", "title"), {"title": "text"}, required=("item", "title"))
    at_item, at_text = (layout.names.index(parts[part]) for part in ("item", "title"))
    errors = RowErrors(path)
    for row, cells in records(layout, errors):
        item, text = cells[at_item], cells[at_text].strip()
        if raw_items is not None:
            item = raw_items.get(item, "")
        problem = id_problem(item) if item else "is not in the .item2index file"
        if item in catalogue.texts and not problem:
            problem = f"{item!r} is listed a second time; once was expected"
        if problem:
            errors.add(row, "item_id", problem)
        if id_problem(f".{text}"):
            errors.add(row, "text", str(id_problem(f".{text}")))
        catalogue.texts[item] = {"title": "" if text == "." else text}
    errors.raise_any()
    return catalogue


def _features(
    path: Path, catalogue: Catalogue, raw_items: Mapping[str, str] | None
) -> NDArray[np.float32]:
    """[indices, d] float32; d follows from the size of the file."""
    if raw_items is None:
        raise InputError(
            f"{path}: the rows of features are indices; {path.with_suffix('.item2index')} "
            "was expected beside it.",
            code="ingest.bad_features",
        )
    with disk_errors(path):
        size = path.stat().st_size
        if not size or size % (_FLOAT * len(raw_items)):
            raise InputError(
                f"{path}: has {size} bytes; a multiple of {_FLOAT * len(raw_items)} was expected, "
                f"float32 for {len(raw_items)} items; fetch it again.",
                code="ingest.bad_features",
            )
        matrix = np.fromfile(path, "<f4").reshape(len(raw_items), -1)
    catalogue.feature_rows = {raw: int(index) for index, raw in raw_items.items()}
    return matrix
