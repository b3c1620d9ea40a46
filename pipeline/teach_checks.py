"""What makers of teachers ask before they train: may this be tuned, does the start fit, is it finished, what is it.

Every refusal is one sentence, and comes before anything is trained or written. An identity is a flat mapping of all that
decides a teacher's bytes; a checkpoint and a finished folder carry it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from cache.atomic import check_writable, sweep
from cache.dataset import Dataset
from cache.digest import canonical_json
from cache.errors import StoreError, UsageError
from cache.identity import difference
from cache.vectors import vectors_manifest
from pipeline.trajectory import Way
from teachers import recformer_tune
from teachers.folder import CONFIG, load_folder, read_config
from teachers.weights import OFFICIAL

__all__ = [
    "CHECKPOINT",
    "check_length",
    "check_pretrained",
    "check_sources",
    "check_tunable",
    "check_vectors",
    "check_whitening",
    "finished",
    "flat",
    "identity_of",
    "positions_for",
]

CHECKPOINT = "checkpoint.safetensors"


def check_tunable(dataset: Dataset, out: Path, start: Path | None, freeze_encoder: bool) -> None:
    """Refuse what can be known before any vectors are made.

    Raises:
        UsageError: ``tune.nothing_to_validate``, ``tune.no_users``, ``tune.nothing_to_freeze``; DiskError: `out` is not
            writable.
    """
    if not len(dataset.held_out("valid")[0]):
        raise UsageError(
            f"{dataset.path}: has no user with three interactions, so there is nothing to validate on; "
            "ingest more of the log.",
            code="tune.nothing_to_validate",
        )
    if not _trains(dataset):
        raise UsageError(
            f"{dataset.path}: no user has two items to train on beside the two that are held out; "
            "ingest more of the log.",
            code="tune.no_users",
        )
    if freeze_encoder and start is None:
        raise UsageError(
            "--freeze-encoder keeps what pre-training learnt; name it with --from.",
            code="tune.nothing_to_freeze",
        )
    check_writable(out)


def check_sources(datasets: Sequence[Dataset], out: Path) -> None:
    """Refuse sources that hold nothing to learn from, before any vectors are made.

    Raises:
        UsageError: ``pretrain.no_users``; DiskError: `out` is not writable.
    """
    if not any(map(_trains, datasets)):
        raise UsageError(
            f"{', '.join(str(dataset.path) for dataset in datasets)}: no user has two items to train on; "
            "hand in larger sources with --data.",
            code="pretrain.no_users",
        )
    check_writable(out)


def _trains(dataset: Dataset) -> bool:
    """Whether anybody has a history and a target."""
    return bool((dataset.train_lengths >= 2).any())


def check_pretrained(start: Path, config: dict[str, Any], kind: str, title: str) -> None:
    """Refuse a start of another kind, or a tuned one.

    Raises:
        UsageError: ``tune.not_pretrained``.
    """
    if config["teacher"] != kind or config.get("stage") != "pretrained":
        made_by = "`kd-teacher pretrain` or `kd-teacher import`"
        raise UsageError(
            f"{start}: holds no pre-trained {title} (a tuned one knows its own items alone); "
            f"name one that {made_by if kind == 'unisrec' else '`kd-teacher pretrain`'} made.",
            code="tune.not_pretrained",
        )


def check_length(start: Path, positions: int, dataset: Dataset) -> None:
    """Refuse histories longer than the pre-trained teacher reads.

    Raises:
        StoreError: ``tune.too_long``.
    """
    if positions < dataset.max_length:
        raise StoreError(
            f"{start}: reads histories of up to {positions} items, {dataset.path} has up to "
            f"{dataset.max_length}; ingest with --max-length {positions}.",
            code="tune.too_long",
        )


def check_vectors(
    start: Path,
    kind: Literal["text", "image"],
    width: int,
    encoder: dict[str, Any] | None,
    dataset: Dataset,
    name: str,
) -> None:
    """Refuse vectors that the pre-trained teacher in `start` cannot have learnt to read.

    Args:
        width: of the vectors that it reads.
        encoder: what its folder says of the encoder of its `kind`.
        name: the vector set of the target.

    Raises:
        StoreError: ``tune.other_text``, ``tune.other_image``.
    """
    made_by = vectors_manifest(dataset, name)
    found = made_by.counts["width"]
    if width != found:
        raise StoreError(
            f"{start}: reads {kind} vectors of width {width}, {name} has {found}; "
            f"encode the {kind}s with the model that it was pre-trained on (--{kind}).",
            code=f"tune.other_{kind}",
        )
    # ingested vectors and official checkpoints do not say what encoder was theirs
    known = (encoder or {}).keys() & made_by.settings.keys() & {"pooling", "weights"}
    for key in sorted(known):
        if encoder is not None and encoder[key] != made_by.settings[key]:
            settings = "--text and --pooling" if kind == "text" else f"--{kind}"
            raise StoreError(
                f"{start}: reads {kind}s encoded with {key} {encoder[key]}, {name} has "
                f"{made_by.settings[key]}; tune with the {settings} of its pre-training.",
                code=f"tune.other_{kind}",
            )


def check_whitening(start: Path, config: dict[str, Any], whiten: bool) -> None:
    """Refuse vectors whitened where the pre-trained ones were raw, or the other way.

    Raises:
        StoreError: ``tune.other_text``.
    """
    if config["whiten"] != whiten:
        raise StoreError(
            f"{start}: was pre-trained on {'whitened' if config['whiten'] else 'raw'} text vectors; "
            f"add --{'' if config['whiten'] else 'no-'}whiten.",
            code="tune.other_text",
        )


def finished(out: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The configuration of a finished teacher of the same identity; another is never overwritten.

    Where there is none, what a killed process left half-written in `out` goes.

    Raises:
        UsageError: ``teacher.exists``; StoreError: ``teacher.damaged``.
    """
    if not (out / CONFIG).is_file():
        if out.is_dir():
            sweep(out)
        return None
    config = read_config(out)
    found = config.get("identity", {})
    if odd := difference(found, identity):
        key, there, here = odd
        raise UsageError(
            f"{out}: holds a teacher with {key} {there}, this one would have "
            f"{here}; choose another --out, or remove it.",
            code="teacher.exists",
        )
    load_folder(out)  # if it is damaged, that is said now
    # of a process that was killed in between
    for file in recformer_tune.checkpoints(out / CHECKPOINT):
        file.unlink(missing_ok=True)
    Way(out, 0, {}).forget()
    return config


def positions_for(datasets: Sequence[Dataset]) -> int:
    """How long histories a new teacher must be able to read: fifty at least, so that weights fit other targets."""
    return max(OFFICIAL.positions, *(dataset.max_length for dataset in datasets))


def identity_of(dataset: Dataset, name: str, *, ingested: bool) -> str:
    """A vector set as an identity names it; one that was ingested may come again under its name with other numbers."""
    return f"{name} {vectors_manifest(dataset, name).digest}" if ingested else name


def flat(**values: Any) -> dict[str, Any]:
    """Nested settings as one level of JSON values, so that a difference has a name."""
    level: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            level |= {f"{key}.{inner}": one for inner, one in value.items()}
        else:
            level[key] = value
    plain: dict[str, Any] = json.loads(canonical_json(level))
    return plain
