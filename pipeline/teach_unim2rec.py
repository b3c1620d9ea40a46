"""Makes UniM2Rec teachers, a RECONSTRUCTION (teachers/unim2rec.py): vectors of two modalities, pre-training, tuning.

Runs, folders, resuming and refusals are those of pipeline/teach.py. Text vectors come from a text encoder or a vector set of
the dataset, image vectors from an image tower over a folder of pictures or a vector set (`image`, as image_feat.npy is
ingested). Whitening looks at present rows alone; rows of zeros are missing and stay zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cache.dataset import Dataset
from cache.errors import StoreError, UsageError
from cache.vectors import list_vectors, read_vectors, vectors_manifest
from pipeline import console
from pipeline.console import Report
from pipeline.teach import train_on_sources, train_on_target
from pipeline.teach_checks import (
    check_length,
    check_pretrained,
    check_sources,
    check_tunable,
    check_vectors,
    check_whitening,
    finished,
    flat,
    identity_of,
    positions_for,
)
from teachers.folder import described, load_folder
from teachers.images import Pictures, image_vectors
from teachers.pretrain import Augmentation, Source
from teachers.prewhitening import whitened_present
from teachers.text import TextSettings, item_vectors
from teachers.trainer import Recipe
from teachers.unim2rec import Architecture, UniM2Rec
from teachers.unim2rec_teacher import save_unim2rec

__all__ = ["Modalities", "pretrain", "tune"]

_KINDS: tuple[Literal["text", "image"], ...] = ("text", "image")
_IMAGES = "image"  # the vector set that image_feat.npy becomes
_UNSEEN_WIDTH = (
    512  # of eyes that never opened; tuning draws them anew, as wide as the target's vectors
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Modalities:
    """Where a dataset's features come from.

    Attributes:
        text: the encoder of texts, unless `text_vectors` names a vector set.
        pictures: the tower and the folder of pictures, unless `image_vectors` names a vector set; with neither it is
            the set `image`, and where a source domain has none, all its images are missing.
    """

    text: TextSettings = field(default_factory=TextSettings)
    text_vectors: str | None = None
    pictures: Pictures | None = None
    image_vectors: str | None = None


@dataclass(frozen=True, slots=True)
class _Set:
    """A vector set of a dataset."""

    name: str
    vectors_VW: NDArray[np.float32]
    identity: str
    encoder: dict[str, Any]  #: what made it, without a path of this machine


@dataclass(frozen=True, slots=True)
class _Seen:
    """What pre-training sees of a source domain."""

    path: str
    text: _Set
    dropped: _Set  #: of texts with words dropped
    image: _Set | None


def tune(
    dataset: Dataset,
    out: Path,
    *,
    modalities: Modalities,
    whiten: bool,
    start: Path | None,
    transductive: bool,
    freeze_encoder: bool,
    architecture: dict[str, Any],
    recipe: Recipe,
    device: str,
    report: Report,
    keep_trajectory: int = 0,
) -> dict[str, Any]:
    """Tune a UniM2Rec on `dataset` into `out`; returns its configuration, metrics included.

    Args:
        whiten: whiten the vectors first; must be as it was in pre-training.
        start: folder of a pre-trained UniM2Rec.
        architecture: what differs from the defaults, or from the pre-trained one's rates.
        keep_trajectory: how many checkpoints on its way to keep beside it; see trajectory.py.

    Raises:
        UsageError: ``teacher.exists``, ``tune.*``, ``image.no_vectors``.
        StoreError: ``tune.*`` when the pre-trained one was made for other features or shorter histories.
    """
    check_tunable(dataset, out, start, freeze_encoder)
    sets = [
        _texts(dataset, modalities, device, report),
        _images(dataset, modalities, device, report),
    ]
    widths = {f"{k}_width": one.vectors_VW.shape[1] for k, one in zip(_KINDS, sets, strict=True)}
    shape = Architecture(**widths, positions=positions_for([dataset]), **architecture)
    weights: dict[str, torch.Tensor] = {}
    origin = "scratch"
    if start is not None:
        weights, config, origin = load_folder(start)
        check_pretrained(start, config, "unim2rec", "UniM2Rec")
        with described(start):
            pretrained = Architecture(**config["architecture"])
            made_of = {kind: config[kind] for kind in _KINDS}
        shape = replace(pretrained, **architecture)
        check_length(start, shape.positions, dataset)
        if made_of["image"] is None:  # it never saw one: its eyes are the target's to learn
            shape = replace(shape, image_width=widths["image_width"])
            weights = {k: v for k, v in weights.items() if not k.startswith("image_adaptor.")}
        for kind, width, one in zip(
            _KINDS, (shape.text_width, shape.image_width), sets, strict=True
        ):
            check_vectors(start, kind, width, made_of[kind], dataset, one.name)
        check_whitening(start, config, whiten)
    identity = flat(
        dataset=dataset.digest,
        text=sets[0].identity,
        image=sets[1].identity,
        whiten=whiten,
        start=origin,
        transductive=transductive,
        freeze_encoder=freeze_encoder,
        architecture=asdict(shape),
        recipe=asdict(recipe),
    )
    if (done := finished(out, identity)) is not None:
        return done
    features = [torch.from_numpy(_prepared(one.vectors_VW, whiten)) for one in sets]
    torch.manual_seed(recipe.seed)
    model = UniM2Rec(shape, *features, with_ids=transductive)
    with described(start or out):
        model.load_state_dict(weights, strict=False)  # ids and features are the target's own
    if freeze_encoder:
        model.freeze_encoder()
    return train_on_target(
        model,
        dataset,
        out,
        identity=identity,
        recipe=recipe,
        save=save_unim2rec,
        device=device,
        report=report,
        keep_trajectory=keep_trajectory,
    )


def pretrain(
    datasets: Sequence[tuple[Dataset, Modalities]],
    out: Path,
    *,
    whiten: bool,
    word_drop: float,
    augmentation: Augmentation,
    architecture: dict[str, Any],
    recipe: Recipe,
    limit: int | None,
    device: str,
    report: Report,
) -> dict[str, Any]:
    """Pre-train a UniM2Rec on several source domains into `out`; returns its configuration.

    The order of the sources does not matter.

    Args:
        word_drop: share of words that the second view drops; vectors that came as such have none.

    Raises:
        UsageError: ``teacher.exists``, ``pretrain.no_users``; StoreError: ``pretrain.widths`` where sources differ.
    """
    check_sources([dataset for dataset, _ in datasets], out)
    pairs = sorted(datasets, key=lambda pair: pair[0].digest)
    found = [_seen(*pair, word_drop, device, report) for pair in pairs]
    text_width = _common_width("text", [(one.path, one.text) for one in found])
    image_width = _common_width("image", [(one.path, one.image) for one in found])
    shape = Architecture(
        text_width=text_width or 0,
        image_width=image_width or _UNSEEN_WIDTH,
        positions=positions_for([dataset for dataset, _ in pairs]),
        **architecture,
    )
    identity = flat(
        datasets=[dataset.digest for dataset, _ in pairs],
        text=[one.text.identity for one in found],
        image=[one.image.identity if one.image else None for one in found],
        whiten=whiten,
        word_drop=word_drop,
        augmentation=asdict(augmentation),
        architecture=asdict(shape),
        recipe=asdict(recipe),
        limit=limit,
    )
    if (done := finished(out, identity)) is not None:
        return done
    sources = []
    for (dataset, _), one in zip(pairs, found, strict=True):
        missing_VW = np.zeros((dataset.num_items, shape.image_width), np.float32)
        raw = (one.text.vectors_VW, one.dropped.vectors_VW)
        text_VW, dropped_VW = (_prepared(each, True) if whiten else each for each in raw)
        image_VW = _prepared(one.image.vectors_VW, whiten) if one.image else missing_VW
        sources.append(Source(dataset, (text_VW, image_VW), (dropped_VW, image_VW)))
    eyes = next((one.image for one in found if one.image), None)
    torch.manual_seed(recipe.seed)
    card = {
        "text": found[0].text.encoder,
        "image": eyes.encoder if eyes else None,
        "whiten": whiten,
    }
    return train_on_sources(
        UniM2Rec(shape),
        sources,
        out,
        card=card,
        identity=identity,
        recipe=recipe,
        augmentation=augmentation,
        limit=limit,
        save=save_unim2rec,
        device=device,
        report=report,
    )


def _prepared(vectors_VW: NDArray[np.float32], whiten: bool) -> NDArray[np.float32]:
    return whitened_present(vectors_VW) if whiten else np.array(vectors_VW)


def _texts(dataset: Dataset, modalities: Modalities, device: str, report: Report) -> _Set:
    if modalities.text_vectors is not None:
        return _ingested(dataset, modalities.text_vectors)
    name, vectors_VW = item_vectors(dataset, modalities.text, device=device, progress=report)
    return _Set(name, vectors_VW, name, dict(vectors_manifest(dataset, name).settings))


def _images(dataset: Dataset, modalities: Modalities, device: str, report: Report) -> _Set:
    if modalities.pictures is None:
        name = modalities.image_vectors or _IMAGES
        if modalities.image_vectors is None and name not in list_vectors(dataset):
            raise UsageError(
                f"{dataset.path}: needs image vectors; name a vector set of it (`image`, where image_feat.npy was "
                "ingested), or an image encoder and the folder of the pictures.",
                code="image.no_vectors",
            )
        return _ingested(dataset, name)
    name, vectors_VW, note = image_vectors(
        dataset, modalities.pictures, device=device, progress=report
    )
    if note:
        console.note(note)
    encoder = dict(vectors_manifest(dataset, name).settings)
    return _Set(name, vectors_VW, name, encoder)


def _seen(
    dataset: Dataset, modalities: Modalities, word_drop: float, device: str, report: Report
) -> _Seen:
    """A source's texts, those with words dropped, and its images if it has any."""
    text = _texts(dataset, modalities, device, report)
    view = replace(modalities, text=replace(modalities.text, word_drop=word_drop))
    dropped = _texts(dataset, view, device, report)
    named = modalities.pictures is not None or modalities.image_vectors is not None
    if named or _IMAGES in list_vectors(dataset):
        return _Seen(str(dataset.path), text, dropped, _images(dataset, modalities, device, report))
    console.note(f"{dataset.path}: has no image vectors; all its images are missing")
    return _Seen(str(dataset.path), text, dropped, None)


def _ingested(dataset: Dataset, name: str) -> _Set:
    vectors_VW = read_vectors(dataset, name)
    encoder = dict(vectors_manifest(dataset, name).settings)
    return _Set(name, vectors_VW, identity_of(dataset, name, ingested=True), encoder)


def _common_width(kind: str, sets: Sequence[tuple[str, _Set | None]]) -> int | None:
    """The width that all sources' vectors of a kind have; None where no source has any."""
    there = [(path, one.name, one.vectors_VW.shape[1]) for path, one in sets if one]
    for path, name, width in there[1:]:
        if width != there[0][2]:
            raise StoreError(
                f"{path}: its {kind} vectors {name} have width {width}, those of {there[0][0]} have "
                f"{there[0][2]}; encode all sources with one model.",
                code="pretrain.widths",
            )
    return there[0][2] if there else None
