"""Factor sets on disk: their bytes by hand, what they answer, and every damage told by name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline.build
from cache import factors
from cache.describe import describe
from cache.digest import canonical_json
from cache.errors import StoreError, TeacherError
from cache.factor_layout import FactorLayout
from cache.factor_writer import FactorWriter, factor_settings, refuse_other_product
from cache.layout import Layout
from cache.manifest import read_manifest, seal
from cache.score_writer import log_softmax, parents_of
from cache.store import Store, copy_factor_set, copy_score_set
from cache.unfinished import Unfinished
from cache.verify import compare, verify
from pipeline.build import build, scorer
from tests.fakes import TableTeacher, tiny_plan, tiny_store, tree


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores and factors of one teacher, factors alone of another; files of 8 rows."""
    store = tiny_store(tmp_path_factory.mktemp("sound") / "store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.build, "HISTORY_BLOCK", 8)
        patch.setattr(pipeline.build, "FACTOR_BLOCKS", 1)
        build(TableTeacher("one"), store, keep="both", quality={"ndcg@10": 0.05})
        build(TableTeacher("two", seed=1), store, keep="factors")
    return store.path


@pytest.fixture
def path(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "store")
    return tmp_path / "store"


def hand_made(store: Store, *, tau: float = 0.5) -> FactorWriter:
    settings = factor_settings(
        teacher="hand",
        teacher_digest="sha256:" + "0" * 64,
        quality={},
        tau=tau,
        rows_per_file=7,
        history_block=1,
    )
    folder = store.factor_folder("hand")
    part = Unfinished.open(folder, parents=parents_of(store.plan), settings=settings)
    layout = FactorLayout.of(store.plan, items=9, width=2, per_file=7)
    return FactorWriter(part, layout)


def test_values_by_hand(tmp_path):
    # history n is (1, n), item v is (v, 0.5): the score is v + n / 2, and n / 2 is the same for all items of a history,
    # so the softmax over items {0, 2} at tau 0.5 has logits 0 and 4: log(1 / (1 + e^4)) = -4.018150, log = -0.018150
    store = tiny_store(tmp_path / "store")
    writer = hand_made(store)
    for table, number in list(writer.missing()):
        rows = np.array(writer.layout.file_rows(table, number), np.float32)
        columns = (np.ones_like(rows), rows) if table == "histories" else (rows, 0.5 + 0 * rows)
        writer.put(table, number, np.stack(columns, axis=1))
    writer.seal()
    reader = store.factors("hand")
    logp = reader.log_probabilities(np.array([3, 0, 11]), np.array([0, 2]))
    assert logp == pytest.approx(np.array([[-4.018150, -0.018150]] * 3), abs=1e-5)
    # at tau 1 the logits are 0 and 2: -2.126928 and -0.126928
    (one,) = reader.log_probabilities(np.array([5]), np.array([2, 0]), tau=1.0)
    assert one == pytest.approx([-0.126928, -2.126928], abs=1e-5)
    assert reader.raw(np.array([4]), np.array([3]))[0, 0] == 5.0
    assert reader.history_vectors(np.array([29, 2])).tolist() == [[1, 29], [1, 2]]
    whole = np.exp(reader.log_probabilities(np.array([3, 30])))
    assert whole.shape == (2, 9)
    assert whole.sum(axis=1) == pytest.approx([1, 1], abs=1e-6)
    for beyond in (-1, store.plan.num_instances):
        with pytest.raises(IndexError, match="beyond"):
            reader.history_vectors(np.array([beyond]))


def test_the_bytes_of_a_file_by_hand(tmp_path):
    store = tiny_store(tmp_path / "store")
    writer = hand_made(store)
    writer.put("items", 1, np.array([[1, -2], [0.5, 65504]], np.float32))
    data = (writer.part.work / "set/items/0000001.npy").read_bytes()
    text = "{'descr': '<f2', 'fortran_order': False, 'shape': (2, 2), }"
    # version 1.0, then the length of what is left of the 128 bytes, 118 = 0x76
    assert data[:10] == b"\x93NUMPY\x01\x00\x76\x00"
    assert data[10:128] == (text + " " * (117 - len(text)) + "\n").encode()
    # 1, -2, 0.5 and the largest there is, as float16: 3c00 c000 3800 7bff, little end first
    assert data[128:] == bytes.fromhex("003c 00c0 0038 ff7b")


def test_numpy_alone_opens_every_file(path):
    store = Store.open(path)
    reader = store.factors("one")
    stock = [np.load(file, allow_pickle=False) for file in sorted(reader.folder.glob("items/*"))]
    assert np.array_equal(np.concatenate(stock), reader.item_vectors())
    stock = [np.load(file) for file in sorted(reader.folder.glob("histories/*"))]
    assert len(stock) == 4
    ids = np.random.default_rng(0).permutation(store.plan.num_instances)
    assert np.array_equal(np.concatenate(stock)[ids], reader.history_vectors(ids))


def test_a_batch_of_the_plan_is_what_the_score_set_says_within_rounding(path):
    store = Store.open(path)
    scores, kept = store.scores("one"), store.factors("one")
    assert len(kept) == len(scores)
    assert (kept.tau, kept.quality, kept.name) == (scores.tau, scores.quality, "one")
    for index in range(len(scores)):
        # a number is off by 2^-11 of itself at most, so a cosine by 2^-10, and two logits from each other by
        # 2 * 2^-10 / 0.07 = 0.028; then both are rounded, at -28 to steps of 2^-6
        gap = np.abs(kept[index].astype(float) - scores[index].astype(float))
        assert kept[index].dtype == np.float16
        assert gap.max() < 0.028 + 2**-6


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 30), tau=st.floats(0.05, 5))
def test_any_instances_any_items_any_temperature(sound: Path, seed: int, size: int, tau: float):
    store = Store.open(sound, deep=False)
    rng = np.random.default_rng(seed)
    instances = rng.integers(0, store.plan.num_instances, size)
    items = rng.permutation(9)[: rng.integers(1, 10)]
    teacher = TableTeacher("one")
    users_TD = teacher.encode_histories(
        store.dataset, store.plan.instance_users[instances], store.plan.instance_ends[instances]
    )
    asked = log_softmax(users_TD @ teacher.encode_items(store.dataset)[items].T, tau)
    found = store.factors("one").log_probabilities(instances, items, tau)
    assert found.dtype == np.float32
    assert np.abs(found - asked).max() < 2e-3 / tau + 0.01


def test_little_may_be_mapped_at_once(path, monkeypatch):
    store = Store.open(path)
    ids = np.random.default_rng(0).permutation(store.plan.num_instances)
    wanted = store.factors("one").history_vectors(ids)
    monkeypatch.setattr(factors.scores, "MAPPED_BYTES", 1)
    reader = store.factors("one")
    for _ in range(3):
        assert np.array_equal(reader.history_vectors(ids), wanted)
        assert len(reader._tables["histories"]._maps) == 2


# ------------------------------------------------------------------------------------- what is refused


def test_a_score_that_is_no_product_is_refused():
    rng = np.random.default_rng(0)
    users, items = (rng.normal(size=(n, 4)).astype(np.float32) for n in (5, 6))
    score = users @ items.T
    refuse_other_product("t", score, users, items, 1.0)
    refuse_other_product("t", score + np.arange(5, dtype=np.float32)[:, None], users, items, 1.0)
    for other in (2 * score, score + items[:, 0], np.full_like(score, np.nan)):
        with pytest.raises(TeacherError, match=r"nats at tau 1 \(at most 0.1") as caught:
            refuse_other_product("t", other, users, items, 1.0)
        assert caught.value.code == "teacher.not_a_product"
    with pytest.raises(TeacherError, match=r"cannot be taken of shapes \(5, 4\) and \(6, 3\)"):
        refuse_other_product("t", score, users, items[:, 1:], 1.0)
    # of such vectors float16 keeps a score to about 0.004; at tau 0.001 that is 4 nats
    with pytest.raises(TeacherError, match=r"at tau 0.001"):
        refuse_other_product("t", score, users, items, 0.001)


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        (np.ones((3, 2), np.float32), r"items from row 7: shape \(3, 2\).*\(2, 2\) was expected"),
        (np.ones((2, 2, 1), np.float32), r"items from row 7: shape \(2, 2, 1\)"),
        (np.array([[1, 1], [1, 7e4]], np.float32), "items: row 8 holds 70000 at 1, which float16"),
        (np.array([[np.nan, 1], [1, 1]], np.float32), "items: row 7 holds nan at 0"),
    ],
)
def test_vectors_that_cannot_be_kept_are_told_by_row(tmp_path, vectors, words):
    writer = hand_made(tiny_store(tmp_path / "store"))
    with pytest.raises(TeacherError, match=f"teacher 'hand', {words}"):
        writer.put("items", 1, vectors)
    assert ("items", 1) in list(writer.missing())
    with pytest.raises(StoreError, match="7 of 7 files are not there yet") as caught:
        writer.seal()
    assert caught.value.code == "scores.incomplete"


def read_all(path: Path) -> None:
    store = Store.open(path)
    for name in store.factor_names:
        reader = store.factors(name)
        for index in range(len(reader)):
            reader[index]
        reader.item_vectors()


def test_a_sound_store_has_no_findings_and_says_what_it_holds(path):
    assert verify(path) == []
    read_all(path)
    store = Store.open(path)
    assert (store.names, store.factor_names) == (["one"], ["one", "two"])
    assert store.teachers == ["one", "two"]
    assert store.reader("one").manifest.kind == "scores"
    assert store.reader("two").manifest.kind == "factors"
    one, two = describe(store).factor_sets
    assert (one.name, two.name, one.quality) == ("one", "two", {"ndcg@10": 0.05})
    files = list(store.factor_folder("two").rglob("*.npy"))
    assert two.bytes == sum(p.stat().st_size for p in files)
    # 128 bytes of header a file, then 8 float16 an instance and item
    assert two.bytes == 128 * len(files) + 16 * (store.plan.num_instances + 9)
    with pytest.raises(StoreError, match=r"no factors of 'three' \(there: one, two\)") as caught:
        store.factors("three")
    assert caught.value.code == "factors.missing"
    assert "--keep factors" in str(caught.value)


def test_every_flipped_bit_is_found(path):
    rng = np.random.default_rng(0)
    for file in sorted(p for p in (path / "factors").rglob("*") if p.is_file()):
        good = file.read_bytes()
        for bit in {0, len(good) * 8 - 1, *map(int, rng.integers(0, len(good) * 8, 6))}:
            bad = bytearray(good)
            bad[bit // 8] ^= 1 << bit % 8
            file.write_bytes(bad)
            named = str(file.parent if file.name == "manifest.json" else file)
            assert named in "\n".join(map(str, verify(path))), (file, bit)
            with pytest.raises(StoreError) as caught:
                read_all(path)
            assert named in str(caught.value)
        file.write_bytes(good)
    assert verify(path) == []


@pytest.mark.parametrize(
    "harm",
    [
        lambda file: file.unlink(),
        lambda file: os.truncate(file, file.stat().st_size - 1),
        lambda file: file.write_bytes(file.read_bytes() + b"\0"),
        lambda file: (file.rename(file.parents[4] / "x"), file.symlink_to(file.parents[4] / "x")),
        lambda file: file.with_name("0000009.npy").write_bytes(b"more"),
    ],
    ids=["missing", "shorter", "longer", "a link", "extra"],
)
def test_files_missing_extra_or_of_another_kind_are_refused_on_opening(path, harm):
    file = path / "factors/one/histories/0000001.npy"
    harm(file)
    found = verify(path)
    assert str(file.parent) in str(found[0])
    with pytest.raises(StoreError, match=str(file.parent)):
        Store.open(path).factors("one")


def test_a_file_that_is_put_in_place_of_another_is_verified_anew(path):
    folder = path / "factors/one/histories"
    reader = Store.open(path).factors("one")
    reader.history_vectors(np.arange(8, 16))
    reader._tables["histories"]._maps.clear()
    shutil.copy(folder / "0000000.npy", folder / "0000001.npy")
    with pytest.raises(StoreError, match=r"0000001.npy: its bytes have changed.* 8 to 15"):
        reader.history_vectors(np.arange(8, 16))


def _sealed_anew(folder: Path, **changes) -> None:
    """Seal again as a publisher could who has not our writer; changed settings or counts."""
    old = read_manifest(folder, "factors")
    (folder / "manifest.json").unlink()
    parts = {"parents": old.parents, "settings": old.settings, "counts": old.counts}
    seal(folder, kind="factors", **{key: {**parts[key], **changes.get(key, {})} for key in parts})


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"counts": {"instances": 5}}, "store.bad_settings"),
        ({"counts": {"items": 10}}, "store.bad_settings"),
        ({"counts": {"width": 0}}, "store.bad_settings"),
        ({"counts": {"width": 4}}, "store.inconsistent"),
        ({"settings": {"rows_per_file": 16}}, "store.inconsistent"),
        ({"settings": {"rows_per_file": 17}}, "store.bad_settings"),
        ({"settings": {"history_block": 7}}, "store.bad_settings"),
        ({"settings": {"more": 1}}, "store.bad_settings"),
        ({"settings": {"rows_per_file": 0}}, "store.bad_settings"),
        ({"settings": {"rows_per_file": True}}, "store.bad_settings"),
        ({"settings": {"tau": -1.0}}, "store.bad_settings"),
        ({"settings": {"tau": "x"}}, "store.bad_settings"),
        ({"settings": {"dtype": "float32"}}, "store.bad_settings"),
        ({"settings": {"score": "distance"}}, "store.bad_settings"),
        ({"settings": {"quality": 1}}, "store.bad_settings"),
        ({"parents": {"plan": "sha256:" + "0" * 64}}, "scores.foreign"),
        ({"parents": {"dataset": "sha256:" + "0" * 64}}, "scores.foreign"),
    ],
)
def test_a_manifest_that_lies_is_refused(path, changes, code):
    _sealed_anew(path / "factors/two", **changes)
    with pytest.raises(StoreError) as caught:
        Store.open(path).factors("two")
    assert caught.value.code == code
    assert [finding.code for finding in verify(path)] == [code]


@pytest.mark.parametrize(
    ("place", "value", "code"),
    [(0, b"X", "store.bad_header"), (128, b"\x00\x7e", "store.not_finite")],
)
def test_a_publisher_who_seals_nonsense_is_told_on_first_touch(path, place, value, code):
    folder = path / "factors/two"
    file = folder / "items/0000000.npy"
    data = bytearray(file.read_bytes())
    data[place : place + len(value)] = value
    file.write_bytes(data)
    _sealed_anew(folder)
    with pytest.raises(StoreError, match=r"items/0000000.npy") as caught:
        Store.open(path).factors("two").item_vectors(np.array([5]))
    assert caught.value.code == code


def test_factors_over_another_plan_are_refused_with_both_digests(path, tmp_path):
    store = Store.open(path)
    other = Store.create(
        tmp_path / "other", store.dataset, lambda f, inside: tiny_plan(f, inside, seed=5)
    )
    shutil.copytree(store.factor_folder("two"), other.factor_folder("two"))
    with pytest.raises(StoreError) as caught:
        other.factors("two")
    for words in (store.plan.digest, other.plan.digest, "--teacher two --keep factors"):
        assert words in str(caught.value)
    shutil.rmtree(other.path / "factors")
    with pytest.raises(StoreError) as caught:
        copy_factor_set(store, "two", other)
    assert caught.value.code == "store.lineage"
    assert not other.factor_folder("two").exists()


def test_a_copied_factor_set_is_the_same_and_touches_nothing_else(path, tmp_path):
    store = Store.open(path)
    twin = Store.create(tmp_path / "twin", store.dataset, store.plan)
    copy_factor_set(store, "one", twin)
    before = tree(twin.path)
    assert copy_score_set(store, "one", twin).digest == store.scores("one").digest
    assert before.items() <= tree(twin.path).items()
    copy_factor_set(store, "two", twin)
    assert tree(twin.path) == tree(store.path)


def test_one_name_never_stands_for_two_teachers(path, tmp_path):
    store = Store.open(path)
    build(
        TableTeacher("two", seed=7), tiny := Store.create(tmp_path / "t", store.dataset, store.plan)
    )
    for copy, source, target in (
        (copy_factor_set, store, tiny),
        (copy_score_set, tiny, store),
    ):
        with pytest.raises(StoreError, match="teacher_digest") as caught:
            copy(source, "two", target)
        assert caught.value.code == "scores.exists"
    shutil.copytree(tiny.folder("two"), store.folder("two"))
    assert [finding.code for finding in verify(path)] == ["scores.exists"]


def test_asking_again_finds_out_another_teacher_in_factors_too(path):
    store = Store.open(path)
    every = len(store.plan)
    for name, seed in (("one", 0), ("two", 1)):
        right, wrong = (scorer(TableTeacher(name, seed=s), store.dataset) for s in (seed, 5))
        assert compare(store, name, right, sample=every) == []
        told = compare(store, name, wrong, sample=every)
        kinds = {"factors", "scores"} if name == "one" else {"factors"}
        assert {str(one).split(f"/{name}: batch")[0].rpartition("/")[2] for one in told} == kinds


def test_unfinished_factors_are_no_damage_and_are_told(path):
    (path / "factors/.work-three").mkdir()
    (path / "scores/.work-three").mkdir()
    assert verify(path) == []
    assert describe(Store.open(path)).unfinished == ("three",)
    (path / "factors/stray").write_text("")
    assert [finding.code for finding in verify(path)] == ["store.unexpected"]


@pytest.mark.parametrize("kind", ["scores", "factors"])
def test_a_set_of_another_number_of_files_is_refused_before_their_names_are_made(
    path, monkeypatch, kind
):
    """A manifest of 1 kB may ask for millions of files."""
    layout = {"scores": Layout, "factors": FactorLayout}[kind]
    store = Store.open(path)
    name = (store.names if kind == "scores" else store.factor_names)[0]
    folder = path / kind / name
    manifest = folder / "manifest.json"
    value = json.loads(manifest.read_bytes())
    (gone,) = (
        file for file in value["files"] if file["path"].endswith(("c.0.0.0", "items/0000000.npy"))
    )
    value["files"].remove(gone)
    (folder / gone["path"]).unlink()
    manifest.write_bytes(canonical_json(value) + b"\n")
    monkeypatch.setattr(layout, "sizes", lambda _: pytest.fail("was counted by name"))
    with pytest.raises(StoreError) as caught:
        getattr(store, kind)(name)
    assert caught.value.code == "store.inconsistent"
