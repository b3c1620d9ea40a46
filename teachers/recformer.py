"""Recformer: items are their texts, a history is one long text, and a language model reads both; scores are cosines.

Architecture of arXiv 2305.13731 with the parameter names of its public implementation, so that official weights load:
Longformer over the sum of word, position, type and item-position embeddings; the first token's state is the vector of
what was read. A word head for masked language modelling shares the word embeddings. Once tuned, the model carries a
table of its items' vectors. Histories are encoded in batches of a budget of tokens, longest first; nothing is padded.
At 12 x 768 a core reads some 470 tokens a second, at 6 x 384 some 3,700. Legend: N tokens, B sequences, D width, V
items, W words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cache.dataset import Ints
from cache.errors import UsageError
from encoder.dropout import Dropout
from encoder.packed import sent
from encoder.products import rowwise
from teachers.frozen_longformer import FrozenLongformer
from teachers.longformer import Longformer
from teachers.ragged import Ragged
from teachers.recformer_tokens import Limits, Sequences, Tokens
from teachers.text import Progress

__all__ = ["Architecture", "Batch", "Recformer", "encode", "reader", "token_batches"]

_BUDGET = {"cpu": 4096}  # tokens at once: what stays near the processor
_GPU_BUDGET = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Widths and rates of a Recformer; the defaults are those of the official checkpoints.

    Attributes:
        vocabulary: W.
        positions: rows of the position table; a text may have `positions - pad - 1` tokens.
        types: of tokens; the fourth is padding.
        item_positions: rows of the item-position table; 0 is for the first token.
        window: tokens that a token sees, half of them on either side.
        pad: the padding token's id; positions begin one behind it, as in RoBERTa.
        temperature: what cosines are divided by while training.
    """

    vocabulary: int = 50265
    hidden: int = 768
    layers: int = 12
    heads: int = 12
    inner: int = 3072
    positions: int = 4098
    types: int = 4
    item_positions: int = 51
    window: int = 64
    pad: int = 1
    eps: float = 1e-5
    dropout: float = 0.1
    attention_dropout: float = 0.1
    temperature: float = 0.05

    def check(self, limits: Limits) -> None:
        """Refuse to read more than the tables hold.

        Raises:
            UsageError: ``recformer.too_long``.
        """
        tokens, items = self.positions - self.pad - 1, self.item_positions - 1
        if limits.tokens > tokens or limits.items > items:
            raise UsageError(
                f"a Recformer of at most {tokens} tokens and {items} items cannot read {limits.tokens} tokens and "
                f"{limits.items} items; ask for fewer, or start from a model with longer tables.",
                code="recformer.too_long",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some sequences on the device that reads them."""

    ids: Tensor  #: [N] int64, like all here
    kinds: Tensor  #: [N]
    places: Tensor  #: [N] of the item
    positions: Tensor  #: [N] rows of the position table
    ragged: Ragged

    @classmethod
    def of(
        cls, tokens: Tokens, architecture: Architecture, device: torch.device | str = "cpu"
    ) -> Batch:
        """Lay the tokens out on `device`."""
        starts = np.cumsum(tokens.lengths) - tokens.lengths
        within = np.arange(len(tokens.ids)) - np.repeat(starts, tokens.lengths)
        parts = (tokens.ids, tokens.kinds, tokens.places, within + architecture.pad + 1)
        ids, kinds, places, positions = (
            sent(torch.from_numpy(one.astype(np.int64)), device) for one in parts
        )
        ragged = Ragged.of(tokens.lengths, architecture.window, device=device)
        return cls(ids=ids, kinds=kinds, places=places, positions=positions, ragged=ragged)

    def with_ids(self, ids: Ints) -> Batch:
        """The same layout with other tokens."""
        moved = sent(torch.from_numpy(ids.astype(np.int64)), self.ids.device)
        return replace(self, ids=moved)


class Recformer(nn.Module):
    """The model; keys and shapes of its state are the official ones.

    Args:
        with_head: add the word head, for masked language modelling.
        items: V: add a table of item vectors, which no gradient reaches.
    """

    def __init__(
        self, architecture: Architecture, *, with_head: bool = False, items: int | None = None
    ) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.longformer = _Reader(a)
        self.lm_head: _WordHead | None = None
        self.item_embedding: nn.Embedding | None = None
        if with_head:
            self.lm_head = _WordHead(a, self.longformer.embeddings.word_embeddings)
        self.apply(_init)
        if items is not None:
            table_VD = torch.zeros(items, a.hidden)
            self.item_embedding = nn.Embedding(items, a.hidden, _weight=table_VD, _freeze=True)

    def states(self, batch: Batch) -> Tensor:
        """[N, D] state of every token."""
        states: Tensor = self.longformer(batch, False)
        return states

    def first_states(self, batch: Batch) -> Tensor:
        """[B, D] state of every sequence's first token, not yet normalised."""
        states: Tensor = self.longformer(batch, True)
        return states

    def words(self, states_MD: Tensor) -> Tensor:
        """[M, W] logits of the word that stands behind each state."""
        if self.lm_head is None:
            raise RuntimeError("a Recformer without a word head guesses no words")
        logits: Tensor = self.lm_head(states_MD)
        return logits

    def table(self) -> Tensor:
        """[V, D] the items' vectors, not yet normalised."""
        if self.item_embedding is None:
            raise RuntimeError("a Recformer without a target domain has no item table")
        return self.item_embedding.weight

    def logits(self, states_BD: Tensor, table_CD: Tensor) -> Tensor:
        """[B, C] cosines over the temperature, as training wants them."""
        scale = 1 / self.architecture.temperature
        return (F.normalize(states_BD, dim=-1) * scale) @ F.normalize(table_CD, dim=-1).T

    def freeze_words(self) -> None:
        """Keep the word embeddings as they are."""
        self.longformer.embeddings.word_embeddings.requires_grad_(False)


class _Reader(nn.Module):
    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.embeddings = _Embeddings(a)
        self.encoder = Longformer(
            hidden=a.hidden,
            layers=a.layers,
            heads=a.heads,
            inner=a.inner,
            dropout=a.dropout,
            attention_dropout=a.attention_dropout,
            eps=a.eps,
        )

    def forward(self, batch: Batch, first_only: bool) -> Tensor:
        states: Tensor = self.encoder(self.embeddings(batch), batch.ragged, first_only)
        return states


class _Embeddings(nn.Module):
    position_ids: Tensor

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(a.vocabulary, a.hidden)
        self.position_embeddings = nn.Embedding(a.positions, a.hidden)
        self.token_type_embeddings = nn.Embedding(a.types, a.hidden)
        self.item_position_embeddings = nn.Embedding(a.item_positions, a.hidden)
        self.LayerNorm = nn.LayerNorm(a.hidden, eps=a.eps)
        self.dropout = Dropout(a.dropout)
        # of no use here: the official files hold it
        self.register_buffer("position_ids", torch.arange(a.positions)[None])

    def forward(self, batch: Batch) -> Tensor:
        x_ND = self.word_embeddings(batch.ids) + self.position_embeddings(batch.positions)
        x_ND = x_ND + self.token_type_embeddings(batch.kinds)
        x_ND = x_ND + self.item_position_embeddings(batch.places)
        out: Tensor = self.dropout(self.LayerNorm(x_ND))
        return out


class _WordHead(nn.Module):
    def __init__(self, a: Architecture, words: nn.Embedding) -> None:
        super().__init__()
        self.dense = nn.Linear(a.hidden, a.hidden)
        self.layer_norm = nn.LayerNorm(a.hidden, eps=a.eps)
        self.decoder = nn.Linear(a.hidden, a.vocabulary)
        self.decoder.weight = words.weight
        self.bias = self.decoder.bias

    def forward(self, states_MD: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.layer_norm(rowwise(F.gelu, self.dense(states_MD))))
        return out


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def token_batches(lengths: NDArray[np.int64], budget: int) -> Iterator[NDArray[np.int64]]:
    """Rows in batches of like length, the longest first, each within `budget` tokens, one row at least."""
    order = np.argsort(-lengths, kind="stable")
    totals = np.cumsum(lengths[order])
    start = 0
    while start < len(order):
        spent = totals[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(totals, spent + budget, side="right")))
        yield order[start:stop]
        start = stop


@torch.no_grad()
def encode(
    model: Recformer,
    sequences: Sequences,
    *,
    bfloat16: bool = False,
    budget: int | None = None,
    read: Callable[[Batch], Tensor] | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """[n, D] the vectors of sequences, float32 on the model's device, not yet normalised.

    The model must be in evaluation. A row depends on the others of its batch by rounding alone (1e-6).

    Args:
        bfloat16: autocast matrix products.
        budget: tokens at once.
        read: what :func:`reader` gave for the model as it stands; by default it is asked for.
    """
    device = next(model.parameters()).device
    budget = budget or _BUDGET.get(device.type, _GPU_BUDGET)
    read = read or reader(model, bfloat16=bfloat16)
    out_nD = torch.empty(len(sequences.lengths), model.architecture.hidden, device=device)
    done, total = 0, int(sequences.lengths.sum())
    for chosen in token_batches(sequences.lengths, budget):
        batch = Batch.of(sequences.lay(chosen), model.architecture, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            states_BD = read(batch)
        out_nD[sent(torch.from_numpy(chosen), device)] = states_BD.float()
        done += len(batch.ids)
        if progress is not None:
            progress(done, total, "reading texts")
    return out_nD


def reader(model: Recformer, *, bfloat16: bool = False) -> Callable[[Batch], Tensor]:
    """The fastest way from a batch to the states of its first tokens; ask anew when weights change."""
    if next(model.parameters()).device.type != "cpu" or bfloat16:
        return model.first_states
    frozen = FrozenLongformer(model.longformer.encoder)
    return lambda batch: frozen(model.longformer.embeddings(batch), batch.ragged, True)
