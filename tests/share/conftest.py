"""Places to share at, as a test sees them: a URL, and hands on the objects behind it."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from cache import objects
from cache.store import Store
from pipeline.build import build
from tests.fakes import TableTeacher, tiny_store
from tests.places import BUCKET, FakeS3, rclone_s3

SHARED_MEMORY = Path("/dev/shm")

_numbers = itertools.count()


class Place:
    """A place and what lies there, by name."""

    def __init__(self, url: str, root: Path | None = None, fake: FakeS3 | None = None) -> None:
        self.url = url
        self.root = root
        self.fake = fake
        self._prefix = url.removeprefix(f"s3://{BUCKET}/") + "/"

    def names(self) -> list[str]:
        if self.fake:
            names = [name.removeprefix(self._prefix) for name in self.fake.objects]
        else:
            names = [
                p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_file()
            ]
        return sorted(names)

    def get(self, name: str) -> bytes:
        if self.fake:
            return self.fake.objects[self._prefix + name]
        return (self.root / name).read_bytes()

    def set(self, name: str, data: bytes) -> None:
        if self.fake:
            self.fake.objects[self._prefix + name] = data
        else:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_bytes(data)

    def delete(self, name: str) -> None:
        if self.fake:
            del self.fake.objects[self._prefix + name]
        else:
            (self.root / name).unlink()

    def content(self) -> dict[str, bytes]:
        return {name: self.get(name) for name in self.names()}


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice, at once, instead of six times within half a minute."""
    no_time = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=2)}
    monkeypatch.setitem(objects.RETRIES, "max_retries", 2)
    monkeypatch.setitem(objects.RETRIES, "backoff", {**no_time, "base": 2})


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This machine's folder for copies."""
    monkeypatch.setenv("KD_CACHE_DIR", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory where the system has that: a disk would spend most of the time on fsync."""
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None) as name:
        yield Path(name)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tiny_store(tmp_path_factory.mktemp("built") / "store")
    build(TableTeacher("one"), store, shard_bytes=400, quality={"ndcg@10": 0.05})
    build(TableTeacher("two", seed=1), store, shard_bytes=400)
    return store.path


@pytest.fixture
def store(built: Path, tmp_path: Path) -> Store:
    """Two score sets of several shards each."""
    return Store.open(Path(shutil.copytree(built, tmp_path / "store")))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    root = tmp_path_factory.mktemp("s3")
    with rclone_s3(root) as environment:
        yield root, environment


@pytest.fixture
def fake_s3(
    kept: Path, quick_retries: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Place, FakeS3]]:
    """A server that fails on demand, and a place on it."""
    fake = FakeS3()
    with fake.serving() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield Place(f"s3://{BUCKET}/shared/toys", fake=fake), fake


@pytest.fixture
def rclone(
    s3_server: tuple[Path, dict[str, str]],
    kept: Path,
    quick_retries: None,
    monkeypatch: pytest.MonkeyPatch,
) -> Place:
    """A real S3 server."""
    root, environment = s3_server
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    path = f"number-{next(_numbers)}/toys"
    return Place(f"s3://{BUCKET}/{path}", root=root / BUCKET / path)


@pytest.fixture
def folder(tmp_path: Path, kept: Path) -> Place:
    """A folder."""
    root = tmp_path / "shared" / "toys"
    return Place(str(root), root=root)


@pytest.fixture(params=["folder", "fake"])
def place(request: pytest.FixtureRequest) -> Place:
    """A folder, and object storage that does all that it should."""
    if request.param == "folder":
        return request.getfixturevalue("folder")
    return request.getfixturevalue("fake_s3")[0]


@pytest.fixture(params=["folder", "fake", "rclone"])
def any_place(request: pytest.FixtureRequest) -> Place:
    """And a real S3 server."""
    if request.param == "fake":
        return request.getfixturevalue("fake_s3")[0]
    return request.getfixturevalue(request.param)
