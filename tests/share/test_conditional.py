"""Create-only puts against moto, an S3 that others wrote: of two who publish at once the first wins, the other agrees or not.

The small server of tests/places.py fails on demand, but it understands If-None-Match as we do, and rclone's not at all. Here
header, status and body of the refusal are Amazon's as moto knows them.
"""

from __future__ import annotations

import itertools
import logging
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest

from cache.remote import locate, open_remote
from cache.store import Store
from pipeline.build import build
from tests.fakes import TableTeacher, tiny_store, tree
from tests.places import BUCKET, s3_environment
from tests.share.conftest import Place
from tests.share.test_share import pulled, pushed, refused

_numbers = itertools.count()


@pytest.fixture(scope="session")
def moto_address() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    address = "{}:{}".format(*server.get_host_and_port())
    make = urllib.request.Request(f"http://{address}/{BUCKET}", method="PUT")
    with urllib.request.urlopen(make) as answer:
        assert answer.status == 200
    yield address
    server.stop()


@pytest.fixture
def moto(
    moto_address: str, kept: Path, quick_retries: None, monkeypatch: pytest.MonkeyPatch
) -> Place:
    """A prefix of its own on moto's server."""
    for name, value in s3_environment(moto_address).items():
        monkeypatch.setenv(name, value)
    return Place(f"s3://{BUCKET}/moto-{next(_numbers)}/toys")


@pytest.fixture
def other(tmp_path: Path) -> Store:
    """Over another plan: every manifest but the dataset's has another digest."""
    store = tiny_store(tmp_path / "other", batch_size=5)
    build(TableTeacher("one"), store, shard_bytes=400)
    return store


def in_between(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> None:
    """Do `work` once, at the latest moment: the next push has seen that a manifest is not there, and puts its own."""
    put, waiting = obstore.put, [work]

    def late(store: Any, name: str, data: Any, **how: Any) -> Any:
        while waiting and name.endswith("/manifest.json"):
            waiting.pop()()
        return put(store, name, data, **how)

    monkeypatch.setattr(obstore, "put", late)


def test_what_is_pushed_is_pulled_and_a_second_push_agrees(store, moto, tmp_path):
    sent = pushed(store, moto)
    again = pushed(store, moto)
    assert (again.files, again.kept) == (0, sent.files)
    pulled(moto, tmp_path / "toys", pin=sent.digest)
    assert tree(tmp_path / "toys") == tree(store.path)


def test_a_manifest_is_created_once_and_never_replaced(moto):
    remote = open_remote(locate(moto.url))
    name = "plan/manifest.json"
    remote.publish([(name, b"first")])
    remote.publish([(name, b"first")])  # the answer to the first may have been lost
    for late in (b"other", b"longer than that", b""):
        message = refused("store.exists", lambda late=late: remote.publish([(name, late)]))
        assert name in message
        assert b"".join(remote.read(name, 5)) == b"first"


def test_of_two_who_push_the_same_store_at_once_both_end_well(store, moto, tmp_path, monkeypatch):
    twin = Store.open(Path(shutil.copytree(store.path, tmp_path / "twin")))
    told = []
    in_between(monkeypatch, lambda: told.append(pushed(twin, moto)))
    mine = pushed(store, moto)
    assert told[0].digest == mine.digest
    pulled(moto, tmp_path / "toys", pin=mine.digest)
    assert tree(tmp_path / "toys") == tree(store.path)


def test_of_two_who_push_different_stores_at_once_the_second_is_refused(
    store, other, moto, tmp_path, monkeypatch
):
    first = []
    in_between(monkeypatch, lambda: first.append(pushed(other, moto)))
    message = refused("store.exists", lambda: pushed(store, moto))
    assert "manifest.json" in message
    # the winner's store is whole
    pulled(moto, tmp_path / "toys", ["one"], pin=first[0].digest)
    assert tree(tmp_path / "toys") == tree(other.path)


def test_sets_that_two_people_add_at_once_join(store, moto, tmp_path, monkeypatch):
    in_between(monkeypatch, lambda: pushed(store, moto, ["two"]))
    pushed(store, moto, ["one"])
    pulled(moto, tmp_path / "toys")
    assert tree(tmp_path / "toys") == tree(store.path)


def test_another_set_of_the_same_name_is_refused_however_late_it_comes(
    store, moto, tmp_path, monkeypatch
):
    twin = Store.open(Path(shutil.copytree(store.path, tmp_path / "twin")))
    shutil.rmtree(twin.path / "scores" / "two")
    build(TableTeacher("two", seed=9), twin, shard_bytes=400)
    pushed(store, moto, ["one"])
    in_between(monkeypatch, lambda: pushed(twin, moto, ["two"]))
    assert "scores/two" in refused("store.exists", lambda: pushed(store, moto, ["two"]))
    pulled(moto, tmp_path / "toys", ["two"])
    assert tree(tmp_path / "toys" / "scores" / "two") == tree(twin.path / "scores" / "two")
