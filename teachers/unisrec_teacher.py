"""A tuned UniSRec, or another teacher of cosines, that answers: item vectors, history vectors, cosines.

Belongs to the dataset it was tuned on and to those that extend it, where vectors of the new items' features lie beside
them; refuses others, and new items if it has an id for each old one. A user's prefixes are read from one causal pass;
encoding all prefixes of a dataset costs little more than encoding every user once. Float32 throughout. V items, D width,
n histories.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cache.dataset import Dataset, Ints
from cache.errors import StoreError, UsageError
from cache.vectors import read_vectors
from encoder.packed import Packed
from teachers.backbone import Backbone
from teachers.folder import described, load_folder, quality_of, save_folder
from teachers.passes import plan_passes
from teachers.prewhitening import whitened
from teachers.protocol import Floats
from teachers.unisrec import Architecture, UniSRec

__all__ = [
    "CosineTeacher",
    "UniSRecTeacher",
    "encode_histories",
    "rows_tuned_on",
    "save_unisrec",
]

_TOKENS = 16384  # laid out at once
_SAME = 0.05  # of its own features' size, by which features made anew may differ


@torch.inference_mode()
def encode_histories(
    model: Backbone, table_VD: Tensor, dataset: Dataset, users: Ints, ends: Ints
) -> Tensor:
    """[n, D] unit vectors of the histories of (users, ends), by as few passes as there can be."""
    device = table_VD.device
    passes = plan_passes(dataset, users, ends)
    out_nD = torch.empty(len(users), table_VD.shape[1], device=device)
    order = np.argsort(passes.lengths, kind="stable")
    for chosen in passes.batches(order, _TOKENS, passes.lengths):
        laid = passes.pack(chosen)
        packed = Packed.of(laid.items, laid.lengths, device)
        states_ND = model.states(table_VD[packed.items], packed)
        rows = torch.from_numpy(laid.rows).to(device)
        out_nD[torch.from_numpy(laid.instances).to(device)] = F.normalize(states_ND[rows], dim=-1)
    return out_nD


class CosineTeacher:
    """Satisfies :class:`teachers.protocol.Teacher`; a kind says its name and how its model is read back."""

    name: ClassVar[str]
    feature_keys: ClassVar[tuple[str, ...]]  #: of its identity, that name the vector sets it reads
    factorises = True

    def __init__(
        self, model: Backbone, digest: str, config: Mapping[str, Any], device: str
    ) -> None:
        self._model = model.eval().to(device)
        self._dataset = str(config["dataset"])
        self._identity: Mapping[str, Any] = config.get("identity", {})
        self._extended: tuple[str, Tensor] = ("", torch.empty(0))
        self.digest = digest
        self.quality: Mapping[str, float] = quality_of(config)
        with torch.inference_mode():
            self._table_VD = self._model.item_table()

    @staticmethod
    def model_of(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> Backbone:
        """The model as a folder's configuration describes it, holding `weights`."""
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The tuned teacher in `folder`, on the GPU if there is one."""
        weights, config, digest = load_folder(folder)
        if config.get("stage") == "pretrained":
            raise UsageError(
                f"{folder}: holds a pre-trained teacher that knows no target domain; "
                f"run `kd-teacher tune {cls.name} --from {folder}`.",
                code="teacher.not_tuned",
            )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with described(folder):
            return cls(cls.model_of(weights, config), digest, config, device)

    @staticmethod
    def prewhitened(vectors_VW: Floats, first: int) -> Floats:
        """[V, W] vectors whitened as the `first` of them were by themselves."""
        return whitened(vectors_VW, first)

    @property
    def inductive(self) -> bool:
        """Whether it can speak of items that it was not tuned on."""
        return self._model.item_embedding is None

    @property
    def vector_sets(self) -> tuple[str, ...]:
        """Names of the item vectors that it reads, beside the dataset that it was tuned on."""
        return tuple(
            str(self._identity.get(key, "")).partition(" ")[0] for key in self.feature_keys
        )

    def encode_items(self, dataset: Dataset) -> Floats:
        """[V, D] unit vectors."""
        vectors: Floats = F.normalize(self._table(dataset), dim=-1).cpu().numpy()
        return vectors

    def encode_some_items(self, dataset: Dataset, items: Ints) -> Floats:
        """[n, D] unit vectors of some items."""
        return self.encode_items(dataset)[items]

    def encode_histories(self, dataset: Dataset, users: Ints, ends: Ints) -> Floats:
        """[n, D] unit vectors."""
        vectors = encode_histories(self._model, self._table(dataset), dataset, users, ends)
        found: Floats = vectors.cpu().numpy()
        return found

    def score(self, users_vec: Floats, items_vec: Floats) -> Floats:
        """[n, C] cosines."""
        return users_vec @ items_vec.T

    def _table(self, dataset: Dataset) -> Tensor:
        """[V, D] item vectors, not yet normalised: those it was tuned with, then those of items that came later."""
        known = rows_tuned_on(dataset, self._dataset, self.name)
        if known == dataset.num_items:
            return self._table_VD
        digest, table_VD = self._extended
        if digest != dataset.digest:
            if not self.inductive:
                raise UsageError(
                    f"the teacher was tuned with an id for each item (transductive) and knows nothing of the "
                    f"{dataset.num_items - known:,} items of {dataset.path} that came later; "
                    f"tune one on it with `kd-teacher tune {self.name}`.",
                    code="teacher.transductive",
                )
            own = zip(self.vector_sets, self._model.features, strict=True)
            new = [self._later(dataset, name, own_VW) for name, own_VW in own]
            with torch.inference_mode():
                table_VD = torch.cat([self._table_VD, self._model.adapt(*new)])
            self._extended = dataset.digest, table_VD
        return table_VD

    def _later(self, dataset: Dataset, name: str, own_VW: Tensor) -> Tensor:
        """[n, W] features of the items that came later, made as its own were."""
        known = len(own_VW)
        vectors_VW: Floats = np.array(read_vectors(dataset, name))
        if self._identity.get("whiten"):
            vectors_VW = self.prewhitened(vectors_VW, known)
        own = own_VW.cpu().numpy()
        if vectors_VW.shape[1] != own.shape[1] or not _alike(vectors_VW[:known], own):
            raise StoreError(
                f"{dataset.path}: its vectors {name} are not those that the teacher {self.name} was tuned with; "
                "encode with the model that they came from.",
                code="teacher.other_vectors",
            )
        return torch.from_numpy(vectors_VW[known:]).to(own_VW.device)


def rows_tuned_on(dataset: Dataset, tuned_on: str, kind: str) -> int:
    """How many of the first items a teacher was tuned on.

    Raises:
        StoreError: ``teacher.foreign``.
    """
    known = dataset.rows_of(tuned_on)
    if known is None:
        raise StoreError(
            f"the teacher was tuned on the dataset {tuned_on[:19]}, {dataset.path} is "
            f"{dataset.digest[:19]}; tune it on that one with `kd-teacher tune {kind}`.",
            code="teacher.foreign",
        )
    return known


def _alike(ours: Floats, theirs: Floats) -> bool:
    """Equal but for another device's rounding (bfloat16 leaves about a hundredth)."""
    gap, size = np.linalg.norm(ours - theirs), np.linalg.norm(theirs)
    return bool(gap <= _SAME * size)


class UniSRecTeacher(CosineTeacher):
    """A tuned UniSRec."""

    name = "unisrec"
    feature_keys = ("vectors",)

    @staticmethod
    def model_of(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> UniSRec:
        """A UniSRec as a folder's configuration describes it, holding `weights`."""
        texts = weights.get("plm_embedding.weight")
        architecture = Architecture(**config["architecture"])
        model = UniSRec(architecture, texts, with_ids="item_embedding.weight" in weights)
        model.load_state_dict(dict(weights))
        return model


def save_unisrec(
    folder: Path, model: UniSRec, weights: Mapping[str, Tensor], **config: Any
) -> None:
    """Write a UniSRec that :class:`UniSRecTeacher` reads back; `config` must say its `stage`."""
    shape = asdict(model.architecture)
    save_folder(folder, weights, {"teacher": UniSRecTeacher.name, "architecture": shape, **config})
