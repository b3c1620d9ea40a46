"""Makes teachers: texts to vectors, pre-training on source domains, tuning on the target, evaluation, official weights in.

Puts together what teachers/ offers with the evaluation that judges students too. Folders: pretrained/<teacher> and
tuned/<dataset>/<teacher>; an unfinished run keeps its checkpoint beside them and goes on from it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from cache.atomic import check_writable, sweep
from cache.dataset import Dataset
from cache.digest import canonical_json
from cache.errors import StoreError, UsageError
from cache.vectors import read_vectors, vectors_manifest
from pipeline.console import Report
from pipeline.evaluate import ranks_of_targets
from pipeline.metrics import Metrics, metrics_of_ranks
from teachers.folder import CONFIG, load_folder, read_config
from teachers.pretrain import Augmentation, Source
from teachers.pretrain import pretrain as run_pretraining
from teachers.prewhitening import whitened
from teachers.protocol import Teacher
from teachers.text import TextSettings, item_vectors
from teachers.trainer import Recipe
from teachers.tune import tune as run_tuning
from teachers.unisrec import Architecture, UniSRec
from teachers.unisrec_teacher import encode_histories, save_unisrec
from teachers.weights import OFFICIAL, read_official

__all__ = ["CHECKPOINT", "evaluate_teacher", "import_official", "pretrain", "tune"]

CHECKPOINT = "checkpoint.safetensors"


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
) -> dict[str, Any]:
    """Tune a UniSRec on `dataset` into `out`; returns its configuration, metrics included.

    Args:
        vectors: a vector set of the dataset to use instead of encoding the texts.
        whiten: whiten the vectors first; must be as it was in pre-training.
        start: folder of a pre-trained UniSRec.
        architecture: what differs from the defaults, or from the pre-trained one's rates.

    Raises:
        UsageError: ``teacher.exists`` when `out` holds a finished teacher of other settings; ``tune.*``.
        StoreError: ``tune.*`` when the pre-trained one was made for other texts or shorter histories.
    """
    if not len(dataset.held_out("valid")[0]):
        raise UsageError(
            f"{dataset.path}: has no user with three interactions, so there is nothing to validate on; "
            "ingest more of the log.",
            code="tune.nothing_to_validate",
        )
    check_writable(out)
    origin = "scratch"
    if vectors:
        name, raw_VW = vectors, read_vectors(dataset, vectors)
    else:
        name, raw_VW = item_vectors(dataset, text, device=device, progress=report)
    shape = Architecture(**_widths(raw_VW.shape[1], [dataset]), **architecture)
    weights: dict[str, torch.Tensor] = {}
    if start is not None:
        weights, config, origin = load_folder(start)
        shape = _architecture(start, config, architecture)
        _same_text(start, config, shape, dataset, name, whiten)
    elif freeze_encoder:
        raise UsageError(
            "--freeze-encoder keeps what pre-training learnt; name it with --from.",
            code="tune.nothing_to_freeze",
        )
    identity = _flat(
        dataset=dataset.digest,
        vectors=name,
        whiten=whiten,
        start=origin,
        transductive=transductive,
        freeze_encoder=freeze_encoder,
        architecture=asdict(shape),
        recipe=asdict(recipe),
    )
    if (done := _finished(out, identity)) is not None:
        return done
    if out.is_dir():
        sweep(out)
    vectors_VW = torch.from_numpy(whitened(raw_VW) if whiten else np.array(raw_VW))
    torch.manual_seed(recipe.seed)
    model = UniSRec(shape, vectors_VW, with_ids=transductive)
    model.load_state_dict(weights, strict=False)  # ids and texts are the target's own
    if freeze_encoder:
        model.freeze_encoder()
    model.to(device)

    def measure(part: Any) -> Metrics:
        model.eval()
        users, ends = dataset.held_out(part)
        with torch.inference_mode():
            table_VD = model.item_table()
            states_nD = encode_histories(model, table_VD, dataset, users, ends)
            targets = torch.from_numpy(dataset.targets(users, ends).astype(np.int64)).to(device)
            ranks = ranks_of_targets(states_nD, F.normalize(table_VD, dim=-1), targets)
        return metrics_of_ranks(ranks)

    trained = run_tuning(
        model,
        dataset,
        recipe,
        validate=lambda: measure("valid")["ndcg@10"],
        checkpoint=out / CHECKPOINT,
        identity=identity,
        report=report,
        device=device,
    )
    model.load_state_dict(trained.weights)
    save_unisrec(
        out,
        model,
        trained.weights,
        stage="tuned",
        dataset=dataset.digest,
        identity=identity,
        epochs=trained.epochs,
        validation=measure("valid"),
        test=measure("test"),
    )
    (out / CHECKPOINT).unlink(missing_ok=True)
    return read_config(out)


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
    """
    check_writable(out)
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
    width = pairs[0][0].shape[1]
    shape = Architecture(**_widths(width, datasets), **architecture)
    identity = _flat(
        datasets=[dataset.digest for dataset in datasets],
        text=encoder,
        whiten=whiten,
        word_drop=word_drop,
        augmentation=asdict(augmentation),
        architecture=asdict(shape),
        recipe=asdict(recipe),
        limit=limit,
    )
    if (done := _finished(out, identity)) is not None:
        return done
    if out.is_dir():
        sweep(out)
    sources = [
        Source(dataset, *(whitened(one) if whiten else one for one in (plain, dropped)))
        for dataset, (dropped, plain) in zip(datasets, pairs, strict=True)
    ]
    torch.manual_seed(recipe.seed)
    model = UniSRec(shape).to(device)
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
    save_unisrec(
        out,
        model,
        trained.weights,
        stage="pretrained",
        text=encoder,
        whiten=whiten,
        identity=identity,
        epochs=trained.epochs,
        losses=[record["loss"] for record in trained.history],
    )
    (out / CHECKPOINT).unlink(missing_ok=True)
    return read_config(out)


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


def _widths(width: int, datasets: Sequence[Dataset]) -> dict[str, int]:
    longest = max(dataset.max_length for dataset in datasets)
    return {"text_width": width, "positions": max(OFFICIAL.positions, longest)}


def _architecture(start: Path, config: dict[str, Any], changes: dict[str, Any]) -> Architecture:
    """Of the pre-trained teacher in `start`, with other rates."""
    if config["teacher"] != "unisrec" or config.get("stage") != "pretrained":
        raise UsageError(
            f"{start}: holds no pre-trained UniSRec (a tuned one knows its own items alone); "
            "name one that `kd-teacher pretrain` or `kd-teacher import` made.",
            code="tune.not_pretrained",
        )
    return replace(Architecture(**config["architecture"]), **changes)


def _same_text(
    start: Path,
    config: dict[str, Any],
    shape: Architecture,
    dataset: Dataset,
    name: str,
    whiten: bool,
) -> None:
    made_by = vectors_manifest(dataset, name)
    width = made_by.counts["width"]
    if shape.positions < dataset.max_length:
        raise StoreError(
            f"{start}: reads histories of up to {shape.positions} items, {dataset.path} has up to "
            f"{dataset.max_length}; ingest with --max-length {shape.positions}.",
            code="tune.too_long",
        )
    if shape.text_width != width:
        raise StoreError(
            f"{start}: reads text vectors of width {shape.text_width}, {name} has {width}; "
            "encode the texts with the model that it was pre-trained on (--text).",
            code="tune.other_text",
        )
    # ingested vectors and official checkpoints do not say what encoder was theirs
    known = (config["text"] or {}).keys() & made_by.settings.keys() & {"pooling", "weights"}
    for key in sorted(known):
        if config["text"][key] != made_by.settings[key]:
            raise StoreError(
                f"{start}: reads texts encoded with {key} {config['text'][key]}, {name} has "
                f"{made_by.settings[key]}; tune with the --text and --pooling of its pre-training.",
                code="tune.other_text",
            )
    if config["whiten"] != whiten:
        raise StoreError(
            f"{start}: was pre-trained on {'whitened' if config['whiten'] else 'raw'} text vectors; "
            f"add --{'' if config['whiten'] else 'no-'}whiten.",
            code="tune.other_text",
        )


def _finished(out: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The configuration of a finished teacher of the same identity; another is never overwritten."""
    if not (out / CONFIG).is_file():
        return None
    config = read_config(out)
    found = config.get("identity", {})
    for key in sorted(found.keys() | identity.keys()):
        if found.get(key) != identity.get(key):
            raise UsageError(
                f"{out}: holds a teacher with {key} {found.get(key)}, this one would have "
                f"{identity.get(key)}; choose another --out, or remove it.",
                code="teacher.exists",
            )
    load_folder(out)  # if it is damaged, that is said now
    (out / CHECKPOINT).unlink(missing_ok=True)  # of a process that was killed in between
    return config


def _flat(**values: Any) -> dict[str, Any]:
    """Nested settings as one level of JSON values, so that a difference has a name."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": one for inner, one in value.items()}
        else:
            flat[key] = value
    plain: dict[str, Any] = json.loads(canonical_json(flat))
    return plain
