"""A tuned UniM2Rec (a RECONSTRUCTION, see teachers/unim2rec.py) that answers as teachers/unisrec_teacher.py does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from teachers.folder import save_folder
from teachers.prewhitening import whitened_present
from teachers.protocol import Floats
from teachers.unim2rec import Architecture, UniM2Rec
from teachers.unisrec_teacher import CosineTeacher

__all__ = ["UniM2RecTeacher", "save_unim2rec"]


class UniM2RecTeacher(CosineTeacher):
    """A tuned UniM2Rec."""

    name = "unim2rec"
    feature_keys = ("text", "image")

    @staticmethod
    def prewhitened(vectors_VW: Floats, first: int) -> Floats:
        """[V, W] present vectors whitened as those among the `first` were by themselves."""
        return whitened_present(vectors_VW, first)

    @staticmethod
    def model_of(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> UniM2Rec:
        """A UniM2Rec as a folder's configuration describes it, holding `weights`."""
        features = (weights.get("plm_embedding.weight"), weights.get("img_embedding.weight"))
        architecture = Architecture(**config["architecture"])
        model = UniM2Rec(architecture, *features, with_ids="item_embedding.weight" in weights)
        model.load_state_dict(dict(weights))
        return model


def save_unim2rec(
    folder: Path, model: UniM2Rec, weights: Mapping[str, Tensor], **config: Any
) -> None:
    """Write a UniM2Rec that :class:`UniM2RecTeacher` reads back; `config` must say its `stage`."""
    shape = asdict(model.architecture)
    save_folder(folder, weights, {"teacher": UniM2RecTeacher.name, "architecture": shape, **config})
