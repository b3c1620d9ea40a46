"""UniSRec written down slowly, from its paper and the public description of RecBole's SASRec: the reference of these tests.

One history at a time, padded on the right with rubbish, in float64, with plain loops over experts, heads and positions. Shares
nothing with the product but the names of the parameters. Also makers of tiny models and datasets in memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache.dataset import Dataset
from cache.manifest import Manifest
from teachers.unisrec import Architecture, UniSRec

#: small enough to run in milliseconds; no two widths are equal, so that no transposition hides
TINY = Architecture(text_width=6, hidden=8, inner=10, layers=2, heads=2, experts=3)


def dataset_of(sequences: Sequence[Sequence[int]], max_length: int, items: int = 0) -> Dataset:
    """A dataset in memory, without files."""
    flat = np.array([item for one in sequences for item in one], np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in sequences])]).astype(np.int64)
    counts = {"users": len(sequences), "items": max(items, int(flat.max(initial=0)) + 1)}
    manifest = Manifest(
        format=1,
        kind="dataset",
        parents={},
        settings={"max_length": max_length, "anonymised": True},
        counts={**counts, "interactions": len(flat)},
        files=(),
    )
    return Dataset(path=Path("nowhere"), manifest=manifest, flat=flat, offsets=offsets)


def shaken(model: UniSRec, seed: int = 0, scale: float = 0.4) -> UniSRec:
    """Every parameter drawn at random, biases and norms too; text vectors stay. In evaluation mode."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("plm_embedding"):
                parameter.copy_(torch.randn(parameter.shape, generator=draws) * scale)
                if name.endswith("LayerNorm.weight"):
                    parameter.add_(1)
    return model.eval()


def vectors(rows: int, width: int = TINY.text_width, seed: int = 0) -> Tensor:
    """[rows, width] float32."""
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def adapted(weights: Mapping[str, Tensor], x_W: Tensor, prefix: str = "moe_adaptor.") -> Tensor:
    """[D]: sum over experts k of g_k W_k (x - b_k), g the softmax of x W_gate (paper, eqs. 2-5)."""
    w = {name.removeprefix(prefix): value.double() for name, value in weights.items()}
    x = x_W.double()
    experts = w["w_gate"].shape[1]
    logits = [sum(float(x[i] * w["w_gate"][i, k]) for i in range(len(x))) for k in range(experts)]
    total = sum(math.exp(one) for one in logits)
    out = torch.zeros(w["experts.0.lin.weight"].shape[0], dtype=torch.float64)
    for k in range(experts):
        y = w[f"experts.{k}.lin.weight"] @ (x - w[f"experts.{k}.bias"])
        out += math.exp(logits[k]) / total * y
    return out


def item_vector(weights: Mapping[str, Tensor], row: int) -> Tensor:
    """[D] of a tuned model: the adapted text, plus the id embedding where there is one."""
    out = adapted(weights, weights["plm_embedding.weight"][row])
    if "item_embedding.weight" in weights:
        out = out + weights["item_embedding.weight"][row].double()
    return out


def encoded(
    weights: Mapping[str, Tensor], shape: Architecture, inputs: Sequence[Tensor], *, padded: int = 0
) -> Tensor:
    """[D] state after the last of a history's item vectors `inputs`; `padded` places of rubbish follow."""
    w = {name: value.double() for name, value in weights.items()}
    length = len(inputs)
    rubbish = [torch.full((shape.hidden,), 7.0, dtype=torch.float64)] * padded
    rows = [
        one.double() + w["position_embedding.weight"][place]
        for place, one in enumerate([*inputs, *rubbish])
    ]
    hidden = [_norm(row, w, "LayerNorm") for row in rows]
    for number in range(shape.layers):
        hidden = _block(hidden, w, f"trm_encoder.layer.{number}.", shape.heads, length)
    return hidden[length - 1]


def _block(
    hidden: list[Tensor], w: Mapping[str, Tensor], at: str, heads: int, length: int
) -> list[Tensor]:
    attention, forward = f"{at}multi_head_attention.", f"{at}feed_forward."
    query, key, value = (
        [_linear(one, w, f"{attention}{part}") for one in hidden]
        for part in ("query", "key", "value")
    )
    width = len(hidden[0]) // heads
    out = []
    for t in range(len(hidden)):
        mixed = []
        for head in range(heads):
            cut = slice(head * width, (head + 1) * width)
            scores = [
                float(query[t][cut] @ key[s][cut]) / math.sqrt(width)
                # the additive mask: what is later, and what is padding, is -10000
                - (0.0 if s <= t and s < length else 10_000.0)
                for s in range(len(hidden))
            ]
            top = max(scores)
            shares = [math.exp(score - top) for score in scores]
            mixed.append(sum(g * v[cut] for g, v in zip(shares, value, strict=True)) / sum(shares))
        joined = _linear(torch.cat(mixed), w, f"{attention}dense")
        x = _norm(joined + hidden[t], w, f"{attention}LayerNorm")
        inner = _linear(x, w, f"{forward}dense_1")
        gelu = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
        out.append(_norm(_linear(gelu, w, f"{forward}dense_2") + x, w, f"{forward}LayerNorm"))
    return out


def _linear(x: Tensor, w: Mapping[str, Tensor], name: str) -> Tensor:
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def _norm(x: Tensor, w: Mapping[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean()
    spread = torch.sqrt((centred**2).mean() + 1e-12)
    return centred / spread * w[f"{name}.weight"] + w[f"{name}.bias"]


def cosine(a: Any, b: Any) -> float:
    """Of two vectors."""
    return float(a @ b / (torch.linalg.norm(a) * torch.linalg.norm(b)))
