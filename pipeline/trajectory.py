"""A teacher's way while it is tuned: checkpoints at even distances up to its best epoch, each a teacher that can be asked.

    tuned/toys/unisrec   tuned/toys/unisrec@1   tuned/toys/unisrec@2   ...

What the best epoch will be is not known before the end. So every epoch's weights are kept in `unisrec/.way`, and thinned as
the best one so far moves on: at most twice as many files as checkpoints are wanted, and those since the best epoch. They go
once the teacher is finished. Which are kept is a pure function of the epochs so far, so a run that was killed goes on to
the same bytes.
"""

from __future__ import annotations

import glob
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cache.atomic import sweep
from cache.errors import UsageError
from cache.paths import trajectory
from encoder.checkpoint import load_weights, save_weights
from pipeline import console
from teachers.folder import CONFIG, read_config

__all__ = ["Way", "checkpoints", "chosen", "kept", "tell_way"]

_WANTED, _EPOCH = "keep_trajectory", "trajectory_epoch"


def kept(best: int, done: int, wanted: int) -> list[int]:
    """Epochs (counted from 1) whose weights are kept after `done`: every 2^n-th, at most 2 * `wanted` up to `best`."""
    stride = 1
    while best // stride > 2 * wanted:
        stride *= 2
    return list(range(stride, done + 1, stride))


def chosen(best: int, wanted: int) -> list[int]:
    """The epochs before `best` that become checkpoints: at about even distances, `wanted` of them or as many as there are."""
    there = [epoch for epoch in kept(best, best, wanted) if epoch < best]
    if len(there) <= wanted:
        return there
    found: list[int] = []
    for place in range(wanted):
        aim = best * (place + 1) / (wanted + 1)
        # enough must be left for those that come after
        left = [e for e in there[: len(there) - (wanted - 1 - place)] if not found or e > found[-1]]
        found.append(min(left, key=lambda epoch: abs(epoch - aim)))
    return found


class Way:
    """Keeps the weights of some epochs beside a teacher that is being tuned."""

    def __init__(self, out: Path, wanted: int, identity: Mapping[str, Any]) -> None:
        """`out` is the teacher's folder, `identity` what it is; nothing is kept where none are `wanted`.

        Raises:
            UsageError: ``teacher.exists`` where another teacher's checkpoints lie beside `out`.
        """
        self.out, self.wanted = out, wanted
        #: of the run: one that began without keeping its way cannot go on with it
        self.identity = {**identity, _WANTED: wanted} if wanted else dict(identity)
        self._folder = out / ".way"
        if self._folder.is_dir():
            sweep(self._folder)
        for folder in checkpoints(out) if wanted else ():
            found = dict(read_config(folder).get("identity", {}))
            found.pop(_EPOCH, None)
            if found != self.identity:
                raise UsageError(
                    f"{folder}: is a checkpoint of another run; choose another --out, or remove it.",
                    code="teacher.exists",
                )

    def after_epoch(self, done: int, best: int, model: nn.Module) -> None:
        """Keep the weights as they stand after `done` epochs, and let go what is no longer needed."""
        if not self.wanted:
            return
        still = kept(best, done, self.wanted)
        if done in still:
            save_weights(self._path(done), model.state_dict(), {"epoch": done})
        for path in self._folder.glob("*.safetensors"):
            if int(path.stem) not in still:
                path.unlink()

    def publish(
        self,
        best: int,
        save: Callable[[Path, int, dict[str, Tensor], dict[str, Any]], None],
    ) -> None:
        """Make the checkpoints, earliest first; `save(folder, epoch, weights, identity)` writes one."""
        for number, epoch in enumerate(chosen(best, self.wanted) if self.wanted else [], 1):
            folder = self.out.with_name(f"{self.out.name}@{number}")
            weights, _ = load_weights(self._path(epoch))
            save(folder, epoch, weights, {**self.identity, _EPOCH: epoch})

    def forget(self) -> None:
        """The teacher is finished."""
        if self._folder.is_dir():
            shutil.rmtree(self._folder)

    def _path(self, epoch: int) -> Path:
        return self._folder / f"{epoch:05}.safetensors"


def checkpoints(out: Path) -> list[Path]:
    """The checkpoints that lie beside the teacher in `out`, earliest first."""
    there = [path.parent.name for path in out.parent.glob(f"{glob.escape(out.name)}@*/{CONFIG}")]
    return [out.with_name(name) for name in trajectory(out.name, there)[:-1]]


def tell_way(out: Path) -> None:
    """Print which checkpoints a finished teacher has, or why there are none."""
    rows = []
    for folder in checkpoints(out):
        config = read_config(folder)
        rows.append([folder.name, f"{config['epochs']}", f"{config['validation']['ndcg@10']:.4f}"])
    if rows:
        console.table(f"{out}: its way", ["", "epoch", "valid ndcg@10"], rows)
    else:
        console.note(
            f"{out}: no checkpoints beside it: it was tuned without --keep-trajectory, or its best epoch "
            "was its first; remove it to tune it again"
        )
