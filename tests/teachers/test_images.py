"""Pictures to vectors: those of the tower asked directly, and every picture that is none counted as missing."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

from cache.dataset import Dataset, write_dataset
from cache.errors import CkdError
from pipeline.carry import _OF_PICTURES
from teachers import images as module
from teachers.images import Pictures, Preprocessing, image_vectors
from teachers.text import TextSettings, encode_texts
from tests.teachers.recformer_parts import WORDS, tokenizer, tokenizer_folder

MEAN, DEVIATION = [0.4, 0.5, 0.6], [0.2, 0.25, 0.5]
CONFIG = {
    "do_resize": True,
    "size": {"shortest_edge": 16},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 16, "width": 16},
    "do_normalize": True,
    "image_mean": MEAN,
    "image_std": DEVIATION,
}


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP vision tower of random weights: two layers, 16 pixels a side."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    folder = tmp_path_factory.mktemp("tower")
    CLIPVisionModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(CONFIG))
    return folder


def dataset_with(path: Path, images: list[str]) -> Dataset:
    items = pa.table({"item": [f"i{row}" for row in range(len(images))], "image": images})
    flat = np.arange(len(images) * 2) % len(images)
    return write_dataset(
        path, items=items, user_ids=None, flat=flat, offsets=np.array([0, len(flat)])
    )


def picture(path: Path, size: tuple[int, int] = (16, 16), seed: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def bomb(path: Path) -> None:
    """A PNG of a few bytes that says it is 60,000 pixels a side."""
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def test_vectors_are_those_of_the_tower_asked_directly(tmp_path: Path, tower: Path) -> None:
    rows = [picture(tmp_path / "p" / f"in/{n}.png", seed=n) for n in range(3)]
    dataset = dataset_with(tmp_path / "d", [f"in/{n}.png" for n in range(3)])
    name, found, note = image_vectors(dataset, Pictures(model=str(tower), folder=tmp_path / "p"))
    # of the size already, so nothing is resized or cropped: (value / 255 - mean) / deviation
    pixels = (np.stack(rows) / 255 - np.array(MEAN)) / np.array(DEVIATION)
    model = CLIPVisionModel.from_pretrained(tower).eval()
    with torch.inference_mode():
        values = torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float()
        direct = model(pixel_values=values).pooler_output.numpy()
    np.testing.assert_allclose(found, direct, rtol=0, atol=1e-5)
    assert note == ""
    assert name.split("-")[-2] == "image"
    assert _OF_PICTURES.fullmatch(name)  # an extension knows it by that


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP of random weights: texts and pictures of 16 pixels, both projected to 5 dimensions."""
    torch.manual_seed(1)
    side = {"intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        "hidden_size": 12,
        "vocab_size": len(WORDS),
        "max_position_embeddings": 20,
        "eos_token_id": 3,
        "pad_token_id": 0,
        "bos_token_id": 2,
    }
    vision = {"hidden_size": 8, "image_size": 16, "patch_size": 8, "projection_dim": 5}
    config = CLIPConfig(text_config=side | text, vision_config=side | vision, projection_dim=5)
    folder = tokenizer_folder(tmp_path_factory.mktemp("clip"))
    CLIPModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(CONFIG))
    return folder


def test_a_whole_clip_gives_projected_vectors_of_pictures(tmp_path: Path, clip: Path) -> None:
    pixels = picture(tmp_path / "p" / "a.png") / 255
    dataset = dataset_with(tmp_path / "d", ["a.png", "none.png"])
    _, found, _ = image_vectors(dataset, Pictures(model=str(clip), folder=tmp_path / "p"))
    values = torch.from_numpy((pixels - np.array(MEAN)) / np.array(DEVIATION)).float()
    model = CLIPModel.from_pretrained(clip).eval()
    with torch.inference_mode():
        pooled = model.vision_model(values.permute(2, 0, 1)[None]).pooler_output
        direct = model.visual_projection(pooled).numpy()
    np.testing.assert_allclose(found[:1], direct, rtol=0, atol=1e-5)
    assert not found[1].any()


def test_a_vision_tower_with_a_projection_projects(tmp_path: Path, clip: Path) -> None:
    whole = CLIPModel.from_pretrained(clip).eval()
    tower = CLIPVisionModelWithProjection(whole.config.vision_config)
    tower.load_state_dict(whole.state_dict(), strict=False)
    tower.save_pretrained(tmp_path / "tower")
    (tmp_path / "tower" / "preprocessor_config.json").write_text(json.dumps(CONFIG))
    picture(tmp_path / "p" / "a.png")
    dataset = dataset_with(tmp_path / "d", ["a.png", "a.png"])
    found = [
        image_vectors(dataset, Pictures(model=str(model), folder=tmp_path / "p"))[1]
        for model in (clip, tmp_path / "tower")
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-6)


def test_a_whole_clip_gives_projected_vectors_of_texts(clip: Path) -> None:
    texts = ["red lamp", "blue steely oak desk tool", "pine"]
    found = encode_texts(clip, texts, TextSettings(model=str(clip)))
    model = CLIPModel.from_pretrained(clip).eval()
    for text, vector in zip(texts, found, strict=True):  # one at a time, without padding
        ids = torch.tensor([tokenizer().encode(text).ids])
        with torch.inference_mode():
            direct = model.text_projection(model.text_model(ids).pooler_output)[0]
        np.testing.assert_allclose(vector, direct.numpy(), rtol=0, atol=1e-5)


def test_pictures_that_are_none_are_counted_and_missing(tmp_path: Path, tower: Path) -> None:
    folder = tmp_path / "p"
    picture(folder / "good.png")
    picture(tmp_path / "outside.png")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:300])
    (folder / "text.png").write_text("no picture")
    bomb(folder / "bomb.png")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "inner").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    Image.new("L", (4, 4)).save(folder / "script.eps")
    cases = {
        "good.png": "",
        "cut.png": "broken",
        "text.png": "broken",
        "bomb.png": "broken",
        "script.eps": "broken",
        "link.png": "not a file",
        "inner/good.png": "not a file",
        "pipe.png": "not a file",
        "../outside.png": "outside the folder",
        str(tmp_path / "outside.png"): "outside the folder",
        "https://example.org/a.png": "absent",
        "": "no path",
    }
    dataset = dataset_with(tmp_path / "d", list(cases))
    _, found, note = image_vectors(dataset, Pictures(model=str(tower), folder=folder))
    assert [bool(row.any()) for row in found] == [not reason for reason in cases.values()]
    assert note == (
        f"{dataset.path}: 11 of 12 items have no usable picture (1 absent, 4 broken, 1 no path, 3 not a file, "
        "2 outside the folder) and count as without an image"
    )


def test_a_thin_picture_that_would_grow_beyond_all_bounds_is_missing(
    tmp_path: Path, tower: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_PIXELS", 10_000)
    picture(tmp_path / "p" / "thin.png", (900, 1))  # 16 high it would be 14,400 wide
    dataset = dataset_with(tmp_path / "d", ["thin.png"])
    _, found, note = image_vectors(dataset, Pictures(model=str(tower), folder=tmp_path / "p"))
    assert found.shape == (1, 8)
    assert not found.any()
    assert "(1 too large)" in note


def test_vectors_are_kept_until_a_picture_changes(
    tmp_path: Path, tower: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "p" / "a.png")
    dataset = dataset_with(tmp_path / "d", ["a.png", "b.png"])
    asked = Pictures(model=str(tower), folder=tmp_path / "p")
    first, _, note = image_vectors(dataset, asked)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_encode", None)
        assert image_vectors(dataset, asked)[::2] == (first, note)  # and told again
    picture(tmp_path / "p" / "a.png", seed=5)
    assert image_vectors(dataset, asked)[0] != first


@pytest.mark.parametrize("size", [(40, 23), (23, 40), (5, 9), (16, 16)])
def test_the_shorter_side_is_resized_and_the_middle_kept(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    prepared = Preprocessing(
        shortest=16, exact=None, crop=(10, 12), resample=3, scale=1.0, mean=(0,) * 3,
        deviation=(1,) * 3,
    )  # fmt: skip
    width, height = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    file = tmp_path / "a.png"
    Image.fromarray(pixels).save(file)
    found = prepared.pixels(file.read_bytes())
    longer = int(16 * max(size) / min(size))
    whole = Image.fromarray(pixels).resize(
        (16, longer) if width < height else (longer, 16), Image.Resampling.BICUBIC
    )
    top, left = (whole.height - 10) // 2, (whole.width - 12) // 2
    middle = np.asarray(whole)[top : top + 10, left : left + 12]
    assert np.array_equal(found, middle.transpose(2, 0, 1).astype(np.float32))


@pytest.mark.parametrize(
    ("file", "content", "code"),
    [
        ("preprocessor_config.json", None, "image.no_preprocessor"),
        ("preprocessor_config.json", "{}", "image.no_preprocessor"),
        ("model.safetensors", None, "image.no_safetensors"),
        ("config.json", "{nope", "image.unreadable"),
        ("config.json", "[" * 100_000, "image.unreadable"),
        ("config.json", None, "image.unreadable"),
    ],
)
def test_a_tower_that_is_not_whole_is_refused(
    tmp_path: Path, tower: Path, file: str, content: str | None, code: str
) -> None:
    copy = tmp_path / "tower"
    copy.mkdir()
    for one in tower.iterdir():
        if one.name != file:
            (copy / one.name).write_bytes(one.read_bytes())
        elif content is not None:
            (copy / file).write_text(content)
    picture(tmp_path / "p" / "a.png")
    dataset = dataset_with(tmp_path / "d", ["a.png"])
    with pytest.raises(CkdError) as caught:
        image_vectors(dataset, Pictures(model=str(copy), folder=tmp_path / "p"))
    assert caught.value.code == code


def test_a_folder_of_pictures_that_is_none_is_refused(tmp_path: Path, tower: Path) -> None:
    dataset = dataset_with(tmp_path / "d", ["a.png"])
    with pytest.raises(CkdError, match="is no folder") as caught:
        image_vectors(dataset, Pictures(model=str(tower), folder=tmp_path / "none"))
    assert caught.value.code == "image.no_folder"


def test_a_full_accelerator_is_no_fault_of_the_tower(
    tmp_path: Path, tower: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    picture(tmp_path / "p" / "a.png")
    dataset = dataset_with(tmp_path / "d", ["a.png"])
    monkeypatch.setattr(CLIPVisionModel, "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        image_vectors(dataset, Pictures(model=str(tower), folder=tmp_path / "p"))
