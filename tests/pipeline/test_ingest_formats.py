"""Every format, from inputs small enough to read, against sequences written down by hand."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache.dataset import Dataset
from cache.errors import CkdError, InputError, StoreError, UsageError
from cache.vectors import read_vectors
from pipeline.ingest import FORMATS, detect, ingest


def sequences(dataset: Dataset) -> dict[str, list[str]]:
    """Item ids by user id, in time order."""
    ids = dataset.user_ids()
    assert ids is not None
    items = dataset.items["item"].to_pylist()
    return {
        user: [items[i] for i in dataset.sequence(row)] for row, user in enumerate(ids.to_pylist())
    }


CSV = "user,item,timestamp\nu2,b,20\nu1,b,5\nu1,a,4\nu2,a,10\nu1,c,6\n"
EXPECTED = {"u1": ["a", "b", "c"], "u2": ["a", "b"]}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("log.csv", CSV),
        ("log.tsv", CSV.replace(",", "\t")),
        ("log.csv", "\ufeff" + CSV.replace("\n", "\r\n")),
        ("log.csv", CSV.replace(",", ";")),
        ("log.csv", CSV.rstrip("\n")),
        ("log.csv", CSV.replace("\nu1", "\n\nu1")),  # blank lines are no rows
        ("log.csv", CSV.replace("timestamp", "position").replace("user", "User_ID")),
        ("log.csv", CSV.replace("u2,b,20", '"u2",b,20.5')),
        ("log.csv", CSV.replace("u2,b,20", "u2,b, +20 ")),  # Arrow cannot, Python can
        (
            "log.csv",
            "user,item,date\nu2,b,2020-01-02\nu1,b,2019-05-05\nu1,a,2019-05-04\n"
            "u2,a,2020-01-01\nu1,c,2019-05-06\n",
        ),
        (
            "log.csv",
            "user,item,date\nu2,b,2020-01-01T02:00Z\nu1,b,2019-05-05\nu1,a,2019-05-04\n"
            "u2,a,2020-01-01T02:00+01:00\nu1,c,2019-05-06\n",
        ),
        ("log.csv", 'note,user,item,timestamp\n"two\nlines",u2,b,20\n' + ",u1,b,5\n,u1,a,4\n,u2,a,1\n,u1,c,6\n"),
    ],
)  # fmt: skip
def test_delimited_text(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    done = ingest(tmp_path / name, tmp_path / "out", k_core=0)
    assert done.format == "csv"
    assert sequences(done.dataset) == EXPECTED
    assert dict(done.dataset.manifest.counts) == {"users": 2, "items": 3, "interactions": 5}


def test_quotes_inside_and_line_ends_inside_are_read(tmp_path: Path) -> None:
    """Also where Arrow's reader alone could not say that each cell is closed."""
    rows = CSV.splitlines()
    notes = ["note", '"a ""b"" c"', '"two\n\n""lines"""', '5" wide', '"6" wide', ""]
    text = "\n".join(f"{note},{row}" for note, row in zip(notes, rows, strict=True))
    for name, data in (("log.csv", text.encode()), ("log.csv.gz", gzip.compress(text.encode()))):
        (tmp_path / name).write_bytes(data)
        assert (
            sequences(ingest(tmp_path / name, tmp_path / f"{name}-out", k_core=0).dataset)
            == EXPECTED
        )


def test_a_long_cell_is_read_and_its_text_emptied(tmp_path: Path) -> None:
    (tmp_path / "interactions.csv").write_text(CSV)
    (tmp_path / "items.csv").write_text(f"item,title\na,{'x' * 200_000}\nb,Tape\n")
    done = ingest(tmp_path, tmp_path / "out", k_core=0)
    assert done.dataset.items["title"].to_pylist() == ["", "Tape.", ""]


def test_the_format_that_is_said_is_the_one_that_is_read(tmp_path: Path) -> None:
    for kind in "ab":
        (tmp_path / kind).mkdir()
        table = pa.table({"user": [kind], "item": ["p"]})
        pq.write_table(table, tmp_path / kind / "interactions.parquet")
    (tmp_path / "a/interactions.csv").write_text("user,item\nc,q\n")
    (tmp_path / "a/items.csv").write_text("item,title\nq,Q\n")
    pq.write_table(pa.table({"item": ["p"], "title": ["P"]}), tmp_path / "a/items.parquet")
    with pytest.raises(UsageError, match=r"interactions.parquet and interactions.csv") as caught:
        ingest(tmp_path / "a", tmp_path / "out", k_core=0)
    assert caught.value.code == "ingest.two_formats"
    for format, user, title in (("csv", "c", "Q."), ("parquet", "a", "P.")):
        done = ingest(tmp_path / "a", tmp_path / format, format=format, k_core=0)
        assert (done.format, [*sequences(done.dataset)]) == (format, [user])
        assert done.dataset.items["title"].to_pylist() == [title]
    with pytest.raises(InputError, match=r"has no interactions file; one of interactions\.csv, "):
        ingest(tmp_path / "b", tmp_path / "out", format="csv", k_core=0)
    with pytest.raises(InputError, match=r"interactions.csv: cannot be read as Parquet"):
        ingest(tmp_path / "a/interactions.csv", tmp_path / "out", format="parquet", k_core=0)
    (tmp_path / "a/interactions.csv").rename(tmp_path / "b/log.txt")
    done = ingest(tmp_path / "b/log.txt", tmp_path / "out", format="csv", k_core=0)
    assert sequences(done.dataset) == {"c": ["q"]}


@pytest.mark.parametrize(("name", "other"), [("t.inter", "recbole"), ("t.train.inter", "unisrec")])
def test_two_formats_are_not_chosen_from(name: str, other: str, tmp_path: Path) -> None:
    (tmp_path / "interactions.csv").write_text("user,item\nu,a\n")
    (tmp_path / name).write_text("user_id:token\titem_id:token\nv\tb\n")
    with pytest.raises(UsageError, match=rf"has interactions.csv and {name}; .*: csv, {other}\."):
        ingest(tmp_path, tmp_path / "out", k_core=0)
    done = ingest(tmp_path, tmp_path / "csv", format="csv", k_core=0)
    assert sequences(done.dataset) == {"u": ["a"]}


def test_two_files_of_one_format_are_not_chosen_from(tmp_path: Path) -> None:
    for name in ("interactions.csv", "interactions.tsv", "items.csv", "items.tsv"):
        (tmp_path / name).write_text(
            "user,item\nu,a\n".replace(",", "," if "csv" in name else "\t")
        )
    with pytest.raises(InputError, match=r"has interactions.csv and interactions.tsv; one was"):
        ingest(tmp_path, tmp_path / "out", k_core=0)
    with pytest.raises(
        InputError, match=r"has items.csv and items.tsv; one was expected, say which"
    ):
        ingest(tmp_path / "interactions.csv", tmp_path / "out", k_core=0)


def test_gzipped_csv(tmp_path: Path) -> None:
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(CSV.encode()))
    assert (
        sequences(ingest(tmp_path / "log.csv.gz", tmp_path / "out", k_core=0).dataset) == EXPECTED
    )


def test_without_time_the_order_of_rows_is_the_order(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item\nu,b\nv,x\nu,a\nu,b\n")
    done = ingest(tmp_path / "log.csv", tmp_path / "out", k_core=0)
    assert sequences(done.dataset) == {"u": ["b", "a", "b"], "v": ["x"]}  # nothing is a duplicate
    assert done.counts.duplicates == 0


def test_ties_in_time_go_by_item_id_and_duplicates_go(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item,time\nu,b,1\nu,a,1\nu,B,1\nu,b,1\nu,b,2\nu,é,2\n")
    done = ingest(tmp_path / "log.csv", tmp_path / "out", k_core=0)
    assert sequences(done.dataset) == {"u": ["B", "a", "b", "b", "é"]}  # byte order
    assert (done.counts.rows, done.counts.duplicates, done.counts.interactions) == (6, 1, 5)


def test_a_folder_of_parquet_with_items_and_features(tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    folder.mkdir()
    events = {"user": [7, 7, 8, 8], "item": ["x", "y", "y", "x"], "timestamp": [2.0, 1.0, 5.0, 9.0]}
    pq.write_table(pa.table(events), folder / "interactions.parquet")
    texts = {
        "item": ["y", "z", "x"],
        "title": ['The "Y"', None, "X &amp; co.."],
        "brand": ["", "b", "Acme"],
    }
    pq.write_table(pa.table(texts), folder / "items.parquet")
    np.save(folder / "text_feat.npy", np.array([[1, 2], [3, 4], [5, 6]], np.float16))
    done = ingest(folder, tmp_path / "out", k_core=0)
    assert done.format == "parquet"
    assert sequences(done.dataset) == {"7": ["y", "x"], "8": ["y", "x"]}
    assert done.dataset.items["item"].to_pylist() == ["x", "y"]  # z has no interactions
    assert done.dataset.items["title"].to_pylist() == ["X & co.", "The Y."]
    assert done.dataset.texts() == ["X & co. Acme.", "The Y."]
    assert done.features == ("text",)
    assert read_vectors(done.dataset, "text").tolist() == [[5.0, 6.0], [1.0, 2.0]]


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary", "timestamp", "date"])
def test_column_types_of_parquet(tmp_path: Path, kind: str) -> None:
    users = pa.array(["u2", "u1", "u1", "u2", "u1"])
    times = pa.array([20, 5, 4, 10, 6])
    if kind == "large_string":
        users = users.cast(pa.large_string())
    elif kind == "dictionary":
        users = users.dictionary_encode()
    elif kind == "string":
        times = times.cast(pa.string())
    elif kind == "timestamp":
        times = times.cast(pa.timestamp("ns", "UTC"))
    else:
        times = times.cast(pa.int32()).cast(pa.date32())
    table = pa.table({"user": users, "item": pa.array(["b", "b", "a", "a", "c"]), "time": times})
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=2)
    assert (
        sequences(ingest(tmp_path / "log.parquet", tmp_path / "out", k_core=0).dataset) == EXPECTED
    )


def test_columns_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("who,what,when,title\nu1,b,5,?\nu1,a,4,?\n")
    (tmp_path / "goods.csv").write_text('code,label,user\na,"Tea, green",1\nb,Coffee,2\n')
    names = {"user": "who", "item": "what", "time": "when", "title": "label"}
    with pytest.raises(InputError, match="item: no column has a usual name for it"):
        ingest(tmp_path / "log.csv", tmp_path / "out", items=tmp_path / "goods.csv", columns=names)
    (tmp_path / "goods.csv").write_text('item_id,label,user\na,"Tea, green",1\nb,Coffee,2\n')
    done = ingest(
        tmp_path / "log.csv",
        tmp_path / "out",
        items=tmp_path / "goods.csv",
        columns=names,
        k_core=0,
    )
    assert sequences(done.dataset) == {"u1": ["a", "b"]}
    assert done.dataset.texts() == ["Tea, green.", "Coffee."]


def test_recbole(tmp_path: Path) -> None:
    (tmp_path / "ml.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "1\t20\t3\t880000002\n1\t3\t4\t880000001.5\n2\t20\t1\t5\n"
    )
    (tmp_path / "ml.item").write_text(
        'item_id:token\tmovie_title:token_seq\tclass:token_seq\n20\tToy "Story"\tFun Kids\n3\tHeat\t\n'
    )
    done = ingest(tmp_path, tmp_path / "out", k_core=0)
    assert done.format == "recbole"
    assert sequences(done.dataset) == {"1": ["3", "20"], "2": ["20"]}
    assert done.dataset.items["item"].to_pylist() == ["20", "3"]  # ids are text: byte order
    assert done.dataset.texts() == ["Toy Story. Fun Kids.", "Heat."]
    again = ingest(tmp_path / "ml.inter", tmp_path / "again", k_core=0)
    assert again.dataset.digest == done.dataset.digest


# ---- UniSRec


def write_unisrec(
    folder: Path,
    known: Mapping[str, Sequence[str]],
    *,
    cut: int = 50,
    upwards: bool = False,
    texts: Mapping[str, str] | None = None,
    features: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """What UniSRec's preprocessing writes for these sequences."""
    folder.mkdir(parents=True, exist_ok=True)
    users = {user: str(i) for i, user in enumerate(known)}
    order = dict.fromkeys(item for sequence in known.values() for item in sequence)
    items = {item: str(i) for i, item in enumerate(order)}
    rows: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for user, sequence in known.items():
        n = len(sequence)
        ends = [*range(1, n - 2)] if upwards else [*range(n - 3, 0, -1)]
        for part, end in [*(("train", e) for e in ends), ("valid", n - 2), ("test", n - 1)]:
            history = " ".join(items[i] for i in sequence[max(0, end - cut) : end])
            rows[part].append(f"{users[user]}\t{history}\t{items[sequence[end]]}")
    head = "user_id:token\titem_id_list:token_seq\titem_id:token"
    for part, lines in rows.items():
        (folder / f"Toys.{part}.inter").write_text("\n".join([head, *lines]) + "\n")
    for name, index in (("user2index", users), ("item2index", items)):
        (folder / f"Toys.{name}").write_text("".join(f"{raw}\t{i}\n" for raw, i in index.items()))
    if texts is not None:
        lines = [f"{items[item]}\t{text} " for item, text in texts.items()]
        (folder / "Toys.text").write_text(
            "\n".join(["item_id:token\ttext:token_seq", *lines]) + "\n"
        )
    if features is not None:
        matrix = np.array([features[item] for item in items], "<f4")
        matrix.tofile(folder / "Toys.feat1CLS")


@pytest.mark.parametrize("upwards", [False, True])
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    known=st.dictionaries(
        st.text("uvwxyz", min_size=1, max_size=3),
        st.lists(st.sampled_from("abcdefgh"), min_size=3, max_size=20),
        min_size=1,
        max_size=6,
    ),
    cut=st.integers(6, 25),
)
def test_unisrec_gives_back_the_sequences(
    tmp_path_factory: pytest.TempPathFactory,
    known: dict[str, list[str]],
    cut: int,
    upwards: bool,
) -> None:
    folder = tmp_path_factory.mktemp("u")
    write_unisrec(folder / "in", known, cut=cut, upwards=upwards)
    assert sequences(ingest(folder / "in", folder / "out").dataset) == known


def test_unisrec_stitches_what_was_cut_at_fifty(tmp_path: Path) -> None:
    rng = random.Random(1)
    known = {
        "long": [f"i{n}" for n in range(200)],
        "again": ["a", "b"] * 80 + ["c"],
        "random": [rng.choice("abc") for _ in range(130)],
        "short": ["i1", "i2", "i3"],
    }
    write_unisrec(tmp_path / "in", known)
    assert sequences(ingest(tmp_path / "in", tmp_path / "out").dataset) == known


def test_unisrec_texts_and_features_follow_the_items(tmp_path: Path) -> None:
    known = {"u": ["z", "a", "m", "z"]}
    write_unisrec(
        tmp_path / "in",
        known,
        texts={"z": "Zed. Toys. ACME.", "a": ".", "m": "x" * 3000},
        features={"z": [1, 2, 3], "a": [4, 5, 6], "m": [7, 8, 9]},
    )
    done = ingest(tmp_path / "in", tmp_path / "out")
    assert done.format == "unisrec"
    assert done.k_core == 0
    assert done.dataset.items["title"].to_pylist() == ["", "x" * 3000, "Zed. Toys. ACME."]
    assert done.counts.items_without_text == 1
    assert read_vectors(done.dataset, "feat1CLS").tolist() == [[4, 5, 6], [7, 8, 9], [1, 2, 3]]


@pytest.mark.parametrize("name", ["item2index", "user2index"])
def test_unisrec_ids_and_texts_stand_once(tmp_path: Path, name: str) -> None:
    """Two indices of one id would be one item from then on."""
    texts = {"z": "Zed.", "a": "A."}
    write_unisrec(tmp_path, {"u": ["z", "a", "m", "z"], "v": ["a", "z", "m"]}, texts=texts)
    path = tmp_path / f"Toys.{name}"
    first, second, *more = path.read_text().splitlines()
    raw = first.partition("\t")[0]
    path.write_text("\n".join([first, f"{raw}\t{second.partition(chr(9))[2]}", *more]) + "\n")
    with pytest.raises(InputError) as caught:
        ingest(tmp_path, tmp_path / "out")
    assert str(caught.value) == f"{path}:2: id: {raw!r} is listed a second time; once was expected"
    path.write_text("\n".join([first, f"x\t{'9' * 5000}", *more]) + "\n")
    with pytest.raises(InputError, match=r":2: index: '9{40}'; whole numbers"):
        ingest(tmp_path, tmp_path / "out")
    path.write_text("\n".join([first, second, *more]) + "\n")
    with (tmp_path / "Toys.text").open("a") as file:
        file.write("0\tAnother\n")
    with pytest.raises(InputError, match=r"Toys.text:4: item_id: 'z' is listed a second time"):
        ingest(tmp_path, tmp_path / "out")


def test_unisrec_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_unisrec(tmp_path / "in", {"u": list("abcdefg")}, cut=3)
    train = tmp_path / "in" / "Toys.train.inter"
    lines = train.read_text().splitlines()
    assert lines[1] == "0\t1 2 3\t4"  # prefix of four, cut at three
    train.write_text("\n".join([lines[0], "0\t1 5 3\t4", *lines[2:]]) + "\n")
    with pytest.raises(InputError) as caught:
        ingest(tmp_path / "in", tmp_path / "out")
    assert str(caught.value) == f"{train}:2: item_id_list: does not continue the user's other rows"
    train.write_text("\n".join(lines) + "\n")
    valid = tmp_path / "in" / "Toys.valid.inter"
    valid.write_text(valid.read_text().replace("2 3 4", "2 3 3"))
    with pytest.raises(InputError) as caught:
        ingest(tmp_path / "in", tmp_path / "out")
    assert str(caught.value) == f"{valid}:2: item_id_list: does not end the user's sequence so far"


def test_unisrec_users_without_a_held_out_row_are_refused(tmp_path: Path) -> None:
    write_unisrec(tmp_path / "in", {"u": list("abcd"), "v": list("abcd")})
    test = tmp_path / "in" / "Toys.test.inter"
    test.write_text("\n".join(test.read_text().splitlines()[:2]) + "\n")
    with pytest.raises(InputError) as caught:
        ingest(tmp_path / "in", tmp_path / "out")
    said = "user_id: '1' has training rows and no row here; one was expected"
    assert str(caught.value) == f"{test}: {said}"


def test_unisrec_pretraining_corpora_have_training_rows_alone(tmp_path: Path) -> None:
    write_unisrec(tmp_path / "in", {"u": list("abcdef")})
    for part in ("valid", "test"):
        (tmp_path / "in" / f"Toys.{part}.inter").unlink()
    assert sequences(ingest(tmp_path / "in", tmp_path / "out").dataset) == {"u": list("abcd")}


def test_unisrec_features_of_another_size_are_refused(tmp_path: Path) -> None:
    write_unisrec(tmp_path / "in", {"u": list("abc")})
    (tmp_path / "in" / "Toys.feat3CLS").write_bytes(bytes(40))
    with pytest.raises(InputError, match=r"has 40 bytes; a multiple of 12 was expected"):
        ingest(tmp_path / "in", tmp_path / "out")


# ---- Amazon and Recformer


def write_lines(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


REVIEWS_2018: list[dict[str, object]] = [
    {"reviewerID": "R1", "asin": "B2", "unixReviewTime": 20, "overall": 1.0, "reviewText": "no"},
    {"reviewerID": "R1", "asin": "B1", "unixReviewTime": 10, "style": {"Size:": "4"}},
    {"reviewerID": "R1", "asin": "B9", "unixReviewTime": 5},
    {"reviewerID": "R2", "asin": "B1", "unixReviewTime": 7, "image": ["x"]},
    {"reviewerID": "R2", "asin": "B1", "unixReviewTime": 7, "image": ["x"]},
]
META_2018: list[dict[str, object]] = [
    {"asin": "B1", "title": "A &amp; B\nGlue...", "brand": "Uhu", "category": ["Office", "Glue &amp; Tape"],
     "description": [], "imageURL": ["http://x/1.jpg", "http://x/2.jpg"]},
    {"asin": "B2", "title": "<span>" + "x" * 2000, "brand": ""},
    {"asin": "B2", "title": "Tape"},
    {"asin": "B3", "title": "nobody bought it"},
]  # fmt: skip
TEXTS_2018 = ["A & BGlue. Office Glue & Tape. Uhu.", "Tape."]


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_amazon_2018_reviews(tmp_path: Path, suffix: str) -> None:
    write_lines(tmp_path / f"Glue_5{suffix}", REVIEWS_2018)
    write_lines(tmp_path / "meta_Glue.json.gz", META_2018)
    done = ingest(tmp_path, tmp_path / "out", k_core=0)
    assert done.format == "amazon2018"
    assert sequences(done.dataset) == {"R1": ["B1", "B2"], "R2": ["B1"]}  # B9 has no metadata
    assert done.dataset.texts() == TEXTS_2018
    assert done.dataset.items["image"].to_pylist() == ["http://x/1.jpg", ""]
    assert (done.counts.rows, done.counts.unlisted, done.counts.duplicates) == (5, 1, 1)


def test_amazon_2018_ratings_have_the_item_first(tmp_path: Path) -> None:
    (tmp_path / "Glue.csv").write_text("B2,R1,1.0,20\nB1,R1,5.0,10\nB9,R1,3.0,5\nB1,R2,2.0,7\n")
    write_lines(tmp_path / "meta_Glue.json", META_2018[::-1])
    done = ingest(tmp_path / "Glue.csv", tmp_path / "out", k_core=0)
    assert done.format == "amazon2018"
    assert sequences(done.dataset) == {"R1": ["B1", "B2"], "R2": ["B1"]}
    assert done.dataset.texts() == TEXTS_2018


def test_amazon_2023(tmp_path: Path) -> None:
    reviews: list[dict[str, object]] = [
        {"user_id": "R1", "parent_asin": "B2", "asin": "V2", "timestamp": 1_600_000_000_001},
        {"user_id": "R1", "parent_asin": "B1", "asin": "V1", "timestamp": 1_600_000_000_000},
    ]
    meta: list[dict[str, object]] = [
        {"parent_asin": "B1", "title": "Glue", "store": "Uhu", "categories": ["Office"],
         "images": [{"thumb": "t.jpg", "large": "l.jpg"}]},
        {"parent_asin": "B2", "title": "Tape", "store": None, "categories": [], "images": []},
    ]  # fmt: skip
    write_lines(tmp_path / "Glue.jsonl.gz", reviews)
    write_lines(tmp_path / "meta_Glue.jsonl.gz", meta)
    done = ingest(tmp_path, tmp_path / "out", k_core=0)
    assert done.format == "amazon2023"
    assert sequences(done.dataset) == {"R1": ["B1", "B2"]}
    assert done.dataset.texts() == ["Glue. Office. Uhu.", "Tape."]
    assert done.dataset.items["image"].to_pylist() == ["l.jpg", ""]


def test_amazon_without_metadata_is_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "meta_Glue.json", META_2018)
    with pytest.raises(InputError, match="has 0 files of reviews or ratings"):
        ingest(tmp_path, tmp_path / "out")
    (tmp_path / "meta_Glue.json").unlink()
    write_lines(tmp_path / "Glue.json", REVIEWS_2018)
    with pytest.raises(UsageError, match="0 files meta_"):
        ingest(tmp_path / "Glue.json", tmp_path / "out")


def test_recformer(tmp_path: Path) -> None:
    files: dict[str, object] = {
        "train": {"0": [1, 0], "1": [0]},
        "val": {"0": [2]},
        "test": {"0": [1]},
        "smap": {"A": 0, "B": 1, "C": 2},
        "umap": {"zoe": 0, "adam": 1},
        "meta_data": {"A": {"title": "Glue", "brand": "Uhu", "category": "Office Glue"}, "X": {}},
    }
    for name, value in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    done = ingest(tmp_path, tmp_path / "out")
    assert done.format == "recformer"
    assert sequences(done.dataset) == {"adam": ["A"], "zoe": ["B", "A", "C", "B"]}
    assert done.dataset.texts() == ["Glue. Office Glue. Uhu.", ".", "."]


# ---- what is true of all


def test_user_ids_can_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(CSV)
    done = ingest(tmp_path / "log.csv", tmp_path / "out", k_core=0, anonymise=True, max_length=2)
    assert done.dataset.user_ids() is None
    assert b"u2" not in (tmp_path / "out" / "sequences.parquet").read_bytes()
    assert done.dataset.manifest.settings["max_length"] == 2


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"format": "xml"}, "ingest.unknown_format"),
        ({"max_length": 0}, "ingest.bad_setting"),
        ({"max_length": 2**16 + 1}, "ingest.bad_setting"),
        ({"format": "csv", "items": Path()}, "ingest.no_source"),
        ({"k_core": -1}, "ingest.bad_setting"),
        ({"columns": {"colour": "c"}}, "ingest.unknown_part"),
        ({"columns": {"title": "name"}}, "ingest.unused_setting"),
        ({"format": "csv", "items": Path("gone.csv")}, "ingest.no_source"),
        ({"format": "unisrec", "columns": {"user": "c"}}, "ingest.unused_setting"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, wrong: dict[str, object], code: str) -> None:
    (tmp_path / "log.csv").write_text(CSV)
    with pytest.raises(CkdError) as caught:
        ingest(tmp_path / "log.csv", tmp_path / "out", **wrong)  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.exit) == (code, 2)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(StoreError, match="never overwritten"):
        ingest(tmp_path / "none.csv", tmp_path / "out")


def test_unknown_sources_name_the_formats(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    for source in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(UsageError) as caught:
            detect(source)
        assert str(caught.value) == (
            f"{source}: is of no format known by its names or first line; say which with --format: "
            f"{', '.join(FORMATS)}."
        )
    with pytest.raises(UsageError, match="is not there"):
        detect(tmp_path / "gone")


def test_real_scientific(shared_data: Path, tmp_path: Path) -> None:
    done = ingest(shared_data / "scientific", tmp_path / "out")
    counts = done.counts
    assert (counts.users, counts.items, counts.interactions) == (8442, 4385, 59427)
    assert (counts.duplicates, counts.items_without_text) == (0, 0)
    # UniSRec's own joined texts stand in a column of their own; only texts that end in " ." differ
    listed = pq.read_table(shared_data / "scientific" / "items.parquet", columns=["item", "text"])
    joined = dict(zip(*listed.to_pydict().values(), strict=True))
    ours = dict(zip(done.dataset.items["item"].to_pylist(), done.dataset.texts(), strict=True))
    assert sum(joined[item] != text for item, text in ours.items()) <= 14


def test_real_scientific_through_unisrec_files(shared_data: Path, tmp_path: Path) -> None:
    direct = ingest(shared_data / "scientific", tmp_path / "direct").dataset
    known = sequences(direct)
    write_unisrec(tmp_path / "in", known)
    assert sequences(ingest(tmp_path / "in", tmp_path / "out").dataset) == known


def test_real_features(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "scientific_mm"
    done = ingest(source, tmp_path / "out")
    assert done.features == ("image", "text")
    rows = pq.read_table(source / "items.parquet", columns=["item"])["item"].to_pylist()
    matrix = np.load(source / "image_feat.npy")
    ours = read_vectors(done.dataset, "image")
    for row in (0, 700, 1584):
        item = done.dataset.items["item"][row].as_py()
        assert np.array_equal(ours[row], matrix[rows.index(item)].astype(np.float32))
