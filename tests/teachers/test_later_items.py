"""Teachers of items that came later: old items as before, new ones as their own were made, and what is refused."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import pipeline.carry
from cache.dataset import Dataset
from cache.errors import StoreError, UsageError
from cache.vectors import list_vectors, read_vectors, write_vectors
from pipeline.carry import carry, find_source
from pipeline.grow import Growth, join
from teachers.folder import load_folder
from teachers.prewhitening import whitened, whitened_present
from teachers.recformer import encode
from teachers.recformer_tokens import tokenise_items
from teachers.registry import load_teacher
from teachers.text import TextSettings, named
from tests.fakes import tiny_dataset
from tests.later import dataset_of, later_of, sequences
from tests.teachers.naive import vectors
from tests.teachers.recformer_parts import LIMITS, shop, vocabulary
from tests.teachers.test_recformer_teacher import tuned as tuned_recformer
from tests.teachers.test_teach import tune

NEW = 4


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Power does not fail here, so nobody waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def growth(tmp_path: Path) -> Growth:
    """Nine items and vectors of them; then four more."""
    old = tiny_dataset(tmp_path / "old", users=40)
    write_vectors(old, "random", vectors(old.num_items).numpy() + 1, {"origin": "test"})
    titles = {f"i{row}": f"Title {row}" for row in range(old.num_items)}
    log = later_of(sequences(old), users=9, items=NEW)
    return join(old, dataset_of(tmp_path / "later", log, titles=titles))


def extended(growth: Growth, path: Path, name: str = "random", twin: int = 2) -> Dataset:
    """The joined dataset; the vector of the first new item is that of the old item `twin`."""
    made = growth.write(path)
    old_VW = np.array(read_vectors(growth.old, "random"))
    new_VW = vectors(NEW, seed=9).numpy() + 1
    new_VW[0] = old_VW[twin]
    write_vectors(made, name, np.concatenate([old_VW, new_VW]), {"origin": "test"})
    return made


@given(st.integers(0, 2**31), st.integers(2, 20), st.integers(1, 6))
def test_later_rows_are_whitened_as_the_first_ones_were(seed: int, first: int, width: int) -> None:
    """Whitening is affine: the middle of two first rows becomes the middle of what they became."""
    rng = np.random.default_rng(seed)
    known = rng.normal(size=(first, width)).astype(np.float32)
    middle = (known[:1] + known[1:2]) / 2
    out = whitened(np.concatenate([known, middle]), first)
    assert np.array_equal(out[:first], whitened(known))
    np.testing.assert_allclose(out[first], (out[0] + out[1]) / 2, atol=1e-5)


def test_missing_rows_stay_missing_and_decide_nothing() -> None:
    known = np.concatenate([vectors(7).numpy(), np.zeros((1, 6), np.float32)])
    later = np.stack([(known[0] + known[1]) / 2, np.zeros(6, np.float32)])
    out = whitened_present(np.concatenate([known, later]), len(known))
    assert np.array_equal(out[:8], whitened_present(known))
    np.testing.assert_allclose(out[8], (out[0] + out[1]) / 2, atol=1e-5)
    assert not out[9].any()
    none = whitened_present(np.concatenate([np.zeros_like(known), later]), len(known))
    assert not none.any()


@pytest.mark.parametrize("whiten", [True, False])
def test_unisrec_answers_for_old_items_as_before_and_for_a_twin_as_for_its_twin(
    growth: Growth, tmp_path: Path, whiten: bool
) -> None:
    tune(growth.old, tmp_path / "t", transductive=False, whiten=whiten)
    teacher = load_teacher(tmp_path / "t")
    before = teacher.encode_items(growth.old)
    made = extended(growth, tmp_path / "made")
    after = teacher.encode_items(made)
    first = growth.old.num_items
    assert after.shape == (first + NEW, before.shape[1])
    assert np.array_equal(after[:first], before)
    np.testing.assert_allclose(after[first], before[2], atol=1e-6)
    assert np.abs(after[first + 1] - before).max(axis=1).min() > 1e-3
    assert np.array_equal(teacher.encode_some_items(made, np.array([first, 0])), after[[first, 0]])
    # what was asked before is answered as before, from the longer table too
    users, ends = growth.old.training_instances()
    ours, theirs = (teacher.encode_histories(one, users, ends) for one in (growth.old, made))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_teacher_of_ids_says_that_it_does_not_know_later_items(
    growth: Growth, tmp_path: Path
) -> None:
    tune(growth.old, tmp_path / "t", transductive=True)
    teacher = load_teacher(tmp_path / "t")
    assert not teacher.inductive
    with pytest.raises(UsageError, match="nothing of the 4 items") as caught:
        teacher.encode_items(extended(growth, tmp_path / "made"))
    assert caught.value.code == "teacher.transductive"


def test_vectors_of_other_making_are_refused(growth: Growth, tmp_path: Path) -> None:
    tune(growth.old, tmp_path / "t", transductive=False)
    made = growth.write(tmp_path / "made")
    write_vectors(made, "random", vectors(made.num_items, seed=3).numpy(), {"origin": "test"})
    with pytest.raises(StoreError, match="not those that the teacher") as caught:
        load_teacher(tmp_path / "t").encode_items(made)
    assert caught.value.code == "teacher.other_vectors"


def test_a_dataset_that_extends_another_one_is_refused(growth: Growth, tmp_path: Path) -> None:
    other = tiny_dataset(tmp_path / "other", users=41)
    write_vectors(other, "random", vectors(other.num_items).numpy() + 1, {"origin": "test"})
    tune(other, tmp_path / "t", transductive=False)
    with pytest.raises(StoreError, match="was tuned on the dataset") as caught:
        load_teacher(tmp_path / "t").encode_items(extended(growth, tmp_path / "made"))
    assert caught.value.code == "teacher.foreign"


def test_recformer_keeps_its_table_and_reads_later_items(tmp_path: Path) -> None:
    anonymous = shop(tmp_path / "shop")
    titles = anonymous.items["title"].to_pylist()
    log = {f"u{user}": [f"i{row}" for row in anonymous.sequence(user)] for user in range(10)}
    names = [f"i{row}" for row in range(9)]
    texts = dict(zip(names, titles, strict=True))
    old = dataset_of(tmp_path / "old", log, items=names, titles=texts)
    model = tuned_recformer(tmp_path / "t", old)
    later = {**log, "v": ["i0", "n0", "n1", "i2"]}
    texts |= {"n0": titles[4], "n1": "red oak lamp tool"}
    made = join(old, dataset_of(tmp_path / "later", later, titles=texts)).write(tmp_path / "made")
    teacher = load_teacher(tmp_path / "t")
    before, after = teacher.encode_items(old), teacher.encode_items(made)
    assert np.array_equal(after[:9], before)
    np.testing.assert_allclose(after[9], before[4], atol=1e-5)  # the same text
    alone = encode(model.eval(), tokenise_items(made, vocabulary(), LIMITS).alone())
    wanted = F.normalize(alone, dim=-1).numpy()[9:]
    np.testing.assert_allclose(after[9:], wanted, atol=1e-5)
    users, ends = made.training_instances()
    assert teacher.encode_histories(made, users, ends).shape == (len(users), before.shape[1])


class Heard:
    """Stands in for the text encoder: a text's vector is its length and its position in the call."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.texts: list[str] = []
        patch.setattr(pipeline.carry, "encode_texts", self)

    def __call__(self, folder, texts, settings, *, device, progress):
        self.texts += texts
        return np.array([[len(text), place] for place, text in enumerate(texts)], np.float32)


def test_old_vectors_are_carried_along_and_new_texts_alone_are_encoded(
    growth: Growth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard(monkeypatch)
    name = named(TextSettings())[2]
    before = np.arange(18, dtype=np.float32).reshape(9, 2)
    write_vectors(growth.old, name, before, {"origin": "test"})
    source = find_source(name, growth, [growth.old], None)
    assert source.encoded(growth) == NEW
    made = growth.write(tmp_path / "made")
    carry(source, growth, made)
    assert sorted(heard.texts) == ["the n0", "the n1", "the n2", "the n3"]
    found = read_vectors(made, name)
    assert np.array_equal(found[:9], before)
    assert np.array_equal(found[9:], [[6, 0], [6, 1], [6, 2], [6, 3]])
    carry(source, growth, made)  # once is enough
    assert len(heard.texts) == NEW


def test_without_old_vectors_old_texts_are_encoded_too(
    growth: Growth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard(monkeypatch)
    name = named(TextSettings(pooling="cls"))[2]  # the name says which pooling it was
    source = find_source(name, growth, [growth.old], None)
    assert source.encoded(growth) == 9 + NEW
    made = growth.write(tmp_path / "made")
    carry(source, growth, made)
    assert heard.texts == made.texts()


def test_vectors_that_the_later_dataset_brings_are_put_in_our_order(
    growth: Growth, tmp_path: Path
) -> None:
    rows = np.arange(growth.new.num_items, dtype=np.float32)[:, None]
    write_vectors(growth.new, "random", np.repeat(rows, 6, axis=1), {"origin": "ingested"})
    made = growth.write(tmp_path / "made")
    source = find_source("random", growth, [], None)
    carry(source, growth, made)
    assert np.array_equal(read_vectors(made, "random")[:, 0], growth.items)
    other = growth.write(tmp_path / "other")
    carry(replace(source, old=growth.old), growth, other)
    found = read_vectors(other, "random")
    assert np.array_equal(found[:9], read_vectors(growth.old, "random"))
    assert np.array_equal(found[9:, 0], growth.items[9:])
    assert list_vectors(other) == ["random"]


def test_vectors_that_nothing_here_can_make_are_refused_by_name(growth: Growth) -> None:
    with pytest.raises(UsageError, match=r"has no vectors 'random'.*--text") as caught:
        find_source("random", growth, [growth.old], None)
    assert caught.value.code == "extend.no_vectors"


def test_vectors_of_pictures_are_not_asked_of_a_text_encoder(growth: Growth) -> None:
    with pytest.raises(UsageError, match=r"made of pictures.*--image-vectors") as caught:
        find_source("clip-image-0123456789ab", growth, [growth.old], None)
    assert caught.value.code == "extend.no_vectors"
    assert "--text" not in str(caught.value)


def test_two_modalities_are_extended_each_by_its_own_vectors(
    growth: Growth, tmp_path: Path
) -> None:
    """A UniM2Rec of text and image vectors; an image of zeros is missing, of an old item and of a new one."""
    from teachers.unim2rec import Architecture, UniM2Rec
    from teachers.unim2rec_teacher import save_unim2rec

    torch.manual_seed(0)
    old_VW = np.array(read_vectors(growth.old, "random"))
    images_VW = vectors(9, 5, seed=4).numpy()
    images_VW[3] = 0
    features = [torch.from_numpy(whitened_present(one)) for one in (old_VW, images_VW)]
    shape = Architecture(text_width=6, image_width=5, hidden=8, inner=10, experts=3)
    model = UniM2Rec(shape, *features)
    save_unim2rec(
        tmp_path / "t",
        model,
        model.state_dict(),
        stage="tuned",
        dataset=growth.old.digest,
        identity={"text": "random sha256:0", "image": "eyes", "whiten": True},
        validation={},
    )
    teacher = load_teacher(tmp_path / "t")
    assert teacher.vector_sets == ("random", "eyes")
    made = extended(growth, tmp_path / "made", twin=3)
    later_VW = vectors(NEW, 5, seed=5).numpy()
    later_VW[0] = 0  # so the first new item is the old item 3 in both modalities
    write_vectors(made, "eyes", np.concatenate([images_VW, later_VW]), {"origin": "test"})
    before, after = teacher.encode_items(growth.old), teacher.encode_items(made)
    assert np.array_equal(after[:9], before)
    np.testing.assert_allclose(after[9], before[3], atol=1e-6)
    assert load_folder(tmp_path / "t")[2] == teacher.digest
