"""A store's batches for anybody's loop: an `IterableDataset` that works under `DataLoader` workers too.

    loader = DataLoader(StoreBatches("cache/toys"), batch_size=None, num_workers=2)

Each worker opens the store by its path and makes every W-th batch; the loader asks them in turn, so the order is that of
`kd-student fit` with the same seed, however many there are. What crosses a process boundary is one `Prepared` batch of
about 1 MB. It has no length, since its epochs have several (Lightning would cut all to the first). Opening refuses what a
store refuses; without workers a thread prepares two batches ahead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from cache.errors import UsageError
from cache.factors import FactorReader
from cache.paths import without_checkpoints
from cache.scores import ScoreReader
from cache.store import Store
from student.batches import Batches
from student.prepared import prepared
from student.ready import Prepared
from student.schedule import TrainSettings, epoch_batches
from student.targets import JoinSettings, join_settings

__all__ = ["StoreBatches"]


class StoreBatches(IterableDataset[Prepared]):
    """The batches of one epoch, in its order; call `set_epoch` before each, as with a DistributedSampler.

    Args:
        store: path of a store.
        teachers: names of score or factor sets; all of the store's by default, without their checkpoints.
        seed: of the order.
        curriculum: algorithm 1's stages first, then the standard rounds; without it the rounds alone.
        epochs_per_stage: of the curriculum.
        batch_size: of batches drawn afresh each epoch, for which every teacher needs factors; 0 takes the plan's own.
        join: how the teachers are joined, as :func:`student.targets.join_settings` takes it: tau, weights,
            consistency, epsilon, items.

    Raises:
        StoreError: the store is missing or damaged, or keeps no factors where they are needed.
        UsageError: ``fit.no_teachers`` where it holds none, and what `join_settings` refuses.
    """

    def __init__(
        self,
        store: str | Path,
        *,
        teachers: Sequence[str] | None = None,
        seed: int = 0,
        curriculum: bool = True,
        epochs_per_stage: int = 1,
        batch_size: int = 0,
        **join: Any,
    ) -> None:
        self.path = Path(store)
        self._store: Store | None = None
        opened = self.store
        self.teachers = tuple(
            without_checkpoints(opened.teachers) if teachers is None else teachers
        )
        if not self.teachers:
            raise UsageError(
                f"{self.path}: holds no teacher's scores; run `kd-cache build --cache {self.path}`.",
                code="fit.no_teachers",
            )
        self._factors = bool(batch_size) or join.get("items") == "all"
        self.join: JoinSettings = join_settings(self._readers(), **join)
        self.settings = TrainSettings(
            join=self.join,
            seed=seed,
            curriculum=curriculum,
            epochs_per_stage=epochs_per_stage,
            batch_size=batch_size,
        )
        self.curriculum_epochs = self.settings.staged(opened.plan)
        # shared, so that workers which outlive an epoch hear of the next
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    @property
    def store(self) -> Store:
        """The store, for its dataset and plan; opened once a process."""
        if self._store is None:
            self._store = Store.open(self.path)
        return self._store

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_store": None}  # a worker opens it by itself

    def set_epoch(self, epoch: int) -> None:
        """Which epoch is next, from 0: the curriculum's stages come first, then the standard rounds in turn."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[Prepared]:
        source, order = self._now()
        worker = get_worker_info()
        if worker is not None:
            order = order[worker.id :: worker.num_workers]
        return prepared(self.store.dataset, source, order, self._readers(), self.join)

    def _readers(self) -> list[ScoreReader | FactorReader]:
        """What is kept of the teachers; their factors where scores of the plan's batches are not enough."""
        choose = self.store.factors if self._factors else self.store.reader
        return [choose(name) for name in self.teachers]

    def _now(self) -> tuple[Batches, NDArray[np.int64]]:
        epoch, plan = int(self._epoch), self.store.plan
        settings = replace(
            self.settings, epochs=max(1, epoch + 1)
        )  # a loop of one's own knows when to stop
        now = epoch_batches(settings, plan, epoch)
        assert now is not None
        return now[1:]
