"""P20: malformed rows are told by number and never half-write.

Any bytes at all give either a dataset that opens whole or one refusal, of lines `file:row: column: what`, the first twenty
and a count of the rest; the folder is as before. Each kind of fault by hand is in tests/pipeline/test_ingest_bad.py.
"""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.dataset import open_dataset
from cache.errors import CkdError
from pipeline.ingest import ingest
from tests.promises.grounds import in_memory, typed
from tests.promises.ledger import all_kept, kept

CELLS = st.sampled_from(
    [b"u1", b"u2", b"a", b"b", b"1", b"2", b"", b" ", b"-1", b"nan", b"inf", b"1e400", b"9" * 30, b"\xff", b"\xc3", b"x\0y",
     b'"', b'""', b'"a\nb"', b"2020-01-01", b"\xef\xbb\xbf", b"\\", b"'", b"=1+1", b"\xe2\x80\xae", b"0x10", b"1_0", b"true",
     b"u" * 3000]
)  # fmt: skip
ROWS = st.lists(st.lists(CELLS, min_size=0, max_size=5), max_size=12)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n"])
LINE = re.compile(r"(meta_)?log\.[\w.]+(:\d+)?: ")


def refused_or_whole(source: Path) -> str:
    """A complaint, or empty."""
    before = sorted(source.parent.iterdir())
    out = source.parent / "out"
    try:
        ingest(source, out, k_core=0)
    except CkdError as error:
        lines = str(error).replace(f"{source.parent}/", "").splitlines()
        if sorted(source.parent.iterdir()) != before:
            return f"left behind: {sorted(source.parent.iterdir())}"
        if (
            error.exit not in {2, 4}
            or not all(LINE.match(line) for line in lines)
            or len(lines) > 21
        ):
            return f"{error.code}: {lines[:3]}"
        return ""
    dataset = open_dataset(out, deep=True)
    return "" if len(dataset.flat) and dataset.num_items else "an empty dataset"


@settings(max_examples=60)
@given(
    rows=ROWS,
    end=ENDS,
    mark=st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe"]),
    tab=st.booleans(),
)
def test_any_cells_in_any_rows(rows: list[list[bytes]], end: bytes, mark: bytes, tab: bool) -> None:
    between = b"\t" if tab else b","
    text = end.join(between.join(row) for row in [[b"user", b"item", b"time"], *rows]) + end
    with in_memory() as folder:
        source = folder / ("log.tsv" if tab else "log.csv")
        source.write_bytes(mark + text)
        all_kept("P20", [refused_or_whole(source)])


@settings(max_examples=40)
@given(
    data=st.binary(max_size=200),
    name=st.sampled_from(["log.csv", "log.csv.gz", "log.parquet", "log.tsv"]),
)
def test_any_bytes_at_all(data: bytes, name: str) -> None:
    with in_memory() as folder:
        (folder / name).write_bytes(data)
        all_kept("P20", [refused_or_whole(folder / name)])


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
)


@settings(max_examples=25)
@given(
    rows=st.lists(
        st.dictionaries(st.sampled_from(["reviewerID", "asin", "unixReviewTime", "more"]), VALUES),
        min_size=1,
        max_size=6,
    ),
    junk=st.sampled_from([b"", b"{", b"[]\n", b"\xff\n", b"null\n", b'{"asin": 1e999}\n', b"\0\n"]),
)
def test_any_lines_of_json(rows: list[dict[str, object]], junk: bytes) -> None:
    text = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    with in_memory() as folder:
        (folder / "log.json").write_bytes(text + junk)
        (folder / "meta_log.json").write_text('{"asin": "B"}\n')
        all_kept("P20", [refused_or_whole(folder / "log.json")])


def test_gzip_cut_anywhere_and_a_line_of_many_megabytes() -> None:
    whole = gzip.compress(
        b"user,item,time\n" + b"".join(b"u%d,a,%d\n" % (n % 7, n * n) for n in range(500))
    )
    told = []
    with in_memory() as folder:
        for number, length in enumerate(range(0, len(whole), len(whole) // 24)):
            part = folder / str(number)
            part.mkdir()
            (part / "log.csv.gz").write_bytes(whole[:length])
            told.append(refused_or_whole(part / "log.csv.gz"))
            told.append("" if not (part / "out").exists() else f"cut at {length}: taken")
        for number, line in enumerate(
            (b"u" * (16 << 20) + b",a,1\n", b"," * (4 << 20), b'"' + b"x\n" * (2 << 20))
        ):
            part = folder / f"long-{number}"
            part.mkdir()
            (part / "log.csv").write_bytes(b"user,item,time\nu,a,1\n" + line)
            told.append(refused_or_whole(part / "log.csv"))
    all_kept("P20", told)


@pytest.mark.parametrize(("bad", "more"), [(1, 0), (20, 0), (21, 1), (500, 480)])
def test_the_command_line_tells_twenty_rows_and_counts_the_rest(bad: int, more: int) -> None:
    with in_memory() as folder:
        (folder / "log.csv").write_bytes(b"user,item,time\nu,a,1\n" + b"u,a,soon\n" * bad)
        done = typed(folder, "kd-cache", "ingest", "log.csv", "--out", "out")
        assert done.status == 4
        assert done.err.count("'soon' is not a number") == min(bad, 20)
        assert (f"and {more} more like these" in done.err) == bool(more)
        assert not (folder / "out").exists()
    kept("P20", 1, 1)


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz"])
def test_a_quote_that_is_not_closed_swallows_no_row(name: str) -> None:
    """In any row, alone or with a second one further down that makes the quotes a pair."""
    told = []
    with in_memory() as folder:
        for first in range(8):
            for second in range(first, 8):
                notes = ['"5 inch' if n in (first, second) else "ok" for n in range(8)]
                rows = [f"u,i{n},{n},{note}" for n, note in enumerate(notes)]
                text = "\n".join(["user,item,time,note", *rows]).encode()
                part = folder / f"{name}-{first}-{second}"
                part.mkdir()
                (part / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
                try:
                    ingest(part / name, part / "out", k_core=0)
                    told.append(f"{first}, {second}: taken")
                except CkdError as error:
                    row = re.escape(f"{part / name}:{first + 2}: row: ")
                    told.append("" if re.match(row, str(error)) else str(error))
    all_kept("P20", told)
