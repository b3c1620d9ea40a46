"""P07: a store, pulled or opened, stays inside its folder, whoever made it.

What a manifest or a place calls its files, and what lies there in place of files, is refused; a world outside is the same
afterwards, by inode and bytes. A hard link cannot be told from a file, and need not be: nothing published is written to.
The first attacks on pulls are in tests/share/test_share.py, on names in tests/cache/test_manifest.py.
"""

from __future__ import annotations

import os
import shutil
import socket
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cache.errors import StoreError
from cache.mirror import open_mirror
from cache.remote import locate
from cache.store import Store
from cache.verify import verify
from pipeline.build import build
from pipeline.share import merge, pull, push
from tests.fakes import TableTeacher, tree
from tests.promises.grounds import (
    code_of,
    copied,
    in_memory,
    opened,
    outside_of,
    resealed,
    serving,
    silent,
)
from tests.promises.ledger import all_kept

PARTS = ["dataset", "plan", "scores/one", "factors/one"]

TWINS = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")

NAMES: list[list[str]] = [
    *([name] for name in (
        "../x", "../../x", "a/../../x", "..", ".", "/x", "//x", "C:\\x", "C:x", "\\\\h\\s", "..\\x", "a\\b", "a//b", "./a",
        "a/.", "a/..", "a/", "", "n\0l", "x" * 300, "a/" + "x" * 256, "a\nb", "a b", "~/x", "$HOME", "%41", "CON", "con.txt",
        "a/aux", "nul", "COM1", "lpt9.x", "a.", "a*", "a?", "a:b", "\ud83d", "\u202egnp", TWINS[0], TWINS[1],
    )),
    ["twin", "TWIN"], ["a", "a/b"], ["a/b", "A"], list(TWINS),
]  # fmt: skip

FILES = [
    "dataset/items.parquet",
    "plan/plan.parquet",
    "scores/one/scores.zarr/c.0.0.0",
    "scores/one/scores.zarr/zarr.json",
    "factors/one/items/0000000.npy",
]
FOLDERS = ["dataset", "plan", "scores", "scores/one", "scores/one/scores.zarr", "factors/one/items"]


def named(names: list[str]) -> Callable[[dict[str, Any]], None]:
    def change(value: dict[str, Any]) -> None:
        value["files"] += [{**value["files"][0], "path": name} for name in names]
        value["files"].sort(key=lambda entry: entry["path"])

    return change


def complaint(attack: object, code: str, *expected: str) -> str:
    return "" if code in expected else f"{attack}: {code or 'taken'}"


@pytest.mark.parametrize("part", PARTS)
def test_names_that_bite_are_refused_however_the_store_comes(part: str, long: bool) -> None:
    told: list[str] = []
    with in_memory() as folder, serving(folder) as (url, fake):
        changed = outside_of(folder)
        store = copied(folder / "store")
        sound = (store / part / "manifest.json").read_bytes()
        push(store, locate(url), (), silent)
        home = folder / "home"
        home.mkdir()
        shared = folder / "shared"
        push(store, locate(str(shared)), (), silent)
        for number, names in enumerate(NAMES):
            path = store / part / "manifest.json"
            resealed(path, named(names))
            forged = path.read_bytes()
            (shared / part / "manifest.json").write_bytes(forged)
            fake.objects[f"shared/toys/{part}/manifest.json"] = forged
            ways = {
                "opened": lambda: opened(store),
                "verified": lambda: [_raise(found) for found in verify(store)],
                "pulled from a folder": lambda: pull(locate(str(shared)), home / "x", (), silent),
                "pulled from a cloud": lambda: pull(locate(url), home / "x", (), silent),
                "mirrored": lambda: open_mirror(locate(url), limit=10**9, report=silent),
            }
            if not long and number % 8:  # the same check as for a folder, at more cost
                del ways["pulled from a cloud"], ways["mirrored"]
            for way, work in ways.items():
                told.append(complaint((names, way), code_of(work), "store.unsafe_name"))
            path.write_bytes(sound)
        told += [changed(), f"{list(home.iterdir())}" if list(home.iterdir()) else ""]
    all_kept("P07", told)


def test_names_of_sets_that_bite_are_refused() -> None:
    """A place tells its names itself."""
    told: list[str] = []
    with in_memory() as folder, serving(folder) as (url, fake):
        push(copied(folder / "store"), locate(url), (), silent)
        manifest = fake.objects["shared/toys/scores/one/manifest.json"]
        for name in ("CON", "a b", "ONE", "a\\b", "nul.x", "x" * 300, "é", "a:b", "one."):
            key = f"shared/toys/scores/{name}/manifest.json"
            fake.objects[key] = manifest
            code = code_of(lambda: pull(locate(url), folder / "home" / "x", (), silent))
            told.append(complaint(name, code, "store.unsafe_name"))
            del fake.objects[key]
        told.append(f"{tree(folder / 'home')}" if (folder / "home" / "x").exists() else "")
    all_kept("P07", told)


def _raise(found: Exception) -> None:
    raise found


def put(kind: str, path: Path, outside: Path) -> None:
    """Something that is no regular file, where `path` was (moved outside, so that what a link points to is right)."""
    if path.exists():
        path.rename(outside)
    if kind == "link":
        path.symlink_to(outside)
    elif kind == "dangling link":
        path.symlink_to(outside / "nowhere")
    elif kind == "link round":
        path.symlink_to(path.name)
    elif kind == "link out of all":
        path.symlink_to("/")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        here = Path.cwd()
        os.chdir(path.parent)  # socket names are short
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
        os.chdir(here)
    elif kind == "device":
        try:
            os.mknod(path, 0o020600, os.makedev(1, 5))  # zeros without end
        except PermissionError:  # only the superuser may
            path.symlink_to("/dev/zero")


KINDS = ["link", "dangling link", "link round", "link out of all", "fifo", "socket", "device"]
REFUSED = (
    "store.not_a_file", "store.unexpected", "store.missing", "store.bad_manifest", "store.unfinished", "store.not_a_folder",
    "disk.refused",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_refused_and_not_followed(kind: str) -> None:
    told: list[str] = []
    with in_memory() as folder:
        changed = outside_of(folder)
        victims = [*FILES, "plan/manifest.json", "scores/one/manifest.json", "scores/one/extra"]
        for name in victims + FOLDERS:
            store = copied(folder / "store")
            put(kind, store / name, folder / "moved")
            found = verify(store)
            told.append("" if found else f"{name} {kind}: verified")
            told.append(
                complaint((name, kind), code_of(lambda store=store: opened(store)), *REFUSED)
            )
            home = folder / "home"
            if name != "scores/one/extra":  # which a pull does not look at
                code = code_of(
                    lambda store=store, x=home / "x": pull(locate(str(store)), x, (), silent)
                )
                told.append(complaint((name, kind, "pulled"), code, *REFUSED))
            told.append("a store was made" if (home / "x").exists() else changed())
            shutil.rmtree(store)
            shutil.rmtree(home, ignore_errors=True)
            moved = folder / "moved"
            shutil.rmtree(moved) if moved.is_dir() else moved.unlink(missing_ok=True)
    all_kept("P07", told)


def test_a_hard_link_out_is_a_file_and_what_it_shares_is_never_written_to() -> None:
    """Whatever is done with such a store, the other name of the file keeps its inode and its bytes."""
    told: list[str] = []
    with in_memory() as folder:
        for name in FILES:
            store = copied(folder / "store")
            other = folder / "other"
            other.hardlink_to(store / name)
            before = other.read_bytes(), other.stat().st_ino
            opened(store)
            build(TableTeacher("three", seed=3), Store.open(store), shard_bytes=400)
            pull(locate(str(store)), folder / "x", (), silent)
            merge(folder / "x", store, silent)
            told.append("" if (other.read_bytes(), other.stat().st_ino) == before else name)
            told.append(
                "" if (folder / "x" / name).stat().st_nlink == 1 else f"{name}: linked here"
            )
            for path in (store, folder / "x"):
                shutil.rmtree(path)
            other.unlink()
    all_kept("P07", told)


@pytest.mark.parametrize(
    "name",
    ["scores", "factors", "scores/.work-new", "scores/.work-new/set", "scores/.work-new/journal.jsonl",
     "scores/.work-new/histories", "scores/.lock-new", "scores/new", "factors/new", "scores/.work-new/.partial-x"],
)  # fmt: skip
@pytest.mark.parametrize("at", ["folder", "file"])
def test_a_build_into_a_store_with_links_writes_nothing_outside(name: str, at: str) -> None:
    """The store came from somewhere as a folder: what was not sealed in it is hostile too."""
    with in_memory() as folder:
        changed = outside_of(folder)
        store = copied(folder / "store")
        path = store / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            shutil.rmtree(path)
        path.symlink_to(folder / "outside" / ("deep" if at == "folder" else "precious"))
        told = [
            ""
            if attempt in {"", "store.not_a_file", "store.not_a_folder", "disk.refused"}
            else attempt
            for attempt in (code_of(lambda: _build(store)), code_of(lambda: _build(store)))
        ]
        told.append(changed())
    all_kept("P07", told)


def _build(store: Path) -> None:
    build(TableTeacher("new", seed=5), Store.open(store), shard_bytes=400, keep="both")


@pytest.mark.parametrize("name", [".pull-x", ".lock-pull-x", ".pull-x/plan"])
def test_a_pull_beside_links_writes_nothing_outside(name: str) -> None:
    with in_memory() as folder:
        changed = outside_of(folder)
        store = copied(folder / "store")
        home = folder / "home"
        (home / name).parent.mkdir(parents=True)
        (home / name).symlink_to(folder / "outside" / ("precious" if "lock" in name else "deep"))
        code_of(lambda: pull(locate(str(store)), home / "x", (), silent))
        told = [changed(), "" if (folder / "outside").is_dir() else "outside is gone"]
    all_kept("P07", told)


def test_the_error_is_ours() -> None:
    with in_memory() as folder:
        store = copied(folder / "store")
        put("fifo", store / FILES[2], folder / "moved")
        with pytest.raises(StoreError, match=r"c\.0\.0\.0: is not a regular file"):
            opened(store)
