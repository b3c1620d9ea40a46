"""Pre-training a Recformer over several source domains: guessing masked words, and telling the next item from others.

Item-item contrast: a history against the batch's target items, each read alone, cosines over 0.05; in-batch
negatives, without those that equal the positive. Masked language modelling of both texts: whole words, 15%, of whose
tokens 80% become the mask, 10% any token and 10% stay; each weighs 0.1 (arXiv 2305.13731, section 2.3). The target is
drawn from the later half of a user's training part, afresh each epoch. Both texts of a batch are read in one pass,
once whole and once masked. Costs about two and a half tunings of as many users; memory grows with the tokens of a
batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cache.dataset import Dataset, Ints
from cache.errors import UsageError
from teachers.pretrain import contrast
from teachers.recformer import Batch, Recformer
from teachers.recformer_tokens import ItemTokens, Tokens, Vocabulary
from teachers.schedule import warm_up_and_decay
from teachers.trainer import Recipe, Report, Trained, train

__all__ = ["Masked", "Source", "mask_words", "pretrain"]

_SHARE, _TO_MASK, _TO_ANY = 0.15, 0.8, 0.1


@dataclass(frozen=True, slots=True)
class Source:
    """One source domain."""

    dataset: Dataset
    items: ItemTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Masked:
    """Tokens with words hidden."""

    ids: Ints  #: [N]
    rows: NDArray[np.int64]  #: [M] tokens that are to be guessed, ascending
    words: NDArray[np.int64]  #: [M] what stood there


def mask_words(
    tokens: Tokens, vocabulary: Vocabulary, draws: np.random.Generator, share: float = _SHARE
) -> Masked:
    """Choose every word with probability `share` (one at least) and hide its tokens; first tokens are never chosen."""
    word = np.cumsum(tokens.begins) - 1
    chance = draws.random(int(tokens.begins.sum()))
    chance[word[tokens.places == 0]] = np.inf
    chosen = chance < share
    if not chosen.any():
        chosen[chance.argmin()] = True
    rows = np.flatnonzero(chosen[word] & (tokens.places > 0))
    fate = draws.random(len(rows))
    ids = tokens.ids.copy()
    ids[rows[fate < _TO_MASK]] = vocabulary.mask
    anything = rows[(fate >= _TO_MASK) & (fate < _TO_MASK + _TO_ANY)]
    ids[anything] = draws.integers(0, vocabulary.size, len(anything))
    return Masked(ids=ids, rows=rows, words=tokens.ids[rows].astype(np.int64))


def pretrain(
    model: Recformer,
    sources: Sequence[Source],
    vocabulary: Vocabulary,
    recipe: Recipe,
    *,
    checkpoint: Path,
    identity: Mapping[str, Any],
    limit: int | None = None,
    word_weight: float = 0.1,
    warm_up: int = 0,
    clip: float = 1.0,
    report: Report = lambda done, total, note: None,
) -> Trained:
    """Pre-train `model`, which has a word head; see :func:`teachers.trainer.train`.

    Args:
        recipe: `batch_size` counts users; a last batch that is not full is left out.
        limit: at most so many users an epoch, drawn afresh each epoch.
        word_weight: of each of the two masked language models.
        warm_up: steps until the learning rate is whole; from there it falls in a straight line to zero at the last.
        clip: largest norm of the gradients.

    Raises:
        UsageError: ``pretrain.no_users`` where nobody has two items.
    """
    device = next(model.parameters()).device
    owner, user, length = _users(sources)
    first_row = np.cumsum([0, *(source.dataset.num_items for source in sources)])
    size = min(limit or len(owner), len(owner))
    size -= size % recipe.batch_size if size > recipe.batch_size else 0

    def lay(chosen: NDArray[np.int64], ends: Ints) -> tuple[Tokens, NDArray[np.int64]]:
        """Histories, then target items alone, and the targets by their row over all sources."""
        histories, alone, targets = [], [], []
        for number in np.unique(owner[chosen]):
            mine = owner[chosen] == number
            dataset, items = sources[number].dataset, sources[number].items
            users = user[chosen[mine]]
            read = items.histories(dataset, users, ends[mine])
            histories.append(read.lay(np.arange(len(users))))
            target = dataset.targets(users, ends[mine])
            alone.append(
                items.sequences(target, np.ones(len(users), np.int32)).lay(np.arange(len(users)))
            )
            targets.append(target + first_row[number])
        return _joined(histories + alone), np.concatenate(targets)

    def batches(epoch: int) -> Iterator[tuple[int, Callable[[], Tensor]]]:
        draws = np.random.Generator(np.random.Philox(key=np.array([recipe.seed, epoch], np.uint64)))
        order = np.argsort(draws.random(len(owner)), kind="stable")[:size]
        for start in range(0, size, recipe.batch_size):
            chosen = order[start : start + recipe.batch_size]
            chosen = chosen[np.argsort(owner[chosen], kind="stable")]
            last = length[chosen] - 1
            ends = draws.integers(np.maximum(last // 2, 1), last + 1).astype(np.int32)
            tokens, targets = lay(chosen, ends)
            masked = mask_words(tokens, vocabulary, draws)
            wanted = torch.from_numpy(targets).to(device)
            yield len(chosen), partial(_loss, model, tokens, masked, wanted, word_weight)

    steps = recipe.epochs * -(-size // recipe.batch_size)
    return train(
        model,
        recipe,
        batches,
        size=size,
        checkpoint=checkpoint,
        identity=identity,
        report=report,
        schedule=warm_up_and_decay(warm_up, steps),
        clip=clip,
    )


def _loss(
    model: Recformer, tokens: Tokens, masked: Masked, targets_T: Tensor, word_weight: float
) -> Tensor:
    device = targets_T.device
    pairs = len(targets_T)
    batch = Batch.of(tokens, model.architecture, device)
    firsts = model.first_states(batch)
    temperature = model.architecture.temperature
    loss = contrast(firsts[:pairs], firsts[pairs:], targets_T, temperature)
    if not word_weight:
        return loss
    hidden = batch.with_ids(masked.ids)
    rows = torch.from_numpy(masked.rows).to(device)
    words = torch.from_numpy(masked.words).to(device)
    states_MD = model.states(hidden).index_select(0, rows)
    surprise_M = F.cross_entropy(model.words(states_MD).float(), words, reduction="none")
    # histories stand first, items behind them; either mean is its own
    boundary = int(np.searchsorted(masked.rows, tokens.lengths[:pairs].sum()))
    for part in (surprise_M[:boundary], surprise_M[boundary:]):
        if len(part):
            loss = loss + word_weight * part.mean()
    return loss


def _users(sources: Sequence[Source]) -> tuple[NDArray[np.int64], Ints, NDArray[np.int64]]:
    """(source, user, length of the training part) of everybody who has a history and a target."""
    owners, users, lengths = [], [], []
    for number, source in enumerate(sources):
        able = np.flatnonzero(source.dataset.train_lengths >= 2)
        owners.append(np.full(len(able), number))
        users.append(able.astype(np.int32))
        lengths.append(source.dataset.train_lengths[able])
    if not sum(map(len, owners)):
        raise UsageError(
            "no user of the sources has two items to train on; hand in larger sources with --data.",
            code="pretrain.no_users",
        )
    return np.concatenate(owners), np.concatenate(users), np.concatenate(lengths)


def _joined(parts: Sequence[Tokens]) -> Tokens:
    return Tokens(
        ids=np.concatenate([part.ids for part in parts]),
        kinds=np.concatenate([part.kinds for part in parts]),
        places=np.concatenate([part.places for part in parts]),
        begins=np.concatenate([part.begins for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
    )
