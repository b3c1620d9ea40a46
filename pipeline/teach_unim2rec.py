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

from cache.atomic import check_writable
from cache.dataset import Dataset
from cache.errors import StoreError, UsageError
from cache.vectors import read_vectors, vectors_manifest
from pipeline import console
from pipeline.console import Report
from pipeline.teach import train_on_sources, train_on_target
from pipeline.teach_checks import (
    check_length,
    check_pretrained,
    check_tunable,
    check_vectors,
    check_whitening,
    finished,
    flat,
    identity_of,
    positions_for,
)
from teachers.folder import load_folder
from teachers.images import Pictures, image_vectors
from teachers.pretrain import Augmentation, Source
from teachers.prewhitening import whitened_present
from teachers.text import TextSettings, item_vectors
from teachers.trainer import Recipe
from teachers.unim2rec import Architecture, UniM2Rec
from teachers.unim2rec_teacher import save_unim2rec

__all__ = ["Modalities", "pretrain", "tune"]

_KINDS: tuple[Literal["text", "image"], ...] = ("text", "image")


@dataclass(frozen=True, slots=True, kw_only=True)
class Modalities:
    """Where a dataset's features come from.

    Attributes:
        text: the encoder of texts, unless `text_vectors` names a vector set.
        pictures: the tower and the folder of pictures, unless `image_vectors` names a vector set.
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
) -> dict[str, Any]:
    """Tune a UniM2Rec on `dataset` into `out`; returns its configuration, metrics included.

    Args:
        whiten: whiten the vectors first; must be as it was in pre-training.
        start: folder of a pre-trained UniM2Rec.
        architecture: what differs from the defaults, or from the pre-trained one's rates.

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
        shape = replace(Architecture(**config["architecture"]), **architecture)
        check_length(start, shape.positions, dataset)
        for kind, width, one in zip(
            _KINDS, (shape.text_width, shape.image_width), sets, strict=True
        ):
            check_vectors(start, kind, width, config[kind], dataset, one.name)
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
        word_drop: share of words that the second view drops; where a source's texts came as vectors no word can be
            dropped, so such a source keeps its vectors and the view differs by dropout alone.

    Raises:
        UsageError: ``teacher.exists``, ``image.no_vectors``; StoreError: ``pretrain.widths`` where sources differ.
    """
    check_writable(out)
    pairs = sorted(datasets, key=lambda pair: pair[0].digest)
    triples = []
    for dataset, modalities in pairs:
        whole = _texts(dataset, modalities, device, report)
        dropped = whole
        if modalities.text_vectors is None:
            view = replace(modalities, text=replace(modalities.text, word_drop=word_drop))
            dropped = _texts(dataset, view, device, report)
        triples.append((whole, dropped, _images(dataset, modalities, device, report)))
    first_text, _, first_image = triples[0]
    for (dataset, _), (text, _, image) in zip(pairs, triples, strict=True):
        _same_width(dataset, text, pairs[0][0], first_text, "text")
        _same_width(dataset, image, pairs[0][0], first_image, "image")
    shape = Architecture(
        text_width=first_text.vectors_VW.shape[1],
        image_width=first_image.vectors_VW.shape[1],
        positions=positions_for([dataset for dataset, _ in pairs]),
        **architecture,
    )
    identity = flat(
        datasets=[dataset.digest for dataset, _ in pairs],
        text=[text.identity for text, _, _ in triples],
        image=[image.identity for _, _, image in triples],
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
    for (dataset, _), sets in zip(pairs, triples, strict=True):
        whole_VW, dropped_VW, image_VW = (
            _prepared(one.vectors_VW, True) if whiten else one.vectors_VW for one in sets
        )
        sources.append(Source(dataset, (whole_VW, image_VW), (dropped_VW, image_VW)))
    torch.manual_seed(recipe.seed)
    card = {"text": first_text.encoder, "image": first_image.encoder, "whiten": whiten}
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
    if modalities.image_vectors is not None:
        return _ingested(dataset, modalities.image_vectors)
    if modalities.pictures is None:
        raise UsageError(
            f"{dataset.path}: needs image vectors; name a vector set of it (`image`, where image_feat.npy was "
            "ingested), or an image encoder and the folder of the pictures.",
            code="image.no_vectors",
        )
    name, vectors_VW, note = image_vectors(
        dataset, modalities.pictures, device=device, progress=report
    )
    if note:
        console.note(note)
    encoder = dict(vectors_manifest(dataset, name).settings)
    return _Set(name, vectors_VW, name, encoder)


def _ingested(dataset: Dataset, name: str) -> _Set:
    vectors_VW = read_vectors(dataset, name)
    encoder = dict(vectors_manifest(dataset, name).settings)
    return _Set(name, vectors_VW, identity_of(dataset, name, ingested=True), encoder)


def _same_width(dataset: Dataset, found: _Set, first: Dataset, wanted: _Set, kind: str) -> None:
    if found.vectors_VW.shape[1] != wanted.vectors_VW.shape[1]:
        raise StoreError(
            f"{dataset.path}: its {kind} vectors {found.name} have width {found.vectors_VW.shape[1]}, those of "
            f"{first.path} have {wanted.vectors_VW.shape[1]}; encode all sources with one model.",
            code="pretrain.widths",
        )
