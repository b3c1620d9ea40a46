"""A shared store: the same bytes at the other end, or nothing; what is there already is not moved again."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

import cache.dataset
from cache.dataset import open_dataset
from cache.describe import describe
from cache.digest import canonical_json, sha256_bytes
from cache.errors import CkdError, RemoteError, StoreError, UsageError
from cache.outline import outline_here
from cache.remote import locate
from cache.store import Store
from cache.transfer import partial
from cache.verify import verify
from pipeline.build import build
from pipeline.ingest import ingest
from pipeline.share import Moved, merge, pull, push, stage_of
from tests.fakes import TableTeacher, tiny_dataset, tiny_plan, tiny_store, tree
from tests.share.conftest import Place

SHARD = "scores/one/scores.zarr/c.1.0.0"
#: one file of every kind
FILES = [
    "dataset/sequences.parquet",
    "plan/plan.parquet",
    SHARD,
    "scores/one/scores.zarr/zarr.json",
]


def silent(done: int, total: int) -> None:
    """Nobody watches."""


def pushed(store: Store, place: Place, teachers: Sequence[str] = ()) -> Moved:
    return push(store.path, locate(place.url), teachers, silent)


def pulled(place: Place, target: Path, teachers: Sequence[str] = (), pin: str = "") -> Moved:
    return pull(locate(place.url + (f"@{pin}" if pin else "")), target, teachers, silent)


def refused(code: str, work: Callable[[], object]) -> str:
    with pytest.raises(CkdError) as caught:
        work()
    assert caught.value.code == code, caught.value
    return str(caught.value)


def shown(folder: Path) -> list[str]:
    """What a person sees in a folder."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def resealed(data: bytes, change: Callable[[dict], None]) -> bytes:
    """A manifest as a hostile publisher would write it: canonical."""
    value = json.loads(data)
    change(value)
    return canonical_json(value) + b"\n"


def test_what_is_pulled_is_what_was_pushed(store, any_place, tmp_path):
    sent = pushed(store, any_place)
    got = pulled(any_place, tmp_path / "copies" / "toys")
    assert tree(tmp_path / "copies" / "toys") == tree(store.path)
    assert verify(tmp_path / "copies" / "toys") == []
    assert shown(tmp_path / "copies") == ["toys"]
    # by hand: everything but the four manifests
    files = [p for p in store.path.rglob("*") if p.is_file() and p.name != "manifest.json"]
    assert (sent.files, got.files) == (len(files), len(files))
    assert sent.bytes == got.bytes == sum(p.stat().st_size for p in files)
    assert sent.digest == got.digest == describe(store).digest


def test_the_digest_of_a_store_is_that_of_its_parts(store, place):
    parts = {
        "dataset": store.dataset.digest,
        "plan": store.plan.digest,
        "scores": {name: store.scores(name).digest for name in ("one", "two")},
    }
    text = json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()
    assert pushed(store, place).digest == sha256_bytes(text)


def test_doing_it_twice_moves_nothing(store, any_place, tmp_path):
    first = pushed(store, any_place)
    again = pushed(store, any_place)
    assert (again.files, again.kept) == (0, first.files)
    pulled(any_place, tmp_path / "toys")
    before = tree(tmp_path / "toys")
    again = pulled(any_place, tmp_path / "toys")
    assert (again.files, again.kept) == (0, first.files)
    assert tree(tmp_path / "toys") == before


def test_chosen_score_sets_travel_alone_and_others_join_them(store, any_place, tmp_path):
    pushed(store, any_place, ["one"])
    assert not any(name.startswith("scores/two") for name in any_place.names())
    pulled(any_place, tmp_path / "toys")
    assert Store.open(tmp_path / "toys").names == ["one"]
    sent = pushed(store, any_place, ["two"])
    assert sent.kept == 4  # dataset and plan: two files each
    got = pulled(any_place, tmp_path / "toys")
    assert got.files == sent.files
    assert tree(tmp_path / "toys") == tree(store.path)
    pulled(any_place, tmp_path / "second", ["two"])
    assert Store.open(tmp_path / "second").names == ["two"]


def test_item_vectors_and_unfinished_work_stay_behind(store, place, tmp_path):
    (store.path / "dataset" / "vectors" / "text").mkdir(parents=True)
    (store.path / "dataset" / "vectors" / "text" / "vectors.npy").write_bytes(b"text")
    (store.path / "scores" / ".work-three").mkdir()
    (store.path / "scores" / ".work-three" / "journal.jsonl").write_bytes(b"")
    assert pushed(store, place).unfinished == ("three",)
    assert [name for name in place.names() if "vectors" in name or ".work" in name] == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("harm", "code"),
    [
        (lambda data: bytes([data[0] ^ 4]) + data[1:], "store.wrong_digest"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 128]), "store.wrong_digest"),
        (lambda data: data[:-1], "store.wrong_size"),
        (lambda data: b"", "store.wrong_size"),
        (lambda data: data + b"\0", "store.wrong_size"),
        (None, "store.missing"),
    ],
    ids=["head", "tail", "short", "empty", "long", "missing"],
)
def test_a_damaged_object_is_refused_by_name(store, place, tmp_path, name, harm, code):
    pushed(store, place)
    good = place.get(name)
    place.set(name, harm(good)) if harm else place.delete(name)
    (tmp_path / "copies").mkdir()
    message = refused(code, lambda: pulled(place, tmp_path / "copies" / "toys"))
    assert name in message
    assert shown(tmp_path / "copies") == []
    place.set(name, good)
    pulled(place, tmp_path / "copies" / "toys")
    assert tree(tmp_path / "copies" / "toys") == tree(store.path)


def test_a_damaged_object_is_mended_by_pushing_again(store, place, tmp_path, kept):
    pushed(store, place)
    place.set(SHARD, place.get(SHARD)[::-1])  # of the same size
    place.delete("plan/plan.parquet")
    again = pushed(store, place)
    assert again.files == 2
    pulled(place, tmp_path / "toys")
    assert tree(tmp_path / "toys") == tree(store.path)


def test_what_does_not_belong_there_is_never_fetched(store, place, tmp_path):
    pushed(store, place)
    for name in ("notes.txt", "scores/one/extra.bin", "dataset/run.sh", "scores/odd/file"):
        place.set(name, b"#!/bin/sh\n")
    got = pulled(place, tmp_path / "toys")
    assert tree(tmp_path / "toys") == tree(store.path)
    assert got.unfinished == ("odd",)


def test_a_damaged_store_is_not_pushed(store, place):
    path = store.path / SHARD
    path.write_bytes(path.read_bytes()[::-1])
    assert SHARD in refused("store.wrong_digest", lambda: pushed(store, place))
    assert [name for name in place.names() if name.endswith("manifest.json")] == []
    assert SHARD not in place.names()


def test_half_a_push_is_unfinished_and_never_small(store, place, tmp_path):
    """Whatever manifest is the last that got through, dataset's is not there: no store is seen."""
    pushed(store, place)
    order = ["scores/one", "scores/two", "plan", "dataset"]
    for part in reversed(order):
        place.delete(f"{part}/manifest.json")
        message = refused("store.unfinished", lambda: pulled(place, tmp_path / "toys"))
        assert "kd-cache push" in message
    assert not (tmp_path / "toys").exists()


def test_an_unfinished_score_set_is_told_and_left_out(store, place, tmp_path):
    pushed(store, place)
    place.delete("scores/two/manifest.json")
    assert pulled(place, tmp_path / "toys").unfinished == ("two",)
    assert Store.open(tmp_path / "toys").names == ["one"]
    message = refused("scores.missing", lambda: pulled(place, tmp_path / "again", ["two"]))
    assert "there: one" in message


def test_no_store_there(place, tmp_path):
    assert "kd-cache push" in refused("store.missing", lambda: pulled(place, tmp_path / "toys"))
    assert not (tmp_path / "toys").exists()


def test_a_pin_refuses_anything_else(store, place, tmp_path):
    sent = pushed(store, place)
    pulled(place, tmp_path / "whole", pin=sent.digest)
    set_digest = store.scores("one").digest
    pulled(place, tmp_path / "one", ["one"], pin=set_digest)
    chosen = pulled(place, tmp_path / "chosen", ["one"]).digest
    pulled(place, tmp_path / "again", ["one"], pin=chosen)
    for teachers, pin in (
        ([], set_digest),
        ([], chosen),
        (["two"], set_digest),
        (["one"], sent.digest),
    ):
        message = refused(
            "share.wrong_pin",
            lambda teachers=teachers, pin=pin: pulled(place, tmp_path / "no", teachers, pin=pin),
        )
        assert pin in message
    assert not (tmp_path / "no").exists()


def test_a_pin_refuses_a_store_that_has_grown(store, place, tmp_path):
    old = pushed(store, place, ["one"])
    pushed(store, place)
    message = refused("share.wrong_pin", lambda: pulled(place, tmp_path / "no", pin=old.digest))
    assert describe(store).digest in message
    pulled(place, tmp_path / "old", ["one"], pin=old.digest)


def test_another_store_there_is_left_alone(store, any_place, tmp_path):
    pushed(store, any_place)
    before = any_place.content()
    other = tiny_store(tmp_path / "other", users=13)
    message = refused("store.exists", lambda: pushed(other, any_place))
    assert store.plan.digest in message
    assert other.plan.digest in message
    twin = Store.create(tmp_path / "twin", store.dataset, store.plan)
    build(TableTeacher("one", seed=9), twin)
    message = refused("store.exists", lambda: pushed(twin, any_place))
    assert store.scores("one").digest in message
    assert any_place.content() == before


def test_another_store_here_is_left_alone(store, place, tmp_path):
    pushed(store, place)
    other = tiny_store(tmp_path / "other", users=13)
    before = tree(other.path)
    message = refused("store.lineage", lambda: pulled(place, other.path))
    assert store.plan.digest in message
    assert other.plan.digest in message
    assert tree(other.path) == before
    twin = Store.create(tmp_path / "twin", store.dataset, store.plan)
    build(TableTeacher("two", seed=9), twin)
    before = tree(twin.path)
    refused("store.exists", lambda: pulled(place, twin.path))
    assert tree(twin.path) == before


@pytest.mark.parametrize("part", ["dataset", "plan", "scores/one"])
def test_a_manifest_of_another_store_is_refused(store, place, tmp_path, part):
    other = tiny_store(tmp_path / "other", users=13)
    build(TableTeacher("one"), other, shard_bytes=400)
    pushed(store, place)
    place.set(f"{part}/manifest.json", (other.path / part / "manifest.json").read_bytes())
    message = refused("store.lineage", lambda: pulled(place, tmp_path / "toys"))
    assert "sha256:" in message
    assert not (tmp_path / "toys").exists()


def test_two_manifests_that_changed_places_are_refused(store, place, tmp_path):
    pushed(store, place)
    names = [f"scores/{name}/manifest.json" for name in ("one", "two")]
    first, second = map(place.get, names)
    place.set(names[0], second)
    place.set(names[1], first)
    with pytest.raises(CkdError, match="scores/") as caught:
        pulled(place, tmp_path / "toys")
    # files come in parallel: one of another size may be met before one of the same size
    assert caught.value.code in {"store.wrong_digest", "store.wrong_size"}
    assert not (tmp_path / "toys").exists()


@pytest.mark.parametrize(
    "name",
    ["../out", "/out", "a/../../out", "C:\\out", "\\\\h\\s", "a//b", "./a", "a/.", "con", "n\0l",
     "x" * 300, "é", "a b", "", "scores.zarr/c.1.0.0/in"],
)  # fmt: skip
def test_a_hostile_name_is_refused_and_nothing_is_written(store, place, tmp_path, name):
    pushed(store, place)

    def change(value):
        value["files"].append({**value["files"][0], "path": name})
        value["files"].sort(key=lambda entry: entry["path"])

    sealed = "scores/one/manifest.json"
    place.set(sealed, resealed(place.get(sealed), change))
    before = tree(tmp_path)
    refused("store.unsafe_name", lambda: pulled(place, tmp_path / "toys"))
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["manifest.json", ".partial-x", "vectors/a.npy"])
def test_a_name_with_a_meaning_of_its_own_is_never_published(store, place, tmp_path, name):
    pushed(store, place)

    def change(value):
        value["files"].append({"path": name, "size": 3, "sha256": sha256_bytes(b"abc")})
        value["files"].sort(key=lambda entry: entry["path"])

    forged = resealed(place.get("dataset/manifest.json"), change)
    place.set(f"dataset/{name}", b"abc")
    place.set("dataset/manifest.json", forged)

    def reparent(parents: dict[str, str]) -> Callable[[dict], None]:
        return lambda value: value["parents"].update(parents)

    plan = resealed(place.get("plan/manifest.json"), reparent({"dataset": sha256_bytes(forged)}))
    place.set("plan/manifest.json", plan)
    for teacher in ("one", "two"):
        place.delete(f"scores/{teacher}/manifest.json")
    with pytest.raises(CkdError):
        pulled(place, tmp_path / "toys")
    assert not (tmp_path / "toys").exists()


def test_a_size_that_no_disk_has_is_refused_before_anything_is_fetched(store, place, tmp_path):
    pushed(store, place)
    sealed = "scores/one/manifest.json"
    place.set(
        sealed, resealed(place.get(sealed), lambda value: value["files"][0].update(size=2**61))
    )
    message = refused("disk.too_small", lambda: pulled(place, tmp_path / "toys"))
    assert f"{2**61:,}"[:5] in message
    assert [p for p in (tmp_path / ".pull-toys").rglob("*") if p.is_file()] == []


@pytest.mark.parametrize(
    "bad", [b"", b"{}", b"{}\n", b"[" * 100_000, b'{"format":2}\n', b"\xff" * 9]
)
def test_a_manifest_that_is_none_is_refused(store, place, tmp_path, bad):
    pushed(store, place)
    place.set("plan/manifest.json", bad)
    with pytest.raises(StoreError, match=r"plan/manifest\.json"):
        pulled(place, tmp_path / "toys")
    assert not (tmp_path / "toys").exists()


def test_a_set_that_says_nothing_sensible_of_itself_is_not_published(store, place, tmp_path):
    """Well formed, all digests right, and not a score set over this plan."""
    pushed(store, place)
    sealed = "scores/one/manifest.json"
    place.set(sealed, resealed(place.get(sealed), lambda value: value["settings"].update(tau=-1)))
    refused("store.bad_settings", lambda: pulled(place, tmp_path / "toys"))
    assert not (tmp_path / "toys").exists()


@pytest.mark.parametrize("kind", ["file", "folder", "fifo", "manifest"])
def test_links_in_a_folder_are_refused_and_not_followed(store, kept, tmp_path, kind):
    place = Place(str(tmp_path / "shared"), root=tmp_path / "shared")
    pushed(store, place)
    outside = tmp_path / "outside"
    victim = {
        "folder": place.root / "scores" / "one",
        "manifest": place.root / "plan/manifest.json",
    }
    path = victim.get(kind, place.root / SHARD)
    path.rename(outside)  # even though what it points to is right
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(outside)
    refused("store.not_a_file", lambda: pulled(place, tmp_path / "toys"))
    assert not (tmp_path / "toys").exists()


def test_a_push_through_a_link_is_refused(store, kept, tmp_path):
    place = Place(str(tmp_path / "shared"), root=tmp_path / "shared")
    (tmp_path / "outside").mkdir()
    place.root.mkdir()
    (place.root / "scores").symlink_to(tmp_path / "outside")
    refused("store.not_a_file", lambda: pushed(store, place))
    assert tree(tmp_path / "outside") == {}


def test_two_pushes_of_one_store_at_once_end_in_that_store(store, any_place, tmp_path):
    results: list[Moved | BaseException] = []

    def work() -> None:
        try:
            results.append(pushed(store, any_place))
        except BaseException as error:
            results.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if any_place.url.startswith("s3://teams/number"):
        # rclone is no object store inside: it turns away who writes what is being written, and shows what is half
        # written to who reads it back. Whoever was told so pushes again
        assert {type(one) for one in results} <= {Moved, RemoteError, StoreError}, results
        pushed(store, any_place)
    else:
        assert [type(one) for one in results] == [Moved] * 3, results
    pulled(any_place, tmp_path / "toys")
    assert tree(tmp_path / "toys") == tree(store.path)


def test_two_pulls_at_once_end_in_that_store(store, place, tmp_path):
    pushed(store, place)
    codes: list[str] = []

    def work() -> None:
        try:
            pulled(place, tmp_path / "copies" / "toys")
            codes.append("done")
        except CkdError as error:
            codes.append(error.code)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(codes) <= {"done", "store.busy"}
    assert "done" in codes
    assert tree(tmp_path / "copies" / "toys") == tree(store.path)


@pytest.mark.parametrize("anonymise", [True, False])
def test_nothing_that_was_anonymised_tells_who_bought(place, tmp_path, anonymise):
    """Looked for in every object's bytes and in every cell of the Parquet files, which may be compressed."""
    rows = [
        f"shopper-{user}-of-rome,item{item},{item}"
        for user in range(6)
        for item in range(user, user + 6)
    ]
    (tmp_path / "rows.csv").write_text("\n".join(["user,item,timestamp", *rows]))
    ingest(tmp_path / "rows.csv", tmp_path / "data", k_core=0, anonymise=anonymise)
    dataset = open_dataset(tmp_path / "data")
    store = Store.create(tmp_path / "store", dataset, lambda f, inside: tiny_plan(f, inside))
    build(TableTeacher(), store)
    pushed(store, place)
    told = [name for name, data in place.content().items() if b"of-rome" in data]
    cells = []
    for name, data in place.content().items():
        if name.endswith(".parquet"):
            cells += map(str, pq.read_table(io.BytesIO(data)).to_pylist())
    assert cells
    assert (any("of-rome" in cell for cell in cells) or bool(told)) is not anonymise


def test_merging_takes_in_what_is_new(store, tmp_path):
    twin = Store.create(tmp_path / "twin", store.dataset, store.plan)
    build(TableTeacher("three", seed=3), twin)
    shutil.copytree(store.folder("two"), twin.folder("two"))
    assert merge(store.path, twin.path, silent) == ["three"]
    assert store.names == ["one", "three", "two"]
    assert verify(store.path) == []
    before = tree(store.path)
    assert merge(store.path, twin.path, silent) == []
    assert tree(store.path) == before


def test_merging_refuses_another_plan_with_both_digests(store, tmp_path):
    other = Store.create(
        tmp_path / "other", store.dataset, tiny_plan(tmp_path / "p", store.dataset, seed=3)
    )
    message = refused("store.lineage", lambda: merge(store.path, other.path, silent))
    assert store.plan.digest in message
    assert other.plan.digest in message


def test_merging_refuses_another_set_of_the_same_name_and_takes_in_nothing(store, tmp_path):
    twin = Store.create(tmp_path / "twin", store.dataset, store.plan)
    build(TableTeacher("a-new-one", seed=4), twin)
    build(TableTeacher("two", seed=9), twin)
    before = tree(store.path)
    message = refused("store.exists", lambda: merge(store.path, twin.path, silent))
    assert store.scores("two").digest in message
    assert twin.scores("two").digest in message
    assert tree(store.path) == before


def test_merging_refuses_damage(store, tmp_path):
    twin = Store.create(tmp_path / "twin", store.dataset, store.plan)
    build(TableTeacher("three", seed=3), twin)
    shard = twin.folder("three") / "scores.zarr" / "c.0.0.0"
    shard.write_bytes(shard.read_bytes()[::-1])
    refused("store.wrong_digest", lambda: merge(store.path, twin.path, silent))
    assert store.names == ["one", "two"]


def test_bytes_are_told_as_they_move_and_end_at_their_sum(store, place, tmp_path):
    told: list[tuple[int, int]] = []
    push(store.path, locate(place.url), (), lambda done, total: told.append((done, total)))
    total = sum(
        p.stat().st_size for p in store.path.rglob("*") if p.is_file() and p.name != "manifest.json"
    )
    assert told[-1] == (total, total)
    told.clear()
    pull(locate(place.url), tmp_path / "toys", (), lambda done, total: told.append((done, total)))
    assert told[-1] == (total, total)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("s3://KEY:SECRET@bucket/path", "share.key_in_url"),
        ("s3://bucket/path?X-Amz-Signature=SECRET", "share.key_in_url"),
        ("https://bucket.example/path?sig=SECRET", "share.key_in_url"),
        ("https://bucket.example/path", "share.bad_url"),
        ("s3://", "share.bad_url"),
        ("s3://bucket//x", "share.bad_url"),
        ("hf://OWNER/NAME", "share.bad_url"),
        ("hf://datasets/OWNER", "share.bad_url"),
        ("s3://bucket/x@sha256:12", "share.bad_pin"),
        ("s3://bucket/x@sha256:" + "G" * 64, "share.bad_pin"),
    ],
)
def test_a_url_that_will_not_do_is_refused_without_a_secret(text, code):
    with pytest.raises(UsageError) as caught:
        locate(text)
    assert caught.value.code == code
    assert "SECRET" not in str(caught.value)


def test_a_dataset_is_never_taken_for_a_store(kept, tmp_path):
    dataset = tiny_dataset(tmp_path / "data")
    refused("store.missing", lambda: pull(locate(str(dataset.path)), tmp_path / "x", (), silent))


def test_what_an_earlier_pull_has_fetched_need_not_fit_again(store, place, tmp_path, monkeypatch):
    """All but ten bytes of each file are here; there is room for half of all."""
    pushed(store, place)
    target = tmp_path / "toys"
    files = [file for part in outline_here(store).parts for file in part.files]
    stage_of(target).mkdir()
    for name, entry in files:
        part = partial(stage_of(target), name, entry)
        part.write_bytes((store.path / name).read_bytes()[: max(0, entry.size - 10)])
    half = sum(entry.size for _, entry in files) // 2
    free = SimpleNamespace(total=0, used=0, free=half)
    monkeypatch.setattr("cache.transfer.shutil.disk_usage", lambda _: free)
    pulled(place, target)
    assert tree(target) == tree(store.path)


def test_a_killed_merge_leaves_nothing_once_it_was_run_again(store, tmp_path):
    shutil.copytree(store.path, tmp_path / "mine")
    shutil.rmtree(tmp_path / "mine" / "scores" / "one")
    pid = os.fork()
    if not pid:
        cache.dataset.shutil.copyfile = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        merge(tmp_path / "mine", store.path, silent)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert len(list((tmp_path / "mine" / "scores").glob(".partial-one-*"))) == 1
    assert merge(tmp_path / "mine", store.path, silent) == ["one"]
    assert tree(tmp_path / "mine") == tree(store.path)


@pytest.mark.parametrize("extends", ["\x1b[31mRED", 7])
def test_a_plan_that_goes_on_from_no_digest_is_refused(store, extends):
    """It would be printed."""
    path = store.path / "plan" / "manifest.json"
    path.write_bytes(resealed(path.read_bytes(), lambda m: m["settings"].update(extends=extends)))
    refused("store.inconsistent", lambda: Store.open(store.path))
