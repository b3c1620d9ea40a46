"""What the attacks start from: stores, places, a world outside that must not change, commands in this process."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

from cache import objects
from cache.digest import canonical_json, sha256_bytes
from cache.errors import CkdError
from cache.manifest import MANIFEST
from cache.store import Store
from pipeline.build import build
from tests.fakes import TableTeacher, tiny_store, tree
from tests.places import BUCKET, FakeS3

__all__ = [
    "Done",
    "built",
    "code_of",
    "copied",
    "in_memory",
    "measured",
    "opened",
    "outside_of",
    "reparented",
    "resealed",
    "serving",
    "silent",
    "typed",
]

ROOT = Path(__file__).resolve().parents[2]
_SHARED_MEMORY = Path("/dev/shm")


def silent(done: int, total: int) -> None:
    """Nobody watches."""


@contextlib.contextmanager
def in_memory() -> Iterator[Path]:
    """A folder in memory where the system has that: a disk would spend most of the time on fsync."""
    with tempfile.TemporaryDirectory(
        dir=_SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None
    ) as name:
        yield Path(name)


@functools.cache
def _built() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(dir=_SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None)
    store = tiny_store(Path(folder.name) / "store")
    build(TableTeacher("one"), store, shard_bytes=400, quality={"ndcg@10": 0.05}, keep="both")
    build(TableTeacher("two", seed=1), store, shard_bytes=400, quality={"ndcg@10": 0.04})
    return folder


def built() -> Path:
    """A store to be read only: scores and factors of `one`, scores of `two`, several shards each."""
    return Path(_built().name) / "store"


def copied(path: Path) -> Path:
    """A copy of it, to do harm to."""
    return Path(shutil.copytree(built(), path))


def resealed(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit a manifest as a hostile publisher would: canonical, with whatever he likes in it."""
    value = json.loads(path.read_bytes())
    change(value)
    path.write_bytes(canonical_json(value) + b"\n")


def reparented(store: Path) -> None:
    """Make every digest of a store right again after the publisher changed files of it: he seals what he likes."""

    def seal(part: Path) -> str:
        files = [p for p in part.rglob("*") if p.is_file() and p.name != MANIFEST]

        def change(value: dict[str, Any]) -> None:
            value["files"] = sorted(
                (
                    {
                        "path": p.relative_to(part).as_posix(),
                        "size": p.stat().st_size,
                        "sha256": sha256_bytes(p.read_bytes()),
                    }
                    for p in files
                ),
                key=lambda entry: entry["path"],
            )
            value["parents"] = {name: parents[name] for name in value["parents"]}

        resealed(part / MANIFEST, change)
        return sha256_bytes((part / MANIFEST).read_bytes())

    parents: dict[str, str] = {}
    for part in ("dataset", "plan"):
        parents[part] = seal(store / part)
    for part in sorted(store.glob("*/*/manifest.json")):
        _repeat_in_zarr(part, parents)
        seal(part.parent)


def _repeat_in_zarr(manifest: Path, parents: dict[str, str]) -> None:
    """zarr.json repeats the parents."""
    path = manifest.parent / "scores.zarr" / "zarr.json"
    with contextlib.suppress(ValueError, KeyError, FileNotFoundError):  # it may be an attack itself
        value = json.loads(path.read_bytes())
        value["attributes"]["ckd"]["parents"] = parents
        text = json.dumps(value, indent=1, ensure_ascii=True, allow_nan=False, sort_keys=True)
        path.write_bytes(text.encode("ascii") + b"\n")


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[str, FakeS3]]:
    """(URL, server) of object storage on the loopback that fails on demand; this machine's copies go below `folder`."""
    fake = FakeS3()
    no_time = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=2)}
    retries = {"max_retries": 2, "backoff": {**no_time, "base": 2}}
    with (
        fake.serving() as environment,
        mock.patch.dict(os.environ, environment | {"KD_CACHE_DIR": str(folder / "kept")}),
        mock.patch.dict(objects.RETRIES, retries),  # type: ignore[arg-type]
    ):
        yield f"s3://{BUCKET}/shared/toys", fake


def code_of(work: Callable[[], object]) -> str:
    """The code of the foreseen error that came of it; what else was raised goes through; empty if nothing was."""
    try:
        work()
    except CkdError as error:
        assert "\n" not in str(error), error
        return error.code
    return ""


def outside_of(folder: Path) -> Callable[[], str]:
    """A world beside the stores; tells what of it has changed since, by inode, mode and bytes."""
    world = folder / "outside"
    (world / "deep").mkdir(parents=True)
    (world / "precious").write_bytes(b"precious")
    (world / "deep" / "also").write_bytes(b"also precious")

    def facts() -> list[tuple[str, int, int, int, str]]:
        found = []
        for name, digest in tree(world).items():
            status = (world / name).lstat()
            found.append((name, status.st_ino, status.st_mode, status.st_size, digest))
        return found

    before = facts()
    return lambda: "" if facts() == before else f"outside changed: {facts()}"


@dataclass(frozen=True)
class Done:
    """What came of a command."""

    status: int
    out: str
    err: str

    @property
    def code(self) -> str:
        """The dotted code at the end of the line, or empty."""
        last = (self.err.splitlines() or [""])[-1]
        return last.rpartition("  [")[2].removesuffix("]") if last.endswith("]") else ""


def typed(folder: Path, *words: str) -> Done:
    """Run a command line through its entry point in this process, from `folder`."""
    import io

    module = import_module(f"pipeline.cli_{words[0].removeprefix('kd-')}")
    out, err, here = io.StringIO(), io.StringIO(), Path.cwd()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    os.chdir(folder)
    try:
        with (
            mock.patch.object(sys, "argv", [*words]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            module.main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        os.chdir(here)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Done(status, out.getvalue(), err.getvalue())


_MEASURE = """
import json, resource, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
import cache.store, cache.verify, cache.tables, cache.mirror, cache.objects, pipeline.share
from cache.errors import CkdError

def peak():
    # of this process alone: ru_maxrss of a child begins with its parent's
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024

def attack(work):
    Path("/proc/self/clear_refs").write_text("5")
    before, began = peak(), time.monotonic()
    try:
        work()
        code = ""
    except CkdError as error:
        code = error.code
    except Exception as error:
        code = f"{{type(error).__name__}}: {{error}}"[:200]
    return {{"code": code, "grown": peak() - before, "seconds": time.monotonic() - began}}

told = {{}}
{script}
print(json.dumps(told))
"""


def measured(script: str, *arguments: object) -> dict[str, Any]:
    """Run attacks in a process of their own: `told[name] = attack(work)` gives {code, grown (bytes), seconds}."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            _MEASURE.format(root=str(ROOT), script=script),
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def opened(path: Path) -> None:
    """Read all of a copy of :func:`built` as a student would: every batch and every vector of every set."""
    store = Store.open(path)
    store.dataset.texts()
    for reader in (store.scores("one"), store.scores("two"), store.factors("one")):
        for index in range(len(reader)):
            reader[index]
