"""A store that lies elsewhere: the same numbers, each shard once, checked before a byte is used, within the limit."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import cache.transfer
from cache.errors import RemoteError, StoreError, UsageError
from cache.mirror import Shards, open_mirror
from cache.remote import locate
from cache.store import Store
from tests.share.conftest import Place
from tests.share.test_share import SHARD, pushed, refused


def opened(place: Place, *, limit: int = 10**9, pin: str = "") -> Store:
    where = locate(place.url + (f"@{pin}" if pin else ""))
    return open_mirror(where, limit=limit, report=lambda done, total: None)


def kept_bytes(kept: Path) -> int:
    return sum(p.stat().st_size for p in (kept / "shards").iterdir() if p.name[0] != ".")


def fetched(store: Store) -> int:
    assert isinstance(store.bring, Shards)
    return store.bring.fetched


def test_every_batch_reads_as_it_does_at_home(store, any_place, kept):
    pushed(store, any_place)
    mirror = opened(any_place)
    assert (mirror.names, mirror.label) == (["one", "two"], any_place.url)
    assert mirror.plan.digest == store.plan.digest
    assert fetched(mirror) == 0
    for name in store.names:
        here, there = store.scores(name), mirror.scores(name)
        for index in np.random.default_rng(0).permutation(len(here)):
            np.testing.assert_array_equal(there[index], here[index])
    shards = [
        e.size for n in store.names for e in store.scores(n).manifest.files if "/c." in e.path
    ]
    assert fetched(mirror) == sum(shards) == kept_bytes(kept)


def test_only_the_shards_that_are_touched_come(store, place, kept):
    pushed(store, place)
    mirror = opened(place)
    reader = mirror.scores("one")
    reader[0]
    assert fetched(mirror) == reader.layout.shard_size(0)
    reader[0]
    reader[reader.layout.per_shard - 1]  # of the same shard
    assert fetched(mirror) == reader.layout.shard_size(0)


def test_a_second_process_finds_everything_here(store, place, kept):
    pushed(store, place)
    first = opened(place)
    scores = first.scores("one")
    wanted = [scores[index].copy() for index in range(len(scores))]
    place.delete(SHARD)  # nothing but manifests are asked for again
    place.delete("plan/plan.parquet")
    again = opened(place)
    for index, scores_TC in enumerate(wanted):
        np.testing.assert_array_equal(again.scores("one")[index], scores_TC)
    assert fetched(again) == 0


def test_the_limit_holds_and_the_least_recently_used_leave(store, place, kept):
    pushed(store, place)
    size = store.scores("one").layout.shard_size(0)
    mirror = opened(place, limit=2 * size)
    reader = mirror.scores("one")
    assert len(reader.layout.shards) == 3
    reader._max_maps = 1  # so that each touch asks for the file again

    def touch(shard: int) -> bool:
        before = fetched(mirror)
        np.testing.assert_array_equal(
            reader[shard * reader.layout.per_shard],
            store.scores("one")[shard * reader.layout.per_shard],
        )
        assert kept_bytes(kept) <= 2 * size
        return fetched(mirror) > before

    # by hand, with room for two: 0 and 1 come, 0 is used, 2 drives out 1, 0 is there, 1 comes again
    assert [touch(shard) for shard in (0, 1, 0, 2, 0, 1)] == [True, True, False, True, False, True]


def test_a_limit_below_one_shard_is_refused(store, place, kept):
    pushed(store, place)
    with pytest.raises(UsageError, match="--cache-limit"):
        opened(place, limit=10).scores("one")[0]


@pytest.mark.parametrize(
    ("harm", "code"),
    [
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "store.wrong_digest"),
        (lambda data: data[:-1], "store.wrong_size"),
        (lambda data: data + b"\0", "store.wrong_size"),
        (None, "store.missing"),
    ],
    ids=["flipped", "short", "long", "missing"],
)
def test_a_damaged_shard_is_refused_before_a_byte_is_used(store, place, kept, harm, code):
    pushed(store, place)
    good = place.get(SHARD)
    place.set(SHARD, harm(good)) if harm else place.delete(SHARD)
    reader = opened(place).scores("one")
    reader[0]
    assert SHARD in refused(code, lambda: reader[reader.layout.per_shard])
    place.set(SHARD, good)
    np.testing.assert_array_equal(
        reader[reader.layout.per_shard], store.scores("one")[reader.layout.per_shard]
    )


def test_a_shard_that_was_changed_here_is_fetched_again(store, place, kept):
    """By another process, after this one had it: existence is no evidence."""
    pushed(store, place)
    opened(place).scores("one")[0]
    (path,) = [p for p in (kept / "shards").iterdir() if p.name[0] != "."]
    data = path.read_bytes()
    path.write_bytes(data[::-1])
    mirror = opened(place)
    np.testing.assert_array_equal(mirror.scores("one")[0], store.scores("one")[0])
    assert fetched(mirror) == len(data)


def test_a_shard_that_changes_between_check_and_use_is_refused(store, place, kept):
    pushed(store, place)
    mirror = opened(place)
    real = mirror.bring
    assert real is not None

    def swapped(folder, entry):
        path = real(folder, entry)
        path.write_bytes(bytes(entry.size))
        return path

    reader = Store(path=mirror.path, dataset=mirror.dataset, plan=mirror.plan, bring=swapped)
    with pytest.raises(StoreError) as caught:
        reader.scores("one")[0]
    assert caught.value.code == "store.wrong_digest"


def test_a_shard_that_another_process_removed_in_between_comes_again(store, place, kept):
    pushed(store, place)
    mirror = opened(place)
    real, removed = mirror.bring, []

    def racing(folder, entry):
        path = real(folder, entry)
        if not removed:
            removed.append(path)
            path.unlink()
        return path

    reader = Store(path=mirror.path, dataset=mirror.dataset, plan=mirror.plan, bring=racing)
    np.testing.assert_array_equal(reader.scores("one")[0], store.scores("one")[0])
    assert len(removed) == 1


def test_a_pin_holds_here_too(store, place, kept):
    digest = pushed(store, place).digest
    assert opened(place, pin=digest).names == ["one", "two"]
    refused("share.wrong_pin", lambda: opened(place, pin="sha256:" + "0" * 64))


def test_a_damaged_plan_leaves_no_mirror(store, place, kept):
    pushed(store, place)
    place.set("plan/plan.parquet", place.get("plan/plan.parquet")[::-1])
    refused("store.wrong_digest", lambda: opened(place))
    assert [p for p in (kept / "mirrors").rglob("*") if p.is_file()] == []


def test_a_store_that_has_grown_is_seen(store, place, kept):
    pushed(store, place, ["one"])
    assert opened(place).names == ["one"]
    pushed(store, place)
    assert opened(place).names == ["one", "two"]


def test_stale_parts_of_dead_processes_leave(store, place, kept):
    pushed(store, place)
    (kept / "shards").mkdir(parents=True)
    for name, age in ((".partial-old", 2 * 86_400), (".partial-new", 60)):
        path = kept / "shards" / name
        path.write_bytes(b"part")
        then = path.stat().st_mtime - age
        os.utime(path, (then, then))
    opened(place).scores("one")[0]
    assert [p.name for p in (kept / "shards").iterdir() if p.name[0] == "."] == [".partial-new"]


def test_files_that_vanish_while_room_is_made_are_nobodys_trouble(store, place, kept, monkeypatch):
    """Other processes lock, fetch and make room in the same folder."""
    pushed(store, place)
    reader = opened(place).scores("one")
    real = Path.iterdir

    def seen(folder):
        yield from real(folder)
        if folder.name == "shards":
            yield folder / ".lock-gone"
            yield folder / "gone"

    monkeypatch.setattr(Path, "iterdir", seen)
    np.testing.assert_array_equal(reader[0], store.scores("one")[0])


def test_a_shard_that_is_driven_out_is_brought_again(store, place, kept):
    pushed(store, place)
    mirror = opened(place)
    reader = mirror.scores("one")
    reader._max_maps = 1
    for _ in range(2):
        for shard in (0, 1):  # each touch asks for the file, which somebody has removed
            np.testing.assert_array_equal(
                reader[shard * reader.layout.per_shard],
                store.scores("one")[shard * reader.layout.per_shard],
            )
            shutil.rmtree(kept / "shards")


def test_a_first_opening_that_broke_off_goes_on_from_there(store, place, kept, monkeypatch):
    pushed(store, place)
    asked, real = [], cache.transfer.fetch

    def failing(remote, name, *more):
        if name == "plan/plan.parquet":
            raise RemoteError("the connection ended.", code="remote.cut")
        return fetching(remote, name, *more)

    def fetching(remote, name, *more):
        asked.append(name)
        return real(remote, name, *more)

    monkeypatch.setitem(cache.transfer.run_jobs.__kwdefaults__, "workers", 1)
    monkeypatch.setattr(cache.transfer, "fetch", failing)
    with pytest.raises(RemoteError):
        opened(place)
    first = {*asked}
    assert {"dataset/items.parquet", "dataset/sequences.parquet"} <= first
    monkeypatch.setattr(cache.transfer, "fetch", fetching)
    asked.clear()
    opened(place)
    assert "plan/plan.parquet" in asked
    assert first.isdisjoint(asked)
    (folder,) = (kept / "mirrors").iterdir()
    assert [p.name for p in folder.iterdir()] == [place.url.rpartition("/")[2]]
