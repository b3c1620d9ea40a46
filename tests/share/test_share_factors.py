"""Factor sets travel as score sets do: whole or not at all, one teacher a name, and through a mirror file by file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import pipeline.build
from cache.describe import describe, store_digest
from cache.digest import sha256_bytes
from cache.errors import StoreError
from cache.store import Store
from cache.verify import verify
from pipeline.build import build
from pipeline.fit import fit
from pipeline.share import merge
from student.sasrec import SASRecConfig
from student.schedule import TrainSettings
from student.targets import join_settings
from tests.fakes import TableTeacher, tiny_store, tree
from tests.share.conftest import Place
from tests.share.test_mirror import fetched, kept_bytes, opened
from tests.share.test_share import pulled, pushed, refused, resealed, silent

BLOCK = "factors/both/histories/0000001.npy"
SEALED = "factors/both/manifest.json"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of `both` scores and factors, of `f` factors alone, of `s` scores alone; factor files of 8 rows."""
    store = tiny_store(tmp_path_factory.mktemp("built") / "store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.build, "HISTORY_BLOCK", 8)
        patch.setattr(pipeline.build, "FACTOR_BLOCKS", 1)
        build(TableTeacher("both"), store, keep="both", shard_bytes=400, quality={"ndcg@10": 0.05})
        build(TableTeacher("f", seed=1), store, keep="factors", quality={"ndcg@10": 0.04})
        build(TableTeacher("s", seed=2), store, shard_bytes=400)
    return store.path


def twin_of(store: Store, path: Path) -> Store:
    """A store over the same plan, without sets."""
    return Store.create(path, store.dataset, store.plan)


# ------------------------------------------------------------------------------------------ push, pull


def test_a_store_of_scores_factors_and_both_comes_back_as_it_was(store, place, tmp_path):
    sent = pushed(store, place)
    got = pulled(place, tmp_path / "toys", pin=sent.digest)
    assert tree(tmp_path / "toys") == tree(store.path)
    assert verify(tmp_path / "toys") == []
    # by hand: everything but the six manifests: dataset, plan, two score sets, two factor sets
    files = [p for p in store.path.rglob("*") if p.is_file() and p.name != "manifest.json"]
    assert sent.files == got.files == len(files)
    assert sent.bytes == got.bytes == sum(p.stat().st_size for p in files)
    assert sent.names == got.names == ("both", "f", "s")
    assert sent.digest == got.digest == describe(store).digest
    again = pushed(store, place), pulled(place, tmp_path / "toys")
    assert [(one.files, one.kept) for one in again] == [(0, len(files))] * 2


def test_the_digest_has_factors_where_there_are_any_and_is_what_it_was_where_not(store):
    parts = {
        "dataset": store.dataset.digest,
        "plan": store.plan.digest,
        "scores": {name: store.scores(name).digest for name in ("both", "s")},
    }

    def by_hand() -> str:
        return sha256_bytes(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode())

    assert store_digest(parts["dataset"], parts["plan"], parts["scores"], {}) == by_hand()
    parts["factors"] = {name: store.factors(name).digest for name in ("both", "f")}
    assert describe(store).digest == by_hand()
    shutil.rmtree(store.path / "factors")
    del parts["factors"]
    assert describe(store).digest == by_hand()


@pytest.mark.parametrize(
    ("name", "folders"),
    [("both", {"scores/both", "factors/both"}), ("f", {"factors/f"}), ("s", {"scores/s"})],
)
def test_of_a_chosen_teacher_all_that_is_kept_travels(store, place, tmp_path, name, folders):
    def sets(names) -> set[str]:
        return {
            "/".join(n.split("/")[:2]) for n in names if n.split("/")[0] in ("scores", "factors")
        }

    sent = pushed(store, place, [name])
    assert sets(place.names()) == folders
    pushed(store, place)
    got = pulled(place, tmp_path / "toys", [name], pin=sent.digest)
    assert got.names == (name,)
    assert sets(p for p, digest in tree(tmp_path / "toys").items() if digest) == folders
    assert Store.open(tmp_path / "toys").teachers == [name]
    pulled(place, tmp_path / "toys")  # the others join
    assert tree(tmp_path / "toys") == tree(store.path)


def test_one_factor_set_may_be_pinned_by_its_own_digest_and_a_pair_only_together(
    store, place, tmp_path
):
    pushed(store, place)
    pulled(place, tmp_path / "f", ["f"], pin=store.factors("f").digest)
    for digest in (store.factors("both").digest, store.scores("both").digest):
        message = refused(
            "share.wrong_pin",
            lambda digest=digest: pulled(place, tmp_path / "no", ["both"], pin=digest),
        )
        assert "scores/both, factors/both" in message
    assert not (tmp_path / "no").exists()


def test_factors_that_are_added_later_change_the_digest_and_join_a_pulled_store(
    store, place, tmp_path
):
    factors = shutil.move(store.path / "factors", tmp_path / "aside")
    old = pushed(store, place)
    pulled(place, tmp_path / "toys", pin=old.digest)
    shutil.move(factors, store.path / "factors")
    new = pushed(store, place)
    # by hand: of each of two teachers 31 histories and 9 items, in files of 8 rows: 4 + 2
    assert new.files == 12
    refused("share.wrong_pin", lambda: pulled(place, tmp_path / "toys", pin=old.digest))
    assert pulled(place, tmp_path / "toys", pin=new.digest).files == 12
    assert tree(tmp_path / "toys") == tree(store.path)


def test_factors_without_a_manifest_are_told_and_left_out(store, place, tmp_path):
    pushed(store, place)
    for name in ("both", "f"):
        place.delete(f"factors/{name}/manifest.json")
    got = pulled(place, tmp_path / "toys")
    assert (got.names, got.unfinished) == (("both", "s"), ("both", "f"))
    assert not (tmp_path / "toys" / "factors").exists()
    message = refused("scores.missing", lambda: pulled(place, tmp_path / "no", ["f"]))
    assert "there: both, s" in message
    assert pulled(place, tmp_path / "one", ["both"]).unfinished == ("both",)


# ------------------------------------------------------------------------------------------ damage, hostility


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
def test_a_damaged_factor_file_is_refused_on_pull_and_through_the_mirror(
    store, place, tmp_path, harm, code
):
    pushed(store, place)
    good = place.get(BLOCK)
    place.set(BLOCK, harm(good)) if harm else place.delete(BLOCK)
    assert BLOCK in refused(code, lambda: pulled(place, tmp_path / "toys"))
    assert not (tmp_path / "toys").exists()
    reader = opened(place).factors("both")
    reader.history_vectors(np.array([0, 7]))  # of the file before it
    assert BLOCK in refused(code, lambda: reader.history_vectors(np.array([8])))
    place.set(BLOCK, good)
    wanted = store.factors("both").history_vectors(np.array([8]))
    np.testing.assert_array_equal(reader.history_vectors(np.array([8])), wanted)


@pytest.mark.parametrize("name", ["../out", "/out", "C:\\out", "con", "a b", "items/0000000.npy/x"])
def test_a_hostile_name_in_a_factor_set_is_refused_and_nothing_is_written(
    store, place, tmp_path, name
):
    pushed(store, place)

    def change(value):
        value["files"].append({**value["files"][0], "path": name})
        value["files"].sort(key=lambda entry: entry["path"])

    place.set(SEALED, resealed(place.get(SEALED), change))
    before = tree(tmp_path)
    refused("store.unsafe_name", lambda: pulled(place, tmp_path / "toys"))
    refused("store.unsafe_name", lambda: opened(place))
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda value: value["files"][0].update(size=2**61), "disk.too_small"),
        (lambda value: value["settings"].update(rows_per_file=0), "store.bad_settings"),
        (lambda value: value["counts"].update(width=2**40), "store.inconsistent"),
        (lambda value: value["parents"].update(plan="sha256:" + "0" * 64), "store.lineage"),
        (lambda value: value["settings"].update(tau=1), "scores.exists"),
        (lambda value: value["settings"].update(teacher="x" * 10_000), "scores.exists"),
    ],
    ids=["size", "rows", "width", "plan", "tau", "teacher"],
)
def test_a_factor_set_that_cannot_be_is_not_published(store, place, tmp_path, change, code):
    pushed(store, place)
    place.set(SEALED, resealed(place.get(SEALED), change))
    assert len(refused(code, lambda: pulled(place, tmp_path / "toys"))) < 1000
    assert not (tmp_path / "toys").exists()


def test_a_size_in_a_factor_set_that_no_limit_allows_is_refused_by_the_mirror(store, place):
    pushed(store, place)
    place.set(
        SEALED, resealed(place.get(SEALED), lambda value: value["files"][0].update(size=2**61))
    )
    refused("store.inconsistent", lambda: opened(place).factors("both"))


# ------------------------------------------------------------------------------------------ one name, one teacher


def test_another_teachers_factors_under_a_name_that_is_taken_are_refused_everywhere(
    store, place, tmp_path
):
    """Here scores of s; there factors of another s."""
    twin = twin_of(store, tmp_path / "twin")
    build(TableTeacher("s", seed=9), twin, keep="factors")
    before = tree(store.path)
    message = refused("scores.exists", lambda: merge(store.path, twin.path, silent))
    assert "teacher_digest" in message
    message = refused("scores.exists", lambda: merge(twin.path, store.path, silent))
    assert "holds factors" in message
    pushed(twin, place)
    there = place.content()
    refused("scores.exists", lambda: pushed(store, place, ["s"]))
    assert place.content() == there
    refused("scores.exists", lambda: pulled(place, store.path))
    assert tree(store.path) == before
    assert twin.names == []


def test_merging_takes_in_scores_and_factors_that_are_new(store, tmp_path):
    twin = twin_of(store, tmp_path / "twin")
    shutil.copytree(store.folder("both"), twin.folder("both"))
    told: list[tuple[int, int]] = []
    names = merge(twin.path, store.path, lambda done, total: told.append((done, total)))
    assert names == ["both", "f", "s"]
    assert tree(twin.path) == tree(store.path)
    assert verify(twin.path) == []
    assert told[-1][0] == told[-1][1] > 0
    assert merge(twin.path, store.path, silent) == []


def test_merging_refuses_other_factors_of_the_same_name_and_takes_in_nothing(store, tmp_path):
    twin = twin_of(store, tmp_path / "twin")
    build(TableTeacher("a-new-one", seed=4), twin, keep="both")
    build(TableTeacher("f", seed=1), twin, keep="factors", quality={"ndcg@10": 0.04})
    before = tree(store.path)  # of the same teacher, in files of other sizes
    message = refused("store.exists", lambda: merge(store.path, twin.path, silent))
    assert store.factors("f").digest in message
    assert twin.factors("f").digest in message
    assert tree(store.path) == before


def test_merging_refuses_damaged_factors(store, tmp_path):
    twin = twin_of(store, tmp_path / "twin")
    file = store.path / BLOCK
    file.write_bytes(file.read_bytes()[::-1])
    refused("store.wrong_digest", lambda: merge(twin.path, store.path, silent))
    assert "both" not in twin.factor_names


# ------------------------------------------------------------------------------------------ the mirror


def test_a_mirror_brings_the_factor_files_that_are_touched_and_each_once(store, place, kept):
    pushed(store, place)
    mirror = opened(place)
    assert (mirror.names, mirror.factor_names) == (["both", "s"], ["both", "f"])
    reader, layout = mirror.factors("f"), store.factors("f").layout
    assert fetched(mirror) == 0
    ids = np.array([9, 15, 8])  # all in file 1
    np.testing.assert_array_equal(
        reader.history_vectors(ids), store.factors("f").history_vectors(ids)
    )
    # by hand: a header of 128 bytes and 8 rows of 8 numbers of 2 bytes
    assert fetched(mirror) == layout.size("histories", 1) == 128 + 8 * 8 * 2
    for name in mirror.factor_names:
        for index in range(len(store.plan)):
            here, there = store.factors(name)[index], mirror.factors(name)[index]
            np.testing.assert_array_equal(there, here)
    whole = {
        entry.sha256: entry.size
        for name in ("both", "f")
        for entry in store.factors(name).manifest.files
    }
    assert fetched(mirror) == sum(whole.values()) == kept_bytes(kept)
    assert mirror.reader("both").manifest.kind == "scores"
    assert mirror.reader("f").manifest.kind == "factors"


def test_factor_files_share_the_limit_and_come_again(store, place, kept):
    pushed(store, place)
    size = store.factors("f").layout.size("histories", 0)
    mirror = opened(place, limit=2 * size)
    wanted = store.factors("f").history_vectors(np.arange(31))
    for row in (0, 8, 16, 24, 0):
        reader = mirror.factors("f")  # anew, so that each touch asks for the file
        np.testing.assert_array_equal(
            reader.history_vectors(np.array([row])), wanted[row : row + 1]
        )
        assert kept_bytes(kept) <= 2 * size
    last = store.factors("f").layout.size("histories", 3)
    assert fetched(mirror) == 4 * size + last


def test_a_factor_file_that_another_process_removed_in_between_comes_again(store, place, kept):
    pushed(store, place)
    mirror = opened(place)
    real, removed = mirror.bring, []
    assert real is not None

    def racing(folder, entry):
        path = real(folder, entry)
        if not removed:
            removed.append(path)
            path.unlink()
        return path

    racer = Store(path=mirror.path, dataset=mirror.dataset, plan=mirror.plan, bring=racing)
    np.testing.assert_array_equal(
        racer.factors("f").item_vectors(), store.factors("f").item_vectors()
    )
    assert len(removed) == 1


def test_a_factor_file_that_changes_between_check_and_use_is_refused(store, place, kept):
    pushed(store, place)
    mirror = opened(place)
    real = mirror.bring
    assert real is not None

    def swapped(folder, entry):
        path = real(folder, entry)
        path.write_bytes(bytes(entry.size))
        return path

    swapper = Store(path=mirror.path, dataset=mirror.dataset, plan=mirror.plan, bring=swapped)
    with pytest.raises(StoreError) as caught:
        swapper.factors("f").item_vectors()
    assert caught.value.code == "store.wrong_digest"


def test_a_student_learns_the_same_weights_from_factors_here_and_there(store, place, tmp_path):
    pushed(store, place)
    mirror = opened(place)
    weights = []
    for number, one in enumerate((store, mirror)):
        readers = [one.factors(name) for name in one.factor_names]
        settings = TrainSettings(join=join_settings(readers, items="all"), epochs=1, batch_size=7)
        config = SASRecConfig(hidden=8, layers=1, inner=8)
        run = fit(one, readers, tmp_path / f"run-{number}", config, settings)
        weights.append((run.folder / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert fetched(mirror) > 0


def test_what_a_mirror_lacks_is_not_told_to_be_built_into_it(store, place: Place):
    pushed(store, place)
    message = refused("factors.missing", lambda: opened(place).factors("s"))
    assert place.url in message
    assert "kd-cache build" not in message
