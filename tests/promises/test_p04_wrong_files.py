"""P04: a file that is cut, empty, gone, longer, swapped, there twice, extra or no file is refused, each by its own code."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from cache.errors import StoreError
from cache.store import Store
from cache.vectors import write_vectors
from cache.verify import verify
from tests.promises.ledger import all_kept
from tests.promises.stores import copied, files, read_all, sealed_store


@pytest.fixture
def sound(memory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("pipeline.build.HISTORY_BLOCK", 8)  # several files of one size
    monkeypatch.setattr("pipeline.build.FACTOR_BLOCKS", 1)
    path = sealed_store(memory / "sound")
    vectors = np.ones((9, 3), np.float32)
    write_vectors(Store.open(path).dataset, "text", vectors, {"model": "none"})
    return path


def _link(file: Path) -> None:
    store = next(folder for folder in file.parents if folder.name == "store")
    file.rename(store.with_name("away"))
    file.symlink_to(store.with_name("away"))


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _shorter(by: int) -> Callable[[Path], None]:
    return lambda file: os.truncate(file, max(file.stat().st_size - by, 0))


#: harm: (what is done to a file, the code that tells it)
HARM: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (Path.unlink, "store.missing"),
    "empty": (lambda file: file.write_bytes(b""), "store.wrong_size"),
    "cut by 1": (_shorter(1), "store.wrong_size"),
    "cut by 64": (_shorter(64), "store.wrong_size"),
    "half": (lambda file: os.truncate(file, file.stat().st_size // 2), "store.wrong_size"),
    "longer by 1": (lambda file: file.write_bytes(file.read_bytes() + b"\0"), "store.wrong_size"),
    "twice its bytes": (lambda file: file.write_bytes(2 * file.read_bytes()), "store.wrong_size"),
    "zeros": (lambda file: file.write_bytes(bytes(file.stat().st_size)), "store.wrong_digest"),
    "turned round": (lambda file: file.write_bytes(file.read_bytes()[::-1]), "store.wrong_digest"),
    "a link": (_link, "store.not_a_file"),
    "a folder": (_folder, "store.missing"),
    "a pipe": (_pipe, "store.not_a_file"),
    "there twice": (
        lambda file: shutil.copyfile(file, file.with_name(f"copy-{file.name}")),
        "store.unexpected",
    ),
    "with a hidden twin": (
        lambda file: shutil.copyfile(file, file.with_name(f".{file.name}")),
        "store.unexpected",
    ),
}


def judged(path: Path, file: Path, code: str, *, read: bool = True) -> Iterator[str]:
    """Complaints unless verify tells that file by that code, and a reader stops at it."""
    found = [(one.code, str(one)) for one in verify(path)]
    named = [one for one in found if one[0] == code and str(file) in one[1]]
    yield "" if named and len(found) == 1 else f"{file}: {code} expected, {found}"
    if not read:
        return
    try:
        read_all(path)
    except StoreError as error:
        yield "" if str(file) in str(error) else f"{file}: {error}"
    else:
        yield f"{file}: {code}, was read"


def payload(path: Path) -> list[Path]:
    return [file.relative_to(path) for file in files(path) if file.name != "manifest.json"]


@pytest.mark.parametrize("kind", HARM)
def test_each_harm_to_each_file_has_its_code(sound, memory, kind):
    harm, code = HARM[kind]
    complaints = []
    for name in payload(sound):
        path = copied(sound, memory / "store")
        harm(path / name)
        told = path / name
        if code == "store.unexpected":
            (told,) = set(files(path)) - {path / one.relative_to(sound) for one in files(sound)}
        complaints += judged(path, told, code, read="vectors" not in name.parts)
    all_kept("P04", complaints)


def test_two_files_of_one_size_that_changed_places(sound, memory):
    complaints = []
    sizes = {name: (sound / name).stat().st_size for name in payload(sound)}
    pairs = [pair for pair in combinations(sizes, 2) if sizes[pair[0]] == sizes[pair[1]]]
    assert len(pairs) >= 4
    for one, other in pairs:
        path = copied(sound, memory / "store")
        (path / one).rename(path / "aside")
        (path / other).rename(path / one)
        (path / "aside").rename(path / other)
        told = [(error.code, str(error)) for error in verify(path)]
        names = [name for name in (one, other) for code, text in told if str(path / name) in text]
        fair = {code for code, _ in told} == {"store.wrong_digest"} and len(names) == len(told) == 2
        complaints.append("" if fair else f"{one}, {other}: {told}")
        with pytest.raises(StoreError, match="bytes have changed"):
            read_all(path)
    all_kept("P04", complaints)


def test_a_file_that_went_by_another_name_is_missing_and_unexpected(sound, memory):
    complaints = []
    for name in payload(sound):
        path = copied(sound, memory / "store")
        moved = (path / name).rename((path / name).with_name("moved"))
        told = {error.code: str(error) for error in verify(path)}
        fair = told.keys() == {"store.missing", "store.unexpected"}
        fair = fair and str(path / name) in told["store.missing"]
        fair = fair and str(moved) in told["store.unexpected"]
        complaints.append("" if fair else f"{name}: {told}")
    all_kept("P04", complaints)


STRANGERS = [
    "notes.txt",
    "dataset/extra",
    "plan/.partial-x",
    "plan/deep/inside",
    "scores/table/scores.zarr/c.9.0.0",
    "scores/table/journal.jsonl",
    "scores/README",
    "scores/.hidden",
    "scores/.partial-x",
    "scores/bad name/manifest.json",
    "factors/table/items/0000099.npy",
    "factors/loose.npy",
    "dataset/vectors/text/more.npy",
]


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_stranger_is_named(sound, stranger):
    (sound / stranger).parent.mkdir(exist_ok=True)
    (sound / stranger).write_text("x")
    told = stranger if "bad name" not in stranger else "scores/bad name"
    all_kept("P04", judged(sound, sound / told, "store.unexpected", read=False))


PARTS = ("dataset", "plan", "scores/table", "factors/table", "dataset/vectors/text")


@pytest.mark.parametrize("part", PARTS)
def test_a_part_without_its_manifest_is_unfinished_never_small(sound, part):
    (sound / part / "manifest.json").unlink()
    all_kept("P04", judged(sound, sound / part, "store.unfinished", read="vectors" not in part))


@pytest.mark.parametrize("part", PARTS)
def test_a_manifest_that_is_a_link_is_no_manifest(sound, memory, part):
    manifest = sound / part / "manifest.json"
    manifest.rename(memory / "away.json")
    manifest.symlink_to(memory / "away.json")
    all_kept("P04", judged(sound, manifest, "store.bad_manifest", read="vectors" not in part))


@pytest.mark.parametrize("part", ["dataset", "plan", "scores", "factors"])
def test_a_part_that_is_a_link_is_not_followed_by_verify(sound, memory, part):
    away = (sound / part).rename(memory / "away")
    (sound / part).symlink_to(away)
    all_kept("P04", judged(sound, sound / part, "store.not_a_folder", read=False))


@pytest.mark.parametrize(
    "name", ["scores/table/scores.zarr/c.0.0.0", "factors/table/items/0000000.npy"]
)
def test_a_link_put_in_after_opening_is_not_followed(sound, memory, name):
    """Even to the very same bytes: what lies outside the store is not read."""
    store = Store.open(sound)
    scores, factors = store.scores("table"), store.factors("table")
    (sound / name).rename(memory / "away")
    (sound / name).symlink_to(memory / "away")
    with pytest.raises(StoreError) as caught:
        scores[0] if name.startswith("scores") else factors.item_vectors()
    all_kept("P04", ["" if str(sound / name) in str(caught.value) else str(caught.value)])
