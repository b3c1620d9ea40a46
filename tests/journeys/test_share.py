"""Sharing as teams do it: push to a real S3 server, pull elsewhere, train from the URL; no key is ever printed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache.describe import describe
from cache.store import Store
from pipeline.build import build
from tests.fakes import TableTeacher, tiny_store, tree
from tests.journeys.shell import Done, quick
from tests.places import KEY, SECRET, rclone_s3

URL = "s3://teams/shops/toys"
FIT = "--epochs 1 --hidden 16 --threads 1"


class Bucket:
    """An S3 server, and the environment of somebody who may use it."""

    def __init__(self, root: Path, environment: dict[str, str], kept: Path) -> None:
        self.objects = root / "teams" / "shops" / "toys"
        self.environment = {**environment, "KD_CACHE_DIR": str(kept)}

    def run(self, folder: Path, line: str, *, expect: int = 0, **more: str) -> Done:
        done = quick(folder, line, expect=expect, **{**self.environment, **more})
        for secret in (KEY, SECRET, "wrong-secret"):
            assert secret not in done.out + done.err
        return done


class Road:
    """A home with one store, made without a real teacher: sharing does not ask who spoke."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = path / "cache" / "toys"


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Road:
    road = Road(tmp_path_factory.mktemp("sharing") / "home")
    road.store.parent.mkdir(parents=True)
    store = tiny_store(road.store.with_name("made"), users=40, items=20, batch_size=16)
    build(TableTeacher("unisrec"), store, shard_bytes=2000, quality={"ndcg@10": 0.05})
    store.path.rename(road.store)
    shutil.rmtree(road.store.with_name("made-data"))
    store.log.unlink()
    return road


@pytest.fixture
def home(road: Road, tmp_path: Path) -> Path:
    return Path(shutil.copytree(road.path, tmp_path / "home"))


@pytest.fixture(scope="module")
def bucket(road: Road, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """With the road's store pushed to it."""
    root = tmp_path_factory.mktemp("bucket")
    with rclone_s3(root / "s3") as environment:
        bucket = Bucket(root / "s3", environment, root / "kept")
        told = bucket.run(road.path, f"kd-cache push cache/toys {URL}")
        digest = describe(Store.open(road.store)).digest
        assert f"digest {digest}" in told.out.splitlines()
        assert f"next: kd-cache pull {URL}@{digest}" in told.err.splitlines()
        yield bucket


def digest_of(road: Road) -> str:
    return describe(Store.open(road.store)).digest


def test_a_pushed_store_is_pulled_shown_and_verified(road, bucket, tmp_path):
    (tmp_path / "home").mkdir()
    home = tmp_path / "home"
    bucket.run(home, f"kd-cache pull {URL}@{digest_of(road)}")
    assert tree(home / "cache" / "toys") == tree(road.store)
    assert f"digest {digest_of(road)}" in bucket.run(home, "kd-cache show").out.splitlines()
    bucket.run(home, "kd-cache verify")
    again = bucket.run(home, f"kd-cache pull {URL}")
    assert "fetched 0 files, 0 B" in again.out


def test_pushing_again_sends_nothing(road, bucket):
    before = tree(bucket.objects)
    assert "sent 0 files, 0 B" in bucket.run(road.path, f"kd-cache push cache/toys {URL}").out
    assert tree(bucket.objects) == before


def test_a_wrong_key_is_one_sentence_and_nothing_else(road, bucket, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    for folder, line in (
        (road.path, f"kd-cache push cache/toys {URL}"),
        (home, f"kd-cache pull {URL}"),
        (home, f"kd-student fit --cache {URL}"),
    ):
        done = bucket.run(folder, line, expect=7, AWS_SECRET_ACCESS_KEY="wrong-secret")
        assert len(done.lines) == 1
        assert "[remote.denied]" in done.lines[0]
        assert done.out == ""
    assert tree(home) == {}


def test_a_wrong_pin_is_refused_with_both_digests(road, bucket, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    pin = f"sha256:{'0' * 64}"
    done = bucket.run(home, f"kd-cache pull {URL}@{pin}", expect=3)
    assert pin in done.err
    assert digest_of(road) in done.err
    assert not (home / "cache" / "toys").exists()


def test_a_student_trains_from_the_url_to_the_same_weights(road, bucket, tmp_path):
    """The run is the same run: trained from the URL, it is found finished from the pulled store."""
    home = tmp_path / "home"
    home.mkdir()
    bucket.run(home, f"kd-student fit --cache {URL}@{digest_of(road)} {FIT}")
    shutil.copytree(road.store, home / "cache" / "toys")
    done = bucket.run(home, f"kd-student fit --cache cache/toys {FIT}")
    assert "trained before, nothing to do" in done.err
    bucket.run(home, f"kd-student fit --cache cache/toys --out other {FIT}")
    weights = [
        (home / root / "sasrec-distilled/seed-0/model.safetensors").read_bytes()
        for root in ("runs/toys", "other")
    ]
    assert weights[0] == weights[1]
    bucket.run(home, f"kd-student evaluate runs/toys/sasrec-distilled/seed-0 --cache {URL}")


def test_a_small_cache_is_told_and_too_small_a_one_refused(road, bucket, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    # of its own, so that no shard is here already
    done = bucket.run(
        home,
        f"kd-student fit --cache {URL} --cache-limit 0.000001 {FIT}",
        expect=2,
        KD_CACHE_DIR=str(tmp_path / "own"),
    )
    assert "shards will come again and again" in done.lines[0]
    assert "[mirror.limit]" in done.lines[-1]


def test_stores_of_one_plan_are_merged(road, home):
    twin = home / "cache" / "twin"
    shutil.copytree(home / "cache" / "toys", twin)
    (twin / "scores" / "unisrec").rename(twin / "scores" / "second")
    assert "took in second" in quick(home, "kd-cache merge cache/toys cache/twin").out
    assert "has all scores and factors" in quick(home, "kd-cache merge cache/toys cache/twin").out
    assert Store.open(home / "cache" / "toys").names == ["second", "unisrec"]


@pytest.mark.parametrize(
    ("line", "status", "code"),
    [
        ("kd-cache push cache/toys s3://WHO:PASS@teams/x", 2, "share.key_in_url"),
        ("kd-cache pull ftp://teams/x", 2, "share.bad_url"),
        ("kd-cache pull nosuch", 3, "store.missing"),
        ("kd-cache push nosuch there", 3, "store.missing"),
        ("kd-cache push cache/toys there --teacher nosuch", 3, "scores.missing"),
        ("kd-cache merge cache/toys nosuch", 3, "store.missing"),
        ("kd-student fit --cache s3://teams/x?key=PASS", 2, "share.key_in_url"),
    ],
)
def test_what_cannot_be_done_is_refused(road, line, status, code):
    before = tree(road.path)
    done = quick(road.path, line, expect=status)
    assert f"[{code}]" in done.err
    assert len(done.lines) == 1
    assert "PASS" not in done.err
    assert tree(road.path) == before


def test_without_the_library_the_extra_is_named(road, tmp_path):
    """A module that shadows obstore and is not there."""
    shadow = tmp_path / "shadow" / "obstore"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").write_text("raise ModuleNotFoundError('no', name='obstore')\n")
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv = ['kd-cache', 'pull', 's3://teams/x'];"
         "from pipeline.cli_cache import main; main()"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
        env={"PYTHONPATH": f"{tmp_path / 'shadow'}:{Path(__file__).parents[2]}", "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'ckd-mdsr[share]'" in done.stderr
