"""Makes teachers: texts to vectors, pre-training on source domains, tuning on the target, evaluation, official weights in.

Puts together what teachers/ offers with the evaluation that judges students too. Folders: pretrained/<teacher> and
tuned/<dataset>/<teacher>; an unfinished run keeps its checkpoint beside them and goes on from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.nn import functional as F

from cache.dataset import Dataset
from cache.errors import UsageError
from cache.vectors import read_vectors, vectors_manifest
from pipeline.console import Report
from pipeline.evaluate import ranks_of_targets
from pipeline.metrics import Metrics, metrics_of_ranks
from pipeline.sets import only_trainer
from pipeline.teach_checks import (
    CHECKPOINT,
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
from pipeline.trajectory import Way
from teachers.backbone import Backbone
from teachers.folder import described, load_folder, read_config
from teachers.pretrain import Augmentation, Source
from teachers.pretrain import pretrain as run_pretraining
from teachers.prewhitening import whitened
from teachers.protocol import Teacher
from teachers.text import TextSettings, item_vectors
from teachers.trainer import Recipe, Trained
from teachers.tune import tune as run_tuning
from teachers.unisrec import Architecture, UniSRec
from teachers.unisrec_teacher import encode_histories, save_unisrec
from teachers.weights import OFFICIAL, read_official

__all__ = [
    "CHECKPOINT",
    "evaluate_teacher",
    "import_official",
    "keep_pretrained",
    "pretrain",
    "train_on_sources",
    "train_on_target",
    "tune",
]

#: writes a teacher: (folder, model, weights, **configuration)
Save: TypeAlias = Callable[..., None]


def tune(
    dataset: Dataset,
    out: Path,
    *,
    text: TextSettings,
    vectors: str | None,
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
    """Tune a UniSRec on `dataset` into `out`; returns its configuration, metrics included.

    Args:
        vectors: a vector set of the dataset to use instead of encoding the texts.
        whiten: whiten the vectors first; must be as it was in pre-training.
        start: folder of a pre-trained UniSRec.
        architecture: what differs from the defaults, or from the pre-trained one's rates.
        keep_trajectory: how many checkpoints on its way to keep beside it; see trajectory.py.

    Raises:
        UsageError: ``teacher.exists`` when `out` holds a finished teacher of other settings; ``tune.*``.
        StoreError: ``tune.*`` when the pre-trained one was made for other texts or shorter histories.
    """
    check_tunable(dataset, out, start, freeze_encoder)
    origin = "scratch"
    if vectors:
        name, raw_VW = vectors, read_vectors(dataset, vectors)
    else:
        name, raw_VW = item_vectors(dataset, text, device=device, progress=report)
    widths = {"text_width": raw_VW.shape[1], "positions": positions_for([dataset])}
    shape = Architecture(**widths, **architecture)
    weights: dict[str, torch.Tensor] = {}
    if start is not None:
        weights, config, origin = load_folder(start)
        check_pretrained(start, config, "unisrec", "UniSRec")
        with described(start):
            pretrained, text_of = Architecture(**config["architecture"]), config["text"]
        shape = replace(pretrained, **architecture)
        check_length(start, shape.positions, dataset)
        check_vectors(start, "text", shape.text_width, text_of, dataset, name)
        check_whitening(start, config, whiten)
    identity = flat(
        dataset=dataset.digest,
        vectors=identity_of(dataset, name, ingested=bool(vectors)),
        whiten=whiten,
        start=origin,
        transductive=transductive,
        freeze_encoder=freeze_encoder,
        architecture=asdict(shape),
        recipe=asdict(recipe),
    )
    if (done := finished(out, identity)) is not None:
        return done
    vectors_VW = torch.from_numpy(whitened(raw_VW) if whiten else np.array(raw_VW))
    torch.manual_seed(recipe.seed)
    model = UniSRec(shape, vectors_VW, with_ids=transductive)
    with described(start or out):
        model.load_state_dict(weights, strict=False)  # ids and texts are the target's own
    if freeze_encoder:
        model.freeze_encoder()
    model.to(device)
    return train_on_target(
        model,
        dataset,
        out,
        identity=identity,
        recipe=recipe,
        save=save_unisrec,
        device=device,
        report=report,
        keep_trajectory=keep_trajectory,
    )


def pretrain(
    datasets: Sequence[Dataset],
    out: Path,
    *,
    text: TextSettings,
    whiten: bool,
    word_drop: float,
    augmentation: Augmentation,
    architecture: dict[str, Any],
    recipe: Recipe,
    limit: int | None,
    device: str,
    report: Report,
) -> dict[str, Any]:
    """Pre-train a UniSRec on several source domains into `out`; returns its configuration.

    The order of the sources does not matter.

    Raises:
        UsageError: ``teacher.exists``, ``pretrain.no_users``.
    """
    check_sources(datasets, out)
    datasets = sorted(datasets, key=lambda dataset: dataset.digest)
    pairs = []
    for dataset in datasets:
        pair = []
        for share in (word_drop, 0.0):
            name, vectors_VW = item_vectors(
                dataset, replace(text, word_drop=share), device=device, progress=report
            )
            pair.append(vectors_VW)
        pairs.append(pair)
    # of the undropped texts, and without any path of this machine
    encoder = dict(vectors_manifest(datasets[0], name).settings)
    widths = {"text_width": pairs[0][0].shape[1], "positions": positions_for(datasets)}
    shape = Architecture(**widths, **architecture)
    identity = flat(
        datasets=[dataset.digest for dataset in datasets],
        text=encoder,
        whiten=whiten,
        word_drop=word_drop,
        augmentation=asdict(augmentation),
        architecture=asdict(shape),
        recipe=asdict(recipe),
        limit=limit,
    )
    if (done := finished(out, identity)) is not None:
        return done
    sources = [
        Source(dataset, *((whitened(one) if whiten else one,) for one in (plain, dropped)))
        for dataset, (dropped, plain) in zip(datasets, pairs, strict=True)
    ]
    torch.manual_seed(recipe.seed)
    return train_on_sources(
        UniSRec(shape),
        sources,
        out,
        card={"text": encoder, "whiten": whiten},
        identity=identity,
        recipe=recipe,
        augmentation=augmentation,
        limit=limit,
        save=save_unisrec,
        device=device,
        report=report,
    )


def import_official(file: Path, out: Path) -> dict[str, Any]:
    """Bring an official pre-trained UniSRec checkpoint into our layout at `out`."""
    weights = read_official(file)
    tables = [key for key in weights if key in {"plm_embedding.weight", "item_embedding.weight"}]
    if tables:
        raise UsageError(
            f"{file}: is tuned on its authors' own numbering of some dataset's items ({', '.join(tables)}), "
            "which no file says; import the pre-trained checkpoint and run `kd-teacher tune`.",
            code="weights.tuned",
        )
    save_unisrec(
        out, UniSRec(OFFICIAL), weights, stage="pretrained", text=None, whiten=False, identity={}
    )
    return read_config(out)


def evaluate_teacher(teacher: Teacher, dataset: Dataset, part: Any) -> tuple[int, Metrics]:
    """(users, metrics) of any teacher whose scores are products of two vectors, all items ranked."""
    if not teacher.factorises:
        raise UsageError(
            f"the teacher {teacher.name} scores pairs, not vectors, and cannot be ranked over all items.",
            code="teacher.no_vectors",
        )
    users, ends = dataset.held_out(part)
    ranks = ranks_of_targets(
        torch.from_numpy(teacher.encode_histories(dataset, users, ends)),
        torch.from_numpy(teacher.encode_items(dataset)),
        torch.from_numpy(dataset.targets(users, ends).astype(np.int64)),
    )
    return len(users), metrics_of_ranks(ranks)


def train_on_target(
    model: Backbone,
    dataset: Dataset,
    out: Path,
    *,
    identity: dict[str, Any],
    recipe: Recipe,
    save: Save,
    device: str,
    report: Report,
    keep_trajectory: int = 0,
) -> dict[str, Any]:
    """Tune `model`, measure it and keep it in `out`, and beside it checkpoints; returns its configuration."""
    model.to(device)
    way = Way(out, keep_trajectory, identity)

    def measure(part: Any) -> Metrics:
        model.eval()
        users, ends = dataset.held_out(part)
        with torch.inference_mode():
            table_VD = model.item_table()
            states_nD = encode_histories(model, table_VD, dataset, users, ends)
            targets = torch.from_numpy(dataset.targets(users, ends).astype(np.int64)).to(device)
            ranks = ranks_of_targets(states_nD, F.normalize(table_VD, dim=-1), targets)
        return metrics_of_ranks(ranks)

    def keep(
        folder: Path, epochs: int, weights: dict[str, torch.Tensor], known: dict[str, Any]
    ) -> None:
        model.load_state_dict(weights)
        save(
            folder,
            model,
            weights,
            stage="tuned",
            dataset=dataset.digest,
            identity=known,
            epochs=epochs,
            validation=measure("valid"),
            test=measure("test"),
        )

    with only_trainer(out):
        if (done := finished(out, identity)) is not None:  # another process was quicker
            return done
        trained = run_tuning(
            model,
            dataset,
            recipe,
            validate=lambda: measure("valid")["ndcg@10"],
            checkpoint=out / CHECKPOINT,
            identity=way.identity,
            report=report,
            device=device,
            on_epoch=lambda done, best: way.after_epoch(done, best, model),
        )
        values = [record["validation"] for record in trained.history]
        way.publish(1 + values.index(max(values)), keep)
        keep(out, trained.epochs, trained.weights, identity)
        way.forget()
        (out / CHECKPOINT).unlink(missing_ok=True)
        return read_config(out)


def train_on_sources(
    model: Backbone,
    sources: Sequence[Source],
    out: Path,
    *,
    card: dict[str, Any],
    identity: dict[str, Any],
    recipe: Recipe,
    augmentation: Augmentation,
    limit: int | None,
    save: Save,
    device: str,
    report: Report,
) -> dict[str, Any]:
    """Pre-train `model` and keep it in `out`, with what `card` says of its features; returns its configuration."""
    model.to(device)
    with only_trainer(out):
        if (done := finished(out, identity)) is not None:  # another process was quicker
            return done
        trained = run_pretraining(
            model,
            sources,
            recipe,
            augmentation,
            checkpoint=out / CHECKPOINT,
            identity=identity,
            limit=limit,
            report=report,
            device=device,
        )
        return keep_pretrained(out, model, trained, save=save, identity=identity, **card)


def keep_pretrained(
    out: Path, model: Any, trained: Trained, *, save: Save, identity: dict[str, Any], **card: Any
) -> dict[str, Any]:
    """Keep what pre-training came to, with what `card` says of its features, and no checkpoint; its configuration."""
    save(
        out,
        model,
        trained.weights,
        **card,
        stage="pretrained",
        identity=identity,
        epochs=trained.epochs,
        losses=[record["loss"] for record in trained.history],
    )
    (out / CHECKPOINT).unlink(missing_ok=True)
    return read_config(out)
