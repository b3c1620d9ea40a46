"""A trained student as a module that serves padded requests: what `torch.export` and ONNX take.

    items [batch, length] int64   rows of items, oldest first, -1 behind them; at least one, at most `max_length`
    users [batch] int64           rows of users; where the student asks for them
    ->  scores [batch, items] float32, or vectors [batch, width] to be multiplied with the item table

A row of `items` that is empty or too long, that is padded elsewhere than at its end, or that names an item or a user who is
not there gives NaN rather than nonsense, and harms no other row: the student sees a history of one item in its place. The
weights are the student's own, so the exported file is as large as the student. Refuses, by the tracer's own words, a plug-in
that it cannot follow. Legend: B requests, L places, D width, V items.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cache.dataset import Dataset
from cache.errors import UsageError
from encoder.padded import PADDING, laid_out, lengths_of
from student.protocol import AnyStudent, Asked, Padded, Scorer, Served, Student

__all__ = ["asked", "quiet", "serving", "traced"]


def serving(model: AnyStudent, dataset: Dataset, *, apart: bool = False) -> nn.Module:
    """The module to export, in eval mode; its inputs are named by :func:`asked`.

    Args:
        dataset: whose items and users there are, and how long a history may be.
        apart: give vectors, and leave the item table to the caller.

    Raises:
        UsageError: ``export.no_table`` for a student whose score is no dot product.
    """
    inner: Any = model.served() if isinstance(model, Served) else model
    if apart and not isinstance(inner, Student):
        raise UsageError(
            f"--table apart: a score of {type(model).__name__} is no dot product with an item's vector; "
            "leave it inside.",
            code="export.no_table",
        )
    kinds = {("items",): _OfItems, ("users",): _OfUsers, ("items", "users"): _OfBoth}
    return kinds[asked(inner)](inner, dataset, apart).eval()


def asked(model: object) -> tuple[Asked, ...]:
    """What a request to the student holds, in this order."""
    inner = model.served() if isinstance(model, Served) else model
    return inner.asks if isinstance(inner, Padded) else ("items",)


def traced(module: nn.Module, inputs: tuple[Asked, ...]) -> torch.export.ExportedProgram:
    """The module as a graph of any batch and any length from 1: rows may be wider than a history is long.

    Raises:
        UsageError: ``export.not_traceable``.
    """
    dim = torch.export.Dim
    batch, length = dim("batch", min=1), dim("length", min=1)
    # sizes that are equal to none of the model's own
    samples = {
        "items": torch.zeros(3, 7, dtype=torch.int64),
        "users": torch.zeros(3, dtype=torch.int64),
    }
    shapes = {"items": {0: batch, 1: length}, "users": {0: batch}}
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(
                module,
                tuple(samples[name] for name in inputs),
                dynamic_shapes={name: shapes[name] for name in inputs},
            )
    except Exception as error:  # the tracer runs the student's code and raises what it likes
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(
            f"this student cannot be traced ({cause}); write a method `padded` as student/protocol.py "
            "has it, or take --format safetensors.",
            code="export.not_traceable",
        ) from error
    for node in program.graph.nodes:  # where the code lay is nobody's business
        node.meta.pop("stack_trace", None)
    return program


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch's exporters say of themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _Serving(nn.Module):
    def __init__(self, model: nn.Module, dataset: Dataset, apart: bool) -> None:
        super().__init__()
        self.model = model
        self.apart = apart
        self.longest = dataset.max_length
        self.num_items, self.num_users = dataset.num_items, dataset.num_users

    def answer(self, items_BL: Tensor, users_B: Tensor) -> Tensor:
        model = self.model
        if isinstance(model, Padded):
            out = model.padded(items_BL, users_B)
        else:
            packed = laid_out(items_BL.clamp(min=0), lengths_of(items_BL))
            # padding may reach further than there are positions
            packed = replace(packed, positions=packed.positions.clamp(max=self.longest - 1))
            out = model.encode(packed) if isinstance(model, Student) else self._logits(packed)
        if isinstance(model, Student) and not self.apart:
            out = out @ model.item_table().T
        return out.float()

    def _logits(self, packed: object) -> Tensor:
        if not isinstance(self.model, Scorer):
            raise TypeError(f"{type(self.model).__name__} has no way to score")
        return self.model.logits(packed)  # type: ignore[arg-type]

    def histories(self, items_BL: Tensor) -> Tensor:
        """[B, 1] whether a row holds a history of items that are there, and then padding."""
        lengths_B1 = lengths_of(items_BL)[:, None]
        places_L = torch.arange(items_BL.shape[1], device=items_BL.device)
        there_BL = (items_BL >= 0) & (items_BL < self.num_items)
        # as many as are no padding, so what is neither an item nor padding breaks this too
        fine_BL = there_BL == (places_L < lengths_B1)
        fits_B1 = (lengths_B1 > 0) & (lengths_B1 <= self.longest)
        return fine_BL.all(dim=1, keepdim=True) & fits_B1

    def known(self, users_B: Tensor) -> Tensor:
        """[B, 1] whether a row is one of a user who is there."""
        return ((users_B >= 0) & (users_B < self.num_users))[:, None]


class _OfItems(_Serving):
    def forward(self, items: Tensor) -> Tensor:
        fine_B1 = self.histories(items)
        return self.answer(_harmless(items, fine_B1), items[:0, 0]) + _nan(fine_B1)


class _OfUsers(_Serving):
    def forward(self, users: Tensor) -> Tensor:
        fine_B1 = self.known(users)
        users_B = torch.where(fine_B1[:, 0], users, 0)
        return self.answer(users[:0, None], users_B) + _nan(fine_B1)


class _OfBoth(_Serving):
    def forward(self, items: Tensor, users: Tensor) -> Tensor:
        fine_B1 = self.histories(items) & self.known(users)
        users_B = torch.where(fine_B1[:, 0], users, 0)
        return self.answer(_harmless(items, fine_B1), users_B) + _nan(fine_B1)


def _harmless(items_BL: Tensor, fine_B1: Tensor) -> Tensor:
    """[B, L] the rows that are fine, and the first item alone in place of the others."""
    places_L = torch.arange(items_BL.shape[1], device=items_BL.device)
    return torch.where(fine_B1, items_BL, torch.where(places_L == 0, 0, PADDING))


def _nan(fine_B1: Tensor) -> Tensor:
    """[B, 1] zero for rows that are fine, NaN for others."""
    return torch.where(fine_B1, 0.0, torch.nan)
