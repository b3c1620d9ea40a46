"""What is wrong is said by file and line, all of it at once, and nothing is left behind."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache.errors import InputError
from pipeline.ingest import ingest
from pipeline.ingest.rows import RowErrors

GOOD = b"user,item,time\nu1,a,1\nu1,b,2\n"
NOT_CLOSED = "opens a quoted cell that is not closed; a double quote was expected at its end, two for one inside"


def refused(source: Path, *, format: str | None = None) -> list[str]:
    """The lines of the error, with the folder taken off; checks that nothing was left behind."""
    before = sorted(source.parent.iterdir())
    with pytest.raises(InputError) as caught:
        ingest(source, source.parent / "out", format=format, k_core=0)
    assert caught.value.exit == 4
    assert sorted(source.parent.iterdir()) == before
    return [line.replace(f"{source.parent}/", "") for line in str(caught.value).splitlines()]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (b"u1,a\n", "log.csv:4: row: has 2 cells; 3 were expected"),
        (b"u1,a,3,4\n", "log.csv:4: row: has 4 cells; 3 were expected"),
        (b"\n\nu1,a,3,4\n", "log.csv:6: row: has 4 cells; 3 were expected"),
        (b",a,3\n", "log.csv:4: user: is empty; an id was expected"),
        (b"u1,  ,3\n", "log.csv:4: item: is empty; an id was expected"),
        (b"u1,a,\n", "log.csv:4: time: is empty; a number was expected"),
        (b"u1,a,soon\n", "log.csv:4: time: 'soon' is not a number as the rows above have it"),
        (b"u1,a,2020-01-01\n", "log.csv:4: time: '2020-01-01' is not a number as the rows above have it"),
        (b"u1,a,nan\n", "log.csv:4: time: 'nan' is not a finite number"),
        (b"u1,a,-inf\n", "log.csv:4: time: '-inf' is not a finite number"),
        (b"u1,a,-1\n", "log.csv:4: time: '-1' is negative"),
        (b"u1,a,-0.5\n", "log.csv:4: time: '-0.5' is negative"),
        (b"u1,a,1e300\n", "log.csv:4: time: '1e300' is out of range; less than 2**63 was expected"),
        (b"u1,a,9223372036854775808\n",
         "log.csv:4: time: '9223372036854775808' is out of range; less than 2**63 was expected"),
        (b"u1,a,1_000\n", "log.csv:4: time: '1_000' is not a number as the rows above have it"),
        (b"u\xff,a,3\n", "log.csv:4: user: is not UTF-8"),
        (b"u1,\xc3,3\n", "log.csv:4: item: is not UTF-8"),
        (b"u\x00,a,3\n", "log.csv:4: user: holds a NUL byte"),
        (b'"two\nlines",a,3\nu,a,x\n', "log.csv:6: time: 'x' is not a number as the rows above have it"),
        (b'"u1,a,3\nu2,b,4\n', f"log.csv:4: row: {NOT_CLOSED}"),
        (b'u1,a,3\nu1,"b,4\nu2,b,4\n"u2,b,4\n', f"log.csv:5: row: {NOT_CLOSED}"),  # quotes in pairs
        (b'"u1""\n",a,3\n"u\n2,b,"4"\n', f"log.csv:6: row: {NOT_CLOSED}"),
        (b'u1,a,"3', f"log.csv:4: row: {NOT_CLOSED}"),
    ],
)  # fmt: skip
def test_rows_of_csv(tmp_path: Path, rows: bytes, said: str) -> None:
    (tmp_path / "log.csv").write_bytes(GOOD + rows)
    assert refused(tmp_path / "log.csv") == [said]
    (tmp_path / "log.csv").write_bytes(b"\xef\xbb\xbf" + (GOOD + rows).replace(b"\n", b"\r\n"))
    assert refused(tmp_path / "log.csv") == [said]


def test_line_ends_and_marks_change_no_number(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(b"\xef\xbb\xbfuser,item\r\nu1,a\r\n,b\r\n")
    assert refused(tmp_path / "log.csv") == ["log.csv:3: user: is empty; an id was expected"]


def test_all_errors_come_at_once_twenty_by_name(tmp_path: Path) -> None:
    bad = b"".join(b"u1,a,%d\n" % -n for n in range(1, 31))
    (tmp_path / "log.csv").write_bytes(GOOD + bad + b",,5\n")
    lines = refused(tmp_path / "log.csv")
    assert len(lines) == 21
    assert lines[0] == "log.csv:4: time: '-1' is negative"
    assert lines[19] == "log.csv:23: time: '-20' is negative"
    assert lines[20] == "log.csv: and 12 more like these"  # 30 + 2 - 20


def test_the_first_rows_are_kept_of_any_number(tmp_path: Path) -> None:
    errors = RowErrors(tmp_path / "f")
    for row in range(1000, 0, -1):
        errors.add(row, "c", "bad")
    errors.add_where(np.ones(500, np.bool_), "d", "worse")
    with pytest.raises(InputError) as caught:
        errors.raise_any()
    lines = str(caught.value).splitlines()
    assert lines[:3] == [
        f"{tmp_path / 'f'}:1: c: bad",
        f"{tmp_path / 'f'}:1: d: worse",
        f"{tmp_path / 'f'}:2: c: bad",
    ]
    assert lines[20].endswith("and 1,480 more like these")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "log.csv:1: header: the file is empty or begins with an empty line; column names were expected."),
        (b"user,item,time\n", "log.csv: holds no rows; at least one event was expected."),
        (b"user,time\nu,1\n",
         "log.csv:1: item: no column has a usual name for it (item, item_id, itemid); the file has 'user', 'time'; "
         "say which one with --item."),
        ("user,item\nu,a\n".encode("utf-16"), "log.csv:1: header: is not UTF-8, perhaps UTF-16; save the file as UTF-8."),
        (b"user,item,item\nu,1,1\n", "log.csv:1: item: stands 2 times in the header; once was expected."),
    ],
)  # fmt: skip
def test_headers_of_csv(tmp_path: Path, text: bytes, said: str) -> None:
    (tmp_path / "log.csv").write_bytes(text)
    assert refused(tmp_path / "log.csv") == [said]


def test_a_named_column_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(GOOD)
    with pytest.raises(InputError) as caught:
        ingest(tmp_path / "log.csv", tmp_path / "out", columns={"time": "when"})
    said = "time: there is no column 'when'; the file has 'user', 'item', 'time'."
    assert str(caught.value) == f"{tmp_path / 'log.csv'}:1: {said}"


def test_gzip_that_ends_early_or_is_none(tmp_path: Path) -> None:
    whole = gzip.compress(GOOD + b"".join(b"u%d,a,%d\n" % (n, n * n) for n in range(5000)))
    (tmp_path / "log.csv.gz").write_bytes(whole[: len(whole) // 2])
    (line,) = refused(tmp_path / "log.csv.gz")
    assert line.endswith(": file: the gzip stream ends early; fetch the file again")
    (tmp_path / "log.csv.gz").write_bytes(GOOD)
    (line,) = refused(tmp_path / "log.csv.gz")
    assert line.startswith("log.csv.gz: the gzip stream is damaged (Not a gzipped file")


def test_everything_lost_in_the_k_core(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(GOOD)
    with pytest.raises(InputError) as caught:
        ingest(tmp_path / "log.csv", tmp_path / "out")
    assert caught.value.code == "ingest.nothing_left"
    assert str(caught.value) == (
        f"{tmp_path / 'log.csv'}: nothing is left of 2 interactions of 1 users with 2 items after the 5-core; "
        "ingest with a smaller --k-core."
    )
    assert not (tmp_path / "out").exists()


# ---- Parquet


def write(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def not_utf8(*cells: bytes) -> pa.Array:
    """A column that says it holds text."""
    ends = np.cumsum([0, *map(len, cells)]).astype(np.int32)
    buffers = (pa.py_buffer(ends.tobytes()), pa.py_buffer(b"".join(cells)))
    return pa.StringArray.from_buffers(len(cells), *buffers)


def test_rows_of_parquet_count_from_one(tmp_path: Path) -> None:
    path = write(
        tmp_path / "log.parquet",
        user=["u", None, "u", "u\0", "u"],
        item=["a", "a", "", "a", "a"],
        time=[1.0, 2.0, float("nan"), 4.0, -1.0],
    )
    assert refused(path) == [
        "log.parquet:2: user: is empty; an id was expected",
        "log.parquet:3: item: is empty; an id was expected",
        "log.parquet:3: time: is not a finite number",
        "log.parquet:4: user: holds a NUL byte",
        "log.parquet:5: time: is negative",
    ]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"user": ["u", "v"], "item": ["a", "b"], "time": [1, None]}, ":2: time: is empty; a time was expected"),
        ({"user": ["u", "v"], "item": ["a", "b"], "time": ["1", "x"]},
         ":2: time: 'x' is not a number as the rows above have it"),
        ({"user": ["u"], "item": ["a"], "time": pa.array([2**63], pa.uint64())},
         ":1: time: is out of range; less than 2**63 was expected"),
        ({"user": ["u"], "item": ["a"], "time": pa.array([1], pa.time32("s"))},
         ": time: is a column of time32[ms]; numbers or dates were expected"),
        ({"user": ["u"], "item": ["a"], "time": pa.array([1], pa.time64("us"))},  # of which day?
         ": time: is a column of time64[us]; numbers or dates were expected"),
        ({"user": not_utf8(b"ok", b"a\xffb"), "item": ["a", "b"]}, ":2: user: is not UTF-8"),
        ({"user": ["u", "v"], "item": ["a", "b"], "time": not_utf8(b"1", b"\xff2")},
         ":2: time: '\\udcff2' is not a number as the rows above have it"),
        ({"user": [1.5], "item": ["a"]}, ": user: is a column of double; text or whole numbers were expected."),
        ({"user": ["u"], "item": ["a"], "time": [[1]]},
         ": time: is a column of list<element: int64>; numbers or dates were expected"),
        ({"user": ["u"], "goods": ["a"]},
         ": item: no column has a usual name for it (item, item_id, itemid); the file has 'user', 'goods'; "
         "say which one with --item."),
        ({"user": pa.array([], pa.string()), "item": pa.array([], pa.string())},
         ": holds no rows; at least one event was expected."),
    ],
)  # fmt: skip
def test_columns_of_parquet(tmp_path: Path, columns: dict[str, object], said: str) -> None:
    (line,) = refused(write(tmp_path / "log.parquet", **columns))
    assert line.split("\n")[0] == f"log.parquet{said}"


def test_parquet_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "log.parquet").write_bytes(b"PAR1 and then nothing")
    (line,) = refused(tmp_path / "log.parquet")
    assert line.startswith("log.parquet: cannot be read as Parquet (")
    whole = write(tmp_path / "log.parquet", user=["u"], item=["a"]).read_bytes()
    (tmp_path / "log.parquet").write_bytes(whole[:-20])
    (line,) = refused(tmp_path / "log.parquet")
    assert line.startswith("log.parquet: cannot be read as Parquet (")


def test_bytes_that_flipped_in_parquet_are_no_failing_disk(tmp_path: Path) -> None:
    names = [f"u{n}" for n in range(500)]
    path = write(tmp_path / "log.parquet", user=names, item=names)
    data = bytearray(path.read_bytes())
    for at in (200, 300, 1200):
        data[at] ^= 0xFF
    path.write_bytes(data)
    (line,) = refused(path)
    assert line.startswith("log.parquet: cannot be read as Parquet (")


@pytest.mark.parametrize("twice", ["log", "items"])
def test_a_column_that_parquet_has_twice(tmp_path: Path, twice: str) -> None:
    write(tmp_path / "log.parquet", user=["u"], item=["a"])
    write(tmp_path / "items.parquet", item=["a"], title=["A"])
    table = pq.read_table(tmp_path / f"{twice}.parquet")
    pq.write_table(
        pa.Table.from_arrays([*table.columns, table["item"]], [*table.column_names, "item"]),
        tmp_path / f"{twice}.parquet",
    )
    with pytest.raises(InputError, match=rf"{twice}.parquet: item: stands 2 times") as caught:
        ingest(tmp_path / "log.parquet", tmp_path / "out", items=tmp_path / "items.parquet")
    assert caught.value.code == "ingest.bad_header"


# ---- items and features


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ([10.0, 11.0], "double"),
        ([True, False], "bool"),
        ([["10"], ["11"]], "list<element: string>"),
    ],
)
def test_ids_of_items_are_text_or_whole_numbers(
    tmp_path: Path, column: list[object], kind: str
) -> None:
    """As text 10.0 is no 10, and each item would be without its title."""
    write(tmp_path / "interactions.parquet", user=[1, 1], item=[10, 11])
    write(tmp_path / "items.parquet", item=column, title=["A", "B"])
    with pytest.raises(InputError) as caught:
        ingest(tmp_path, tmp_path / "out", k_core=0)
    assert str(caught.value) == (
        f"{tmp_path / 'items.parquet'}: item: is a column of {kind}; text or whole numbers were expected."
    )


def test_items_of_another_log(tmp_path: Path) -> None:
    (tmp_path / "interactions.csv").write_bytes(GOOD)
    (tmp_path / "items.csv").write_text("item,title\n1,A\n2,B\n")
    with pytest.raises(InputError) as caught:
        ingest(tmp_path, tmp_path / "out", k_core=0)
    assert caught.value.code == "ingest.none_listed"
    assert str(caught.value) == (
        f"{tmp_path / 'interactions.csv'}: none of its 2 items, 'a' the first, is listed in "
        f"{tmp_path / 'items.csv'}; name the file that lists them with --items."
    )
    (tmp_path / "items.csv").write_text("item,title\n1,A\nb,B\n")  # one is enough
    ingest(tmp_path, tmp_path / "out", k_core=0)


def test_an_unclosed_quote_in_the_items(tmp_path: Path) -> None:
    (tmp_path / "interactions.csv").write_bytes(GOOD)
    (tmp_path / "items.csv").write_text('item,title\na,5" Glue\nb,"6" Tape\nc,"7 inch\nd,Pen\n')
    with pytest.raises(InputError) as caught:
        ingest(tmp_path, tmp_path / "out", k_core=0)
    assert str(caught.value) == f"{tmp_path / 'items.csv'}:4: row: {NOT_CLOSED}"


def test_features_that_are_an_archive(tmp_path: Path) -> None:
    (tmp_path / "interactions.csv").write_bytes(GOOD)
    (tmp_path / "items.csv").write_text("item,title\na,A\nb,B\n")
    np.savez(tmp_path / "x.npz", a=np.zeros((2, 3), np.float32))
    (tmp_path / "x.npz").rename(tmp_path / "text_feat.npy")
    with pytest.raises(InputError, match=r"text_feat.npy: is an archive of arrays") as caught:
        ingest(tmp_path, tmp_path / "out", k_core=0)
    assert caught.value.code == "ingest.bad_features"


def test_items_listed_twice_and_features_that_do_not_fit(tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "interactions.csv").write_bytes(GOOD)
    (folder / "items.csv").write_bytes(b"item,title\na,A\nb,\xff\na,again\n,none\n")
    with pytest.raises(InputError) as caught:
        ingest(folder, tmp_path / "out", k_core=0)
    assert str(caught.value).splitlines() == [
        f"{folder / 'items.csv'}:3: title: is not UTF-8",
        f"{folder / 'items.csv'}:4: item: 'a' is listed a second time; once was expected",
        f"{folder / 'items.csv'}:5: item: is empty; an id was expected",
    ]
    (folder / "items.csv").write_bytes(b"item,title\na,A\n")
    np.save(folder / "text_feat.npy", np.zeros((2, 3), np.float32))
    with pytest.raises(InputError, match=r"float32 of shape \(2, 3\); floats of shape \(1, d\)"):
        ingest(folder, tmp_path / "out", k_core=0)
    np.save(folder / "text_feat.npy", np.zeros((1, 3), np.float32))
    with pytest.raises(
        InputError, match=r"1 items with interactions, 'b' the first, are not listed"
    ):
        ingest(folder, tmp_path / "out", k_core=0)
    (folder / "items.csv").write_bytes(b"item,title\na,A\nb,B\n")
    np.save(folder / "text_feat.npy", np.array([[1.0], [np.nan]], np.float32))
    with pytest.raises(InputError, match=r"row 1 \(item 'b'\) holds NaN or infinity"):
        ingest(folder, tmp_path / "out", k_core=0)
    (folder / "text_feat.npy").write_bytes(b"not numpy")
    with pytest.raises(InputError, match="cannot be read as an array"):
        ingest(folder, tmp_path / "out", k_core=0)
    assert not (tmp_path / "out").exists()


# ---- RecBole


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("user_id:token\titem_id\nu\ta\n",
         "x.inter:1: 'item_id': has no known type; name:type with one of token, token_seq, float, float_seq was expected."),
        ("user_id:token\titem_id:token_seq\nu\ta\n",
         "x.inter:1: item_id: is of type token_seq; token was expected."),
        ("user_id:token\titem_id:token\ttimestamp:float\nu\ta\t1\nu\tb\tx\nu\tc\n",
         "x.inter:3: timestamp: 'x' is not a number as the rows above have it"),
    ],
)  # fmt: skip
def test_recbole(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.inter").write_text(text)
    assert refused(tmp_path / "x.inter")[0] == said


# ---- JSON lines


def review(user: object = "R", item: object = "B", time: object = 5) -> bytes:
    return json.dumps({"reviewerID": user, "asin": item, "unixReviewTime": time}).encode() + b"\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"reviewerID": "R", \n', "line: is not JSON (Expecting property name enclosed in double quotes)"),
        (b"{'reviewerID': 'R'}\n", "line: is not JSON (Expecting property name enclosed in double quotes)"),
        (b"[1, 2]\n", "line: is not a JSON object"),
        (b"[" * 100_000 + b"\n", "line: is not JSON (unreadable)"),
        (b'{"reviewerID": "\xff", "asin": "B", "unixReviewTime": 5}\n', "line: is not UTF-8"),
        (review(user=""), "reviewerID: is empty; an id was expected"),
        (review(user=None), "reviewerID: is empty; an id was expected"),
        (review(item=12), "asin: is 12; a string was expected"),
        (review(user="a\0"), "reviewerID: holds a NUL byte"),
        (b'{"reviewerID": "\\ud83d", "asin": "B", "unixReviewTime": 5}\n', "reviewerID: is not UTF-8"),
        (review(time=None), "unixReviewTime: is empty; a number was expected"),
        (review(time=-4), "unixReviewTime: '-4' is negative"),
        (review(time=float("nan")), "unixReviewTime: 'nan' is not a finite number"),
        (review(time=[1]), "unixReviewTime: is neither a number nor text; a time was expected"),
        (review(time=10**30), "unixReviewTime: '1.8446744073709552e+19' is out of range; less than 2**63 was expected"),
    ],
)  # fmt: skip
def test_lines_of_json(tmp_path: Path, line: bytes, said: str) -> None:
    (tmp_path / "meta_Toys.json").write_text('{"asin": "B"}\n')
    (tmp_path / "Toys.json").write_bytes(review() + b"\n" + line + review(time=7))
    assert refused(tmp_path / "Toys.json") == [f"Toys.json:3: {said}"]


def test_json_that_ends_early(tmp_path: Path) -> None:
    (tmp_path / "meta_Toys.json").write_text('{"asin": "B"}\n')
    whole = gzip.compress(b"".join(review(time=n * n) for n in range(5000)))
    (tmp_path / "Toys.json.gz").write_bytes(whole[: len(whole) // 2])
    (line,) = refused(tmp_path / "Toys.json.gz", format="amazon2018")
    assert line.endswith(": file: the gzip stream ends early or is damaged; fetch it again")


def test_metadata_lines(tmp_path: Path) -> None:
    (tmp_path / "Toys.json").write_bytes(review())
    (tmp_path / "meta_Toys.json").write_text('{"asin": "B"}\nnope\n{"title": "x"}\n')
    assert refused(tmp_path / "Toys.json") == [
        "meta_Toys.json:2: line: is not JSON (Expecting value)",
        "meta_Toys.json:3: asin: is empty; an id was expected",
    ]


def test_texts_nested_without_end(tmp_path: Path) -> None:
    deep = "[" * 500 + "]" * 500
    (tmp_path / "Toys.json").write_bytes(review())
    (tmp_path / "meta_Toys.json").write_text(f'{{"asin": "B", "title": {deep}}}\n')
    assert refused(tmp_path / "Toys.json") == [
        "meta_Toys.json:1: line: is nested too deep for texts"
    ]
    parts = {"train": {"0": [1]}, "val": {}, "test": {}, "umap": {"u": 0}, "smap": {"B": 1}}
    folder = tmp_path / "json"
    folder.mkdir()
    for name, value in parts.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    (folder / "meta_data.json").write_text(f'{{"B": {{"title": {deep}}}}}')
    with pytest.raises(InputError, match=r"meta_data.json: B: is nested too deep") as caught:
        ingest(folder, tmp_path / "out")
    assert caught.value.code == "ingest.bad_json"
    (folder / "meta_data.json").write_text('{"C": {"title": "Glue"}}')
    with pytest.raises(InputError, match="lists none of the items") as caught:
        ingest(folder, tmp_path / "out")
    assert caught.value.code == "ingest.bad_index"
    (folder / "smap.json").unlink()
    with pytest.raises(InputError, match=r"smap.json: is not there") as caught:
        ingest(folder, tmp_path / "out", format="recformer")
    assert caught.value.code == "ingest.missing_file"
