"""oneDNN makes a kernel for each shape and keeps a thousand: batches of other sizes must not ask for new ones.

Each is a megabyte or more: training SASRec took twice its memory, RecGURU four times, and a quarter of its time went into them.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from encoder.products import has_onednn

TRAINING = """
import torch
from encoder.packed import Packed
from encoder.transformer import CausalTransformer
from student.losses import fused_loss

rates = {"dropout": 0.1, "attention_dropout": 0.1}
model = CausalTransformer(hidden=16, layers=2, heads=2, inner=32, **rates)
table = torch.randn(500, 16, requires_grad=True)
for tokens in range(962, 1025):  # filled up to 1,024, and what is asked to 512
    asked = tokens // 2
    lengths = torch.full((asked,), 2)
    lengths[-1] += tokens % 2
    packed = Packed.of(torch.arange(tokens).numpy() % 500, lengths.numpy())
    users, rows = model(table[packed.items], packed, True), packed.items[packed.last]
    q = torch.rand(asked, 40).softmax(1)
    loss, *_ = fused_loss(users, table, rows, items_C=torch.arange(40), target_TC=q, weight=1.0)
    loss.backward()
    print("step", flush=True)
"""

HALF = """
import torch
from torch.nn import functional as F
from encoder.products import Linear, rowwise

inner, outer = Linear(48, 64), Linear(64, 48)
x = torch.randn(512, 48, requires_grad=True)
for rows in range(481, 513):
    with torch.autocast("cpu", torch.bfloat16):
        hidden = rowwise(F.gelu, inner(x[:rows]))
        out = outer(hidden)
    out.float().sum().backward()
    print("step", flush=True)
"""

TEACHER = """
import torch
from teachers.packed_linear import PackedLinear

layer = PackedLinear(torch.randn(64, 48), torch.zeros(64))
x = torch.randn(512, 48)
for rows in range(481, 513):
    layer(x[:rows])
    layer.gelu(x[:rows])
    print("step", flush=True)
"""


@pytest.mark.skipif(not has_onednn(), reason="this torch has no oneDNN")
@pytest.mark.parametrize(("program", "steps"), [(TRAINING, 63), (HALF, 32), (TEACHER, 32)])
def test_batches_of_other_sizes_make_no_kernels(program: str, steps: int) -> None:
    told = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"ONEDNN_VERBOSE": "profile_create"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    first, *others = [each.count("create:cache_miss") for each in told.split("step\n")[:-1]]
    assert first > 0
    assert others == [0] * (steps - 1)
