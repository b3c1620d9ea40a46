"""Two more ways to train SASRec that read a user's sequence once: pmixer's recipe, and RecTools 0.19.

`pmixer` is written here after the recipe of the much-used PyTorch port (github.com/pmixer/SASRec.pytorch): sequences padded to
50 on the left, 128 users a step, two pre-norm blocks, binary cross-entropy with one random negative at each place, Adam at
1e-3. Its negatives are drawn at once with numpy, which is faster than that port's worker processes. `rectools` runs the
library itself in .venv-rectools (made on first use, from PyPI). An instance is a place with a target.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer_venv import PEERS, ROOT, python_of
from recbole_side import RecBole
from torch import Tensor, nn
from torch.nn import functional as F

from cache.dataset import Dataset

__all__ = ["pmixer", "rectools"]

LENGTH, USERS, WIDTH, BLOCKS, HEADS, DROPOUT = 50, 128, 64, 2, 2, 0.5


class _Pmixer(nn.Module):
    def __init__(self, items: int) -> None:
        super().__init__()
        self.items = nn.Embedding(items + 1, WIDTH, padding_idx=0)
        self.places = nn.Embedding(LENGTH, WIDTH)
        self.dropout = nn.Dropout(DROPOUT)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH, HEADS, WIDTH, DROPOUT, batch_first=True, norm_first=True
            )
            for _ in range(BLOCKS)
        )
        self.norm = nn.LayerNorm(WIDTH, eps=1e-8)
        self.register_buffer("hidden", ~torch.tril(torch.ones(LENGTH, LENGTH, dtype=torch.bool)))

    def forward(self, items_BL: Tensor) -> Tensor:
        x = self.items(items_BL) * WIDTH**0.5 + self.places.weight
        x = self.dropout(x) * (items_BL != 0)[..., None]
        for block in self.blocks:
            x = block(x, src_mask=self.hidden)
        return self.norm(x)


def pmixer(dataset: Dataset, seed: int = 0) -> Callable[[int], int]:
    """A contender: an epoch over all users; returns how many places had a target."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    trained = [dataset.sequence(user)[:-2] + 1 for user in range(dataset.num_users)]
    trained = [sequence for sequence in trained if len(sequence) > 1]
    inputs, targets = (np.zeros((len(trained), LENGTH), np.int64) for _ in range(2))
    for row, sequence in enumerate(trained):
        short = sequence[-LENGTH - 1 :]
        inputs[row, LENGTH - len(short) + 1 :] = short[:-1]
        targets[row, LENGTH - len(short) + 1 :] = short[1:]
    model = _Pmixer(dataset.num_items)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.98))

    def epoch(_: int) -> int:
        model.train()
        order = rng.permutation(len(inputs))
        for first in range(0, len(order), USERS):
            chosen = order[first : first + USERS]
            wanted = torch.from_numpy(targets[chosen])
            other = torch.from_numpy(rng.integers(1, dataset.num_items + 1, wanted.shape))
            states = model(torch.from_numpy(inputs[chosen]))
            real = wanted != 0
            yes, no = ((states * model.items(rows)).sum(-1)[real] for rows in (wanted, other))
            loss = F.binary_cross_entropy_with_logits(yes, torch.ones_like(yes))
            loss = loss + F.binary_cross_entropy_with_logits(no, torch.zeros_like(no))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return int((targets != 0).sum())

    return epoch


@contextmanager
def rectools(
    dataset: Dataset, folder: Path, threads: int, batches: int, **settings: Any
) -> Iterator[Callable[[int], tuple[int, float]]]:
    """A contender: so many batches of 128 users; returns (places with a target, seconds of theirs)."""
    home = folder / f"rectools-{settings['loss']}"
    home.mkdir(parents=True)
    with (home / "rows.csv").open("w") as file:
        file.write("user,item,position\n")
        for user in range(dataset.num_users):
            for position, item in enumerate(dataset.sequence(user)[:-2]):
                file.write(f"{user},{item},{position}\n")
    asked = {
        "n_factors": WIDTH,
        "n_blocks": BLOCKS,
        "n_heads": HEADS,
        "dropout_rate": DROPOUT,
        "session_max_len": LENGTH,
        **settings,
    }
    wanted = ["-c", str(ROOT / "constraints.txt"), "-r", str(PEERS / "rectools.txt")]
    python = python_of(".venv-rectools", "rectools", [wanted])
    script = [str(python), str(PEERS / "rectools_peer.py"), str(home / "rows.csv")]
    with (
        (home / "log.txt").open("w") as errors,
        subprocess.Popen(
            [*script, json.dumps(asked), str(batches)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=home,
        ) as process,
    ):
        peer = RecBole(process, home / "log.txt")

        def turn(_: int) -> tuple[int, float]:
            found = peer.ask("train", threads)
            return found["instances"], found["seconds"]

        yield turn
        assert process.stdin is not None
        process.stdin.close()
