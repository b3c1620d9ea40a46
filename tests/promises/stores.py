"""The store that the promises are tried on: scores and factors of one numpy teacher, some 20 files, a few kB each."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

import pipeline.build
from cache.store import Store
from pipeline.build import Keep, build
from tests.fakes import TableTeacher, tiny_store

__all__ = ["copied", "files", "read_all", "script", "sealed_store", "small_build", "small_pieces"]

SHARD_BYTES = 600


def small_pieces() -> None:
    """Several history blocks and factor files from a tiny plan, for the rest of this process."""
    pipeline.build.HISTORY_BLOCK = 32
    pipeline.build.FACTOR_BLOCKS = 1


def small_build(path: Path, keep: Keep = "both") -> None:
    """The build that is killed, starved and raced: of the store at `path`, begun or gone on with."""
    build(TableTeacher(), Store.open(path), shard_bytes=SHARD_BYTES, keep=keep)


def sealed_store(path: Path, *, keep: Keep = "both", users: int = 12) -> Path:
    """A store with what `keep` says, made in one go."""
    tiny_store(path, users=users)
    small_build(path, keep)
    return path


def copied(source: Path, target: Path) -> Path:
    """`target`, as `source` is."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)
    return target


def files(path: Path) -> list[Path]:
    """Every file of a store, sorted."""
    return sorted(file for file in path.rglob("*") if file.is_file())


def script(path: Path, *arguments: object, limit: float = 1500) -> str:
    """What a script of this suite prints; it must end well."""
    done = subprocess.run(
        [sys.executable, str(path), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def read_all(path: Path) -> None:
    """What a student does with a store, and another one with its factors."""
    store = Store.open(path)
    scores, factors = store.scores("table"), store.factors("table")
    for index in range(len(scores)):
        scores[index]
    factors.history_vectors(np.arange(store.plan.num_instances))
    factors.item_vectors()
