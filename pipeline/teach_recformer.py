"""Makes Recformer teachers: a start from a language model, pre-training on source domains, tuning on the target.

Runs, folders, resuming and refusals are those of pipeline/teach.py. A Recformer reads texts itself, so no vectors are kept
beside the dataset; a folder brings its tokenizer. Costs are counted in tokens: an epoch of tuning reads all items once,
its users' histories three times (forward and backward), and those that validate once more; `limit` and `Limits` are the
two ways to pay less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from cache.dataset import Dataset
from pipeline.console import Report
from pipeline.evaluate import ranks_of_targets
from pipeline.metrics import Metrics, metrics_of_ranks
from pipeline.sets import only_trainer
from pipeline.teach import keep_pretrained
from pipeline.teach_checks import (
    CHECKPOINT,
    check_pretrained,
    check_sources,
    check_tunable,
    finished,
    flat,
)
from teachers import recformer_pretrain, recformer_tune
from teachers.folder import described, read_config
from teachers.recformer import Recformer, encode
from teachers.recformer_start import start as start_from
from teachers.recformer_teacher import load_recformer, save_recformer
from teachers.recformer_tokens import ItemTokens, Limits, Vocabulary, attributes_of, tokenise_items
from teachers.recformer_weights import import_recformer as import_official
from teachers.trainer import Recipe

__all__ = ["Reading", "import_official", "pretrain", "tune"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a Recformer starts from, and how much it reads."""

    text: str = "minilm"  #: language model; not used where a pre-trained Recformer is the start
    limits: Limits = field(default_factory=Limits)
    dropout: float = 0.1  #: of states and attention weights


def tune(
    dataset: Dataset,
    out: Path,
    *,
    reading: Reading,
    start: Path | None,
    second: Recipe | None,
    limit: int | None,
    recipe: Recipe,
    device: str,
    report: Report,
) -> dict[str, Any]:
    """Tune a Recformer on `dataset` into `out`, in two stages; returns its configuration, metrics included.

    Args:
        start: folder of a pre-trained Recformer; else `reading.text` is the start.
        second: how stage two is trained; None leaves it out.
        limit: at most so many users an epoch, drawn afresh each epoch, and at most so many to validate on, which stay
            the same; the metrics that are kept are of all users.

    Raises:
        UsageError: ``teacher.exists`` when `out` holds a finished teacher of other settings; ``tune.*``,
            ``recformer.too_long``, or what :func:`teachers.recformer_start.start` raises.
    """
    check_tunable(dataset, out, start, freeze_encoder=False)
    torch.manual_seed(recipe.seed)
    model, vocabulary, origin = _begin(reading, start, items=dataset.num_items)
    identity = flat(
        dataset=dataset.digest,
        start=origin,
        limits=asdict(reading.limits),
        architecture=asdict(model.architecture),
        recipe=asdict(recipe),
        second=None if second is None else asdict(second),
        limit=limit,
    )
    if (done := finished(out, identity)) is not None:
        return done
    attributes = attributes_of(dataset)
    items = tokenise_items(dataset, vocabulary, reading.limits, attributes)
    model.to(device)
    checkpoint = out / CHECKPOINT
    with only_trainer(out):
        if (done := finished(out, identity)) is not None:  # another process was quicker
            return done
        trained = recformer_tune.tune(
            model,
            dataset,
            items,
            recipe,
            second=second,
            limit=limit,
            validate=lambda: _measure(model, dataset, items, "valid", recipe, limit)["ndcg@10"],
            checkpoint=checkpoint,
            identity=identity,
            report=report,
        )
        model.load_state_dict(trained.weights)
        model.eval()
        save_recformer(
            out,
            model,
            trained.weights,
            vocabulary=vocabulary,
            limits=reading.limits,
            attributes=attributes,  # items that come later may have others
            stage="tuned",
            dataset=dataset.digest,
            identity=identity,
            epochs=trained.epochs,
            validation=_measure(model, dataset, items, "valid", recipe),
            test=_measure(model, dataset, items, "test", recipe),
        )
        for file in recformer_tune.checkpoints(checkpoint):
            file.unlink(missing_ok=True)
        return read_config(out)


def pretrain(
    datasets: Sequence[Dataset],
    out: Path,
    *,
    reading: Reading,
    word_weight: float,
    limit: int | None,
    recipe: Recipe,
    device: str,
    report: Report,
) -> dict[str, Any]:
    """Pre-train a Recformer on several source domains into `out`; returns its configuration.

    The order of the sources does not matter. Word embeddings stay as the language model has them, as in the public code.

    Args:
        word_weight: of masked language modelling beside the contrast of histories and items.
        limit: at most so many users an epoch, drawn afresh each epoch.

    Raises:
        UsageError: ``teacher.exists``, ``pretrain.no_users``, or what :func:`teachers.recformer_start.start` raises.
    """
    check_sources(datasets, out)
    datasets = sorted(datasets, key=lambda dataset: dataset.digest)
    torch.manual_seed(recipe.seed)
    begun = start_from(reading.text, reading.limits, dropout=reading.dropout, with_head=True)
    model = begun.model
    identity = flat(
        datasets=[dataset.digest for dataset in datasets],
        start=begun.origin,
        limits=asdict(reading.limits),
        architecture=asdict(model.architecture),
        word_weight=word_weight,
        recipe=asdict(recipe),
        limit=limit,
    )
    if (done := finished(out, identity)) is not None:
        return done
    model.freeze_words()
    model.to(device)
    with only_trainer(out):
        if (done := finished(out, identity)) is not None:  # another process was quicker
            return done
        trained = recformer_pretrain.pretrain(
            model,
            [
                recformer_pretrain.Source(
                    one, tokenise_items(one, begun.vocabulary, reading.limits)
                )
                for one in datasets
            ],
            begun.vocabulary,
            recipe,
            checkpoint=out / CHECKPOINT,
            identity=identity,
            limit=limit,
            word_weight=word_weight,
            report=report,
        )
        return keep_pretrained(
            out,
            model,
            trained,
            save=save_recformer,
            identity=identity,
            vocabulary=begun.vocabulary,
            limits=reading.limits,
        )


def _begin(reading: Reading, start: Path | None, items: int) -> tuple[Recformer, Vocabulary, str]:
    """(model with a table of `items` zeros, vocabulary, digest of both)."""
    if start is None:
        begun = start_from(reading.text, reading.limits, dropout=reading.dropout, items=items)
        return begun.model, begun.vocabulary, begun.origin
    check_pretrained(start, read_config(start), "recformer", "Recformer")
    loaded = load_recformer(start)
    loaded.architecture.check(reading.limits)
    shape = replace(loaded.architecture, dropout=reading.dropout, attention_dropout=reading.dropout)
    with described(start):
        model = replace(loaded, architecture=shape).model(items=items)
    return model, loaded.vocabulary, loaded.digest


@torch.no_grad()
def _measure(
    model: Recformer,
    dataset: Dataset,
    items: ItemTokens,
    part: Any,
    recipe: Recipe,
    limit: int | None = None,
) -> Metrics:
    """How well the model ranks all items by its table, for at most `limit` users."""
    users, ends = dataset.held_out(part)
    if limit is not None and limit < len(users):
        some = np.sort(np.random.default_rng(recipe.seed).permutation(len(users))[:limit])
        users, ends = users[some], ends[some]
    states_nD = encode(model, items.histories(dataset, users, ends), bfloat16=recipe.bfloat16)
    targets = torch.from_numpy(dataset.targets(users, ends).astype(np.int64)).to(states_nD.device)
    ranks = ranks_of_targets(
        F.normalize(states_nD, dim=-1), F.normalize(model.table(), dim=-1), targets
    )
    return metrics_of_ranks(ranks)
