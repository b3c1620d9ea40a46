"""RecGURU (Li et al., WSDM 2022), a reconstruction: one encoder for two domains, which a discriminator cannot tell apart.

The paper's equations were not at hand; its idea is public: an auto-encoder with self-attention gives a user of either domain
one vector, the generalised user representation; a discriminator guesses the domain from it, and the encoder is trained
against that; the vector augments a recommender of the target domain. Our choices: docs/decisions/0019-recguru.md.

Base loss = recommendation + `reconstruct_weight` * reconstruction + `adversary_weight` * discrimination, where
  recommendation  is the softmax over all items of the target domain, as the other sequential students have it;
  reconstruction  is the mean over both domains of a softmax over the domain's items, at some places of each sequence: the
                  decoder sees the items before a place and the vector;
  discrimination  is binary: target or source. The discriminator descends on it, the encoder ascends: its gradient is
                  turned.
Each step takes as many sequences of the source domain as the batch has histories, drawn uniformly from its training parts;
nobody need shop in both. Padding is never computed. A step is four times the multiply-adds of SASRec's where the domains are
alike, and seven times where the source has three times the items.
Legend: N tokens, B histories, D width, V items of a domain, M places, T slots, C columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cache.dataset import Dataset, Ints
from cache.errors import UsageError
from encoder.dropout import Dropout
from encoder.packed import Packed
from encoder.transformer import CausalTransformer
from student.bert4rec import cloze_places
from student.losses import dot_products, fused_loss
from student.ranges import check_range
from student.ready import Prepared

__all__ = ["RecGURU", "RecGURUConfig", "discrimination", "make", "turned"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecGURUConfig:
    """Sizes and rates; sizes as SASRec's, so that the two compare."""

    hidden: int = 64  #: D
    layers: int = 2  #: of encoder, decoder and recommender each
    heads: int = 2
    inner: int = 256  #: width inside the feed-forward
    dropout: float = 0.5  #: everywhere, attention weights included
    reconstruct_weight: float = 0.5
    reconstruct_ratio: float = (
        0.2  #: share of places that are reconstructed, at least one a sequence
    )
    adversary_weight: float = 0.1
    max_length: int = 50  #: longest history, and longest sequence of the source
    source: str = ""  #: digest of the other domain's dataset
    source_items: int = 0  #: its V

    def __post_init__(self) -> None:
        check_range(self, 0, math.inf, "reconstruct_weight", "adversary_weight")
        check_range(self, 0, 1, "reconstruct_ratio")


class RecGURU(nn.Module):
    """The model; 64 * (V + V of the source) + about 350,000 parameters at the default sizes.

    Only encoder, recommender and the target's items serve; the rest is for training.

    Args:
        config: sizes and rates, and which source.
        num_items: V of the target.
    """

    def __init__(self, config: RecGURUConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        width = config.hidden
        self.item_embedding = nn.Embedding(num_items, width)
        self.source_embedding = nn.Embedding(config.source_items, width)
        self.position_embedding = nn.Embedding(config.max_length, width)
        self.start = nn.Parameter(torch.zeros(width))  # what the decoder sees before the first item
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = Dropout(config.dropout)
        self.encoder, self.decoder, self.recommender = (
            CausalTransformer(
                hidden=width,
                layers=config.layers,
                heads=config.heads,
                inner=config.inner,
                dropout=config.dropout,
                attention_dropout=config.dropout,
            )
            for _ in range(3)
        )
        self.augment = nn.Linear(2 * width, width)
        self.discriminator = nn.Sequential(
            nn.Linear(width, 5 * width), nn.GELU(), nn.Linear(5 * width, 1)
        )
        self._sequences: tuple[Ints, Ints] | None = None
        self.apply(_init)

    def learn_from(self, source: Dataset) -> None:
        """Take the training parts of the other domain, the last `max_length` items of each.

        Raises:
            UsageError: ``fit.bad_source`` where nobody has a training part.
        """
        users = np.flatnonzero(source.train_lengths)
        if not len(users):
            raise UsageError(
                f"{source.path}: holds no training sequences; name another dataset with --source.",
                code="fit.bad_source",
            )
        lengths = np.minimum(source.train_lengths[users], self.config.max_length)
        first = source.offsets[users] + source.train_lengths[users] - lengths
        within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        self._sequences = source.flat[np.repeat(first, lengths) + within], lengths.astype(np.int32)

    def encode(self, packed: Packed) -> Tensor:
        """[B, D] the recommender's state after the last item, augmented by the generalised representation."""
        x_ND = self._embedded(packed, self.item_embedding)
        return self._augmented(x_ND, packed, self.encoder(x_ND, packed, True))

    def item_table(self) -> Tensor:
        """[V, D]."""
        return self.item_embedding.weight

    def own_loss(self, batch: Prepared, *, logits: bool) -> tuple[Tensor, Tensor | None]:
        """The base loss, and the logits [T, C].

        Raises:
            ValueError: before :meth:`learn_from`.
        """
        config = self.config
        packed, source = batch.packed, self._drawn(len(batch.rows_T), batch.rows_T.device)
        x_ND = self._embedded(packed, self.item_embedding)
        own_BD = self.encoder(x_ND, packed, True)
        other_BD = self.encoder(self._embedded(source, self.source_embedding), source, True)
        users_TD = self._augmented(x_ND, packed, own_BD)
        recommended = fused_loss(users_TD, self.item_embedding.weight, batch.rows_T)[0]
        rebuilt = (
            self._rebuilt(packed, own_BD, self.item_embedding)
            + self._rebuilt(source, other_BD, self.source_embedding)
        ) / 2
        told = discrimination(
            self.discriminator(turned(own_BD))[:, 0], self.discriminator(turned(other_BD))[:, 0]
        )
        base = recommended + config.reconstruct_weight * rebuilt + config.adversary_weight * told
        if not logits:
            return base, None
        return base, dot_products(users_TD, self.item_embedding(batch.items_C))

    def _embedded(self, packed: Packed, table: nn.Embedding) -> Tensor:
        x_ND = table(packed.items) + self.position_embedding(packed.positions)
        out: Tensor = self.dropout(self.LayerNorm(x_ND))
        return out

    def _augmented(self, x_ND: Tensor, packed: Packed, general_BD: Tensor) -> Tensor:
        states_BD = self.recommender(x_ND, packed, True)
        out: Tensor = self.augment(torch.cat([states_BD, general_BD], dim=1))
        return out

    def _rebuilt(self, packed: Packed, general_BD: Tensor, table: nn.Embedding) -> Tensor:
        """Mean cross-entropy of the sequences' items at drawn places, from what stands before each and the vector."""
        draws_N = torch.rand(len(packed.items), device=general_BD.device)
        places_M = cloze_places(draws_N, packed, self.config.reconstruct_ratio)
        before_ND = table(packed.items.roll(1))
        before_ND = torch.where((packed.positions == 0)[:, None], self.start, before_ND)
        lengths_B = packed.positions[packed.last] + 1
        general_ND = general_BD.repeat_interleave(lengths_B, dim=0)
        x_ND = before_ND + self.position_embedding(packed.positions) + general_ND
        x_ND = self.dropout(self.LayerNorm(x_ND))
        states_MD = self.decoder(x_ND, replace(packed, last=places_M), True)
        return fused_loss(states_MD, table.weight, packed.items[places_M])[0]

    def _drawn(self, count: int, device: torch.device) -> Packed:
        """So many sequences of the source."""
        if self._sequences is None:
            raise ValueError("a RecGURU learns from two domains, and `learn_from` was not called")
        flat, lengths = self._sequences
        chosen = torch.randint(len(lengths), (count,)).numpy()
        starts = (np.cumsum(lengths) - lengths)[chosen]
        sizes = lengths[chosen].astype(np.int64)
        within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return Packed.of(flat[np.repeat(starts, sizes) + within], sizes, device)


def make(config: RecGURUConfig, dataset: Dataset) -> RecGURU:
    """A new one for a dataset; it learns nothing before it has been told from whom, by `learn_from`."""
    return RecGURU(config, dataset.num_items)


def turned(x: Tensor) -> Tensor:
    """The same numbers, whose gradient comes back with the other sign."""
    return 2 * x.detach() - x


def discrimination(own_B: Tensor, other_B: Tensor) -> Tensor:
    """Mean binary cross-entropy of logits that should be high (the target) and low (the source), nats."""
    return (F.softplus(-own_B).mean() + F.softplus(other_B).mean()) / 2


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
