"""A tuned UniSRec, or another teacher of cosines, that answers: item vectors, history vectors, cosines.

Belongs to the dataset it was tuned on and refuses another. A user's prefixes are read from one causal pass; encoding all
prefixes of a dataset costs little more than encoding every user once. Float32 throughout. V items, D width, n histories.
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
from encoder.packed import Packed
from teachers.backbone import Backbone
from teachers.folder import CONFIG, load_folder, quality_of, save_folder
from teachers.passes import plan_passes
from teachers.protocol import Floats
from teachers.unisrec import Architecture, UniSRec

__all__ = ["CosineTeacher", "UniSRecTeacher", "encode_histories", "save_unisrec"]

_TOKENS = 16384  # laid out at once


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
    factorises = True

    def __init__(
        self, model: Backbone, digest: str, dataset: str, quality: Mapping[str, float], device: str
    ) -> None:
        self._model = model.eval().to(device)
        self._dataset = dataset
        self.digest = digest
        self.quality = quality
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
        try:
            model = cls.model_of(weights, config)
            dataset, quality = config["dataset"], quality_of(config)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise StoreError(
                f"{folder / CONFIG}: does not describe the weights beside it ({type(error).__name__}); "
                f"remove {folder} and tune the teacher again.",
                code="teacher.damaged",
            ) from error
        return cls(model, digest, dataset, quality, device)

    def encode_items(self, dataset: Dataset) -> Floats:
        """[V, D] unit vectors."""
        self._check(dataset)
        vectors: Floats = F.normalize(self._table_VD, dim=-1).cpu().numpy()
        return vectors

    def encode_histories(self, dataset: Dataset, users: Ints, ends: Ints) -> Floats:
        """[n, D] unit vectors."""
        self._check(dataset)
        vectors = encode_histories(self._model, self._table_VD, dataset, users, ends)
        found: Floats = vectors.cpu().numpy()
        return found

    def score(self, users_vec: Floats, items_vec: Floats) -> Floats:
        """[n, C] cosines."""
        return users_vec @ items_vec.T

    def _check(self, dataset: Dataset) -> None:
        if dataset.digest != self._dataset:
            raise StoreError(
                f"the teacher was tuned on the dataset {self._dataset[:19]}, {dataset.path} is "
                f"{dataset.digest[:19]}; tune it on that one with `kd-teacher tune {self.name}`.",
                code="teacher.foreign",
            )


class UniSRecTeacher(CosineTeacher):
    """A tuned UniSRec."""

    name = "unisrec"

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
