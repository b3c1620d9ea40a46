"""UniM2Rec: fusion by hand and by loop, missing modalities, and its pre-training and tuning as the command line calls them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from cache.dataset import Dataset, write_dataset
from cache.errors import CkdError
from cache.vectors import write_vectors
from encoder.packed import Packed
from pipeline import teach_unim2rec as teach
from pipeline.teach import evaluate_teacher
from pipeline.teach_unim2rec import Modalities
from teachers.folder import load_folder
from teachers.pretrain import Augmentation
from teachers.prewhitening import whitened, whitened_present
from teachers.registry import load_teacher
from teachers.trainer import Recipe
from teachers.unim2rec import Architecture, Fusion, UniM2Rec, dropped
from tests.fakes import tiny_dataset, tree
from tests.teachers import naive
from tests.teachers.naive import vectors

TEXT, IMAGE = 6, 5
SHAPE = Architecture(text_width=TEXT, image_width=IMAGE, hidden=8, inner=10, experts=3)
SMALL = {"hidden": 8, "inner": 10, "experts": 3}
RECIPE = Recipe(epochs=3, patience=3, batch_size=32, learning_rate=0.01)
SETS = Modalities(text_vectors="text", image_vectors="image")


class Killed(BaseException):
    """What a report raises to stop a run where it stands."""


def silent(done: float, total: float, note: str) -> None:
    """A report that nobody hears."""


def random_model(
    texts: torch.Tensor, images: torch.Tensor, shape: Architecture = SHAPE, *, ids: bool = False
) -> UniM2Rec:
    """Every parameter drawn at random; in evaluation mode."""
    model = UniM2Rec(shape, texts, images, with_ids=ids)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for one in model.parameters():
            if one.requires_grad:
                one.copy_(torch.randn(one.shape, generator=draws) * 0.4)
    return model.eval()


# ---- fusion


def test_fusion_by_hand() -> None:
    fusion = Fusion(1)
    with torch.no_grad():
        fusion.gate.weight.copy_(torch.tensor([[1.0, 2.0]]))
        fusion.gate.bias.fill_(-4.0)
        # 1 * 2 + 2 * 1 - 4 = 0, so the gate is a half: (2 + 1) / 2
        assert float(fusion(torch.tensor([[2.0]]), torch.tensor([[1.0]]))) == pytest.approx(1.5)
        fusion.gate.bias.fill_(96.0)  # the gate is 1: the text alone
        assert float(fusion(torch.tensor([[2.0]]), torch.tensor([[1.0]]))) == pytest.approx(2.0)


@pytest.mark.parametrize("ids", [False, True])
def test_items_are_those_of_a_slow_loop_with_missing_modalities(ids: bool) -> None:
    texts, images = vectors(5, TEXT), vectors(5, IMAGE, 1)
    texts[1], images[2], texts[3], images[3] = 0, 0, 0, 0
    model = random_model(texts, images, ids=ids)
    w = {name: value.double() for name, value in model.state_dict().items()}
    with torch.no_grad():
        found = model.item_table()
    for row in range(5):
        t, v = w["missing_text"], w["missing_image"]
        if row not in {1, 3}:
            t = naive.adapted(w, texts[row], "text_adaptor.")
        if row not in {2, 3}:
            v = naive.adapted(w, images[row], "image_adaptor.")
        slow = []
        for d in range(8):
            logit = float(w["fusion.gate.weight"][d] @ torch.cat([t, v]) + w["fusion.gate.bias"][d])
            z = 1 / (1 + np.exp(-logit))
            slow.append(z * float(t[d]) + (1 - z) * float(v[d]))
        expected = torch.tensor(slow, dtype=torch.float64)
        if ids:
            expected = expected + w["item_embedding.weight"][row]
        torch.testing.assert_close(found[row].double(), expected, rtol=0, atol=1e-5)


# ---- missing modalities


def test_the_gradient_reaches_the_missing_vector_where_one_is_missing_and_only_there() -> None:
    for hole, reached in ((True, True), (False, False)):
        texts, images = vectors(4, TEXT), vectors(4, IMAGE, 1)
        if hole:
            images[2] = 0
        model = random_model(texts, images)
        model.item_table().sum().backward()
        assert model.missing_image.grad is not None
        assert bool(model.missing_image.grad.any()) == reached
        assert not model.missing_text.grad.any()  # type: ignore[union-attr]


def scores(model: UniM2Rec, history: list[int]) -> torch.Tensor:
    packed = Packed.of(np.array(history), np.array([len(history)]))
    with torch.no_grad():
        table = model.item_table()
        return model.logits(model.states(table[packed.items], packed, only_last=True), table)[0]


def test_with_all_images_missing_what_reads_images_changes_nothing() -> None:
    texts = vectors(4, TEXT)
    model = random_model(texts, torch.zeros(4, IMAGE))
    before = scores(model, [0, 2])
    with torch.no_grad():
        for one in model.image_adaptor.parameters():
            one.mul_(-3).add_(1)
    assert torch.equal(scores(model, [0, 2]), before)
    with torch.no_grad():
        model.missing_image.add_(1)
    assert not torch.allclose(scores(model, [0, 2]), before, atol=1e-3)


def test_permuting_the_items_permutes_the_scores() -> None:
    texts, images = vectors(5, TEXT), vectors(5, IMAGE, 1)
    images[1] = 0
    order = torch.tensor([3, 0, 4, 1, 2])
    one, two = random_model(texts, images), random_model(texts[order], images[order])
    place = {int(old): new for new, old in enumerate(order)}
    found = scores(two, [place[item] for item in (0, 1, 4)])
    torch.testing.assert_close(found, scores(one, [0, 1, 4])[order], rtol=0, atol=1e-5)


def test_training_drops_present_modalities_by_their_rate_but_never_all_of_an_item() -> None:
    torch.manual_seed(0)
    present = torch.tensor([[True, True], [True, False], [False, False]]).repeat(20_000, 1)
    left = dropped(present, 0.3).view(20_000, 3, 2)
    assert torch.equal(left[:, 1], present[1].expand(20_000, 2))  # the only one stays
    assert not left[:, 2].any()  # what is missing stays so
    # one of both leaves alone with 0.3 * 0.7 = 0.21; deviation sqrt(0.21 * 0.79 / 20,000) = 0.003
    assert left[:, 0].any(1).all()
    assert float((~left[:, 0]).float().mean(0)[0]) == pytest.approx(0.21, abs=0.012)
    assert torch.equal(dropped(present, 0.0), present)


def test_whitening_looks_at_present_rows_alone_and_leaves_zeros() -> None:
    table = vectors(40, IMAGE).numpy()
    table[[3, 17]] = 0
    kept = np.delete(np.arange(40), [3, 17])
    found = whitened_present(table)
    assert not found[[3, 17]].any()
    assert np.array_equal(found[kept], whitened(table[kept]))
    assert not whitened_present(np.zeros((3, 4), np.float32)).any()


# ---- the runs


def with_vectors(dataset: Dataset, *, text: int = TEXT, image: int | None = IMAGE) -> Dataset:
    """Vectors at random; `image` None brings no image."""
    rows = dataset.num_items
    write_vectors(dataset, "text", vectors(rows, text, 2).numpy() + 1, {"origin": "ingested"})
    if image is not None:
        images = vectors(rows, image, 3).numpy()
        images[::4] = 0
        write_vectors(dataset, "image", images, {"origin": "ingested"})
    return dataset


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return with_vectors(tiny_dataset(tmp_path / "data", users=40))


def tune(dataset: Dataset, out: Path, **more: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "modalities": SETS,
        "whiten": True,
        "start": None,
        "transductive": False,
        "freeze_encoder": False,
        "architecture": SMALL,
        "recipe": RECIPE,
        "device": "cpu",
        "report": silent,
    }
    return teach.tune(dataset, out, **(settings | more))


def pretrain(
    folder: Path, out: Path, images: tuple[int | None, int | None] = (IMAGE, IMAGE), **more: Any
) -> dict[str, Any]:
    """Pre-train on two source domains with images of these widths."""
    sources = []
    for n, width in enumerate(images):
        shop = tiny_dataset(folder / f"{out.name}{n}", users=20, seed=n)
        sources.append((with_vectors(shop, image=width), Modalities(text_vectors="text")))
    settings: dict[str, Any] = {
        "whiten": True,
        "word_drop": 0.2,
        "augmentation": Augmentation(),
        "architecture": SMALL,
        "recipe": RECIPE,
        "limit": None,
        "device": "cpu",
        "report": silent,
    }
    return teach.pretrain(sources, out, **(settings | more))


def kill(done: float, total: float, note: str) -> None:
    if done > 1:
        raise Killed


def test_a_tuned_folder_answers_what_its_configuration_says(
    dataset: Dataset, tmp_path: Path
) -> None:
    config = tune(dataset, tmp_path / "t", transductive=True)
    assert config["teacher"] == "unim2rec"
    teacher = load_teacher(tmp_path / "t")
    assert teacher.name == "unim2rec"
    for part, name in (("valid", "validation"), ("test", "test")):
        assert evaluate_teacher(teacher, dataset, part)[1] == config[name]
    weights, _, _ = load_folder(tmp_path / "t")
    raw = vectors(dataset.num_items, IMAGE, 3).numpy()
    raw[::4] = 0
    assert np.array_equal(weights["img_embedding.weight"].numpy(), whitened_present(raw))


def test_tuning_stopped_after_an_epoch_ends_in_the_same_bytes(
    dataset: Dataset, tmp_path: Path
) -> None:
    tune(dataset, tmp_path / "whole")
    with pytest.raises(Killed):
        tune(dataset, tmp_path / "cut", report=kill)
    tune(dataset, tmp_path / "cut")
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")
    assert tune(dataset, tmp_path / "cut")["epochs"] == 3  # taken as it is


def test_pretraining_lowers_the_loss_goes_on_to_the_same_bytes_and_is_a_start(
    dataset: Dataset, tmp_path: Path
) -> None:
    quiet = {**SMALL, "dropout": 0.0, "attention_dropout": 0.0, "adaptor_dropout": 0.0}
    recipe = replace(RECIPE, epochs=8)
    config = pretrain(tmp_path, tmp_path / "p", recipe=recipe, architecture=quiet)
    assert config["losses"][-1] < 0.9 * config["losses"][0]
    with pytest.raises(Killed):
        pretrain(tmp_path, tmp_path / "q", recipe=recipe, architecture=quiet, report=kill)
    for number in range(2):  # the same sources again, under the names of the second run
        (tmp_path / f"q{number}").rename(tmp_path / f"old{number}")
    pretrain(tmp_path, tmp_path / "q", recipe=recipe, architecture=quiet)
    assert tree(tmp_path / "q") == tree(tmp_path / "p")
    frozen = {"start": tmp_path / "p", "freeze_encoder": True, "architecture": {}}
    tune(dataset, tmp_path / "t", **frozen)
    before, after = load_folder(tmp_path / "p")[0], load_folder(tmp_path / "t")[0]
    for name, value in before.items():
        same = torch.equal(value, after[name])
        assert same == (name.split(".")[0] in {"position_embedding", "trm_encoder"}), name


@pytest.mark.parametrize(
    ("widths", "call", "code"),
    [
        ({"image": IMAGE + 1}, {}, "tune.other_image"),
        ({"text": TEXT + 1}, {}, "tune.other_text"),
        ({}, {"whiten": False}, "tune.other_text"),
        ({}, {"modalities": replace(SETS, image_vectors="pictures")}, "vectors.missing"),
        ({}, {"start": None, "freeze_encoder": True}, "tune.nothing_to_freeze"),
    ],
)
def test_features_that_do_not_fit_are_refused(
    tmp_path: Path, widths: dict[str, int], call: dict[str, Any], code: str
) -> None:
    pretrain(tmp_path, tmp_path / "p", recipe=replace(RECIPE, epochs=1))
    target = with_vectors(tiny_dataset(tmp_path / "target", seed=9), **widths)
    with pytest.raises(CkdError) as caught:
        tune(target, tmp_path / "t", **({"start": tmp_path / "p", "architecture": {}} | call))
    assert caught.value.code == code
    assert not (tmp_path / "t").exists()


def test_sources_of_different_widths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CkdError, match="image vectors image have width") as caught:
        pretrain(tmp_path, tmp_path / "p", images=(IMAGE, IMAGE + 1))
    assert caught.value.code == "pretrain.widths"
    assert not (tmp_path / "p").exists()


def test_a_source_without_images_lacks_all_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = pretrain(tmp_path, tmp_path / "p", images=(None, IMAGE))
    assert config["architecture"]["image_width"] == IMAGE
    assert config["image"] == {"origin": "ingested"}
    assert f"{tmp_path / 'p0'}: has no image vectors" in capsys.readouterr().err


def test_without_anybody_to_train_on_nothing_is_sealed(tmp_path: Path) -> None:
    titles = {"item": ["a", "b", "c"], "title": ["red", "blue", "oak"]}
    short = write_dataset(
        tmp_path / "d",
        items=pa.table(titles),
        user_ids=None,
        flat=np.arange(30) % 3,
        offsets=np.arange(11) * 3,
    )
    with_vectors(short)
    with pytest.raises(CkdError) as caught:
        tune(short, tmp_path / "t")
    assert caught.value.code == "tune.no_users"
    settings = {"whiten": True, "word_drop": 0.2, "augmentation": Augmentation(), "limit": None}
    with pytest.raises(CkdError) as caught:
        teach.pretrain(
            [(short, SETS)],
            tmp_path / "p",
            architecture=SMALL,
            recipe=RECIPE,
            device="cpu",
            report=silent,
            **settings,
        )
    assert caught.value.code == "pretrain.no_users"
    assert not (tmp_path / "t").exists()
    assert not (tmp_path / "p").exists()


def test_vectors_whose_name_was_mistyped_are_those_that_are_not_there(
    dataset: Dataset, tmp_path: Path
) -> None:
    for wrong in ({"text_vectors": "my set"}, {"image_vectors": "my set"}):
        with pytest.raises(CkdError, match=r"has no vectors 'my set' \(there: ") as caught:
            tune(dataset, tmp_path / "t", modalities=replace(SETS, **wrong))
        assert caught.value.code == "vectors.missing"


def test_eyes_that_never_opened_are_the_targets_to_learn(dataset: Dataset, tmp_path: Path) -> None:
    config = pretrain(tmp_path, tmp_path / "p", images=(None, None))
    assert config["image"] is None
    tuned = tune(dataset, tmp_path / "t", start=tmp_path / "p", architecture={})
    assert tuned["architecture"]["image_width"] == IMAGE
    # what was learnt without eyes is taken over: no step of a rate of zero moves it
    still = replace(RECIPE, epochs=1, learning_rate=0.0)
    tune(dataset, tmp_path / "u", start=tmp_path / "p", architecture={}, recipe=still)
    before, after = load_folder(tmp_path / "p")[0], load_folder(tmp_path / "u")[0]
    kept = {name for name in before if not name.startswith("image_adaptor.")}
    assert all(torch.equal(before[name], after[name]) for name in kept)


def test_a_target_without_images_is_refused(tmp_path: Path) -> None:
    target = with_vectors(tiny_dataset(tmp_path / "target"), image=None)
    with pytest.raises(CkdError) as caught:
        tune(target, tmp_path / "t", modalities=Modalities(text_vectors="text"))
    assert caught.value.code == "image.no_vectors"
    assert not (tmp_path / "t").exists()
