"""Teachers whose every answer is known, and a plan to ask them about."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cache.dataset import Dataset
from cache.plan import Plan
from cache.score_writer import log_softmax
from student.sasrec import SASRec, SASRecConfig

__all__ = ["Ground", "KnownFactors", "KnownScores", "student"]

Ground: TypeAlias = tuple[Dataset, Plan]


class KnownScores:
    """A score set in memory: each batch's log-probabilities from a table of bare scores, user by item."""

    def __init__(
        self,
        plan: Plan,
        *,
        name: str = "known",
        seed: int = 0,
        tau: float = 0.5,
        quality: float | None = None,
    ) -> None:
        self.plan = plan
        self.name = name
        self.tau = tau
        self.quality = quality
        self.asked: list[int] = []  #: batches, in the order in which they were asked for
        self.answers: dict[int, NDArray[np.float16] | BaseException] = {}  #: instead of the table's
        shape = (int(plan.instance_users.max()) + 1, int(plan.targets.max()) + 1)
        self.raw_UV = np.random.default_rng(seed).uniform(-1, 1, shape)

    def __getitem__(self, index: int, /) -> NDArray[np.float16]:
        self.asked.append(index)
        answer = self.answers.get(index)
        if isinstance(answer, BaseException):
            raise answer
        if answer is not None:
            return answer
        batch = self.plan[index]
        return log_softmax(self.raw_UV[np.ix_(batch.users, batch.items)], self.tau)


class KnownFactors(KnownScores):
    """A factor set in memory, of vectors of four numbers."""

    def __init__(self, plan: Plan, *, items: int, seed: int = 0, **more: Any) -> None:
        super().__init__(plan, seed=seed, **more)
        rng = np.random.default_rng(seed)
        self.histories_ND = rng.normal(size=(plan.num_instances, 4)).astype(np.float16)
        self.items_VD = rng.normal(size=(items, 4)).astype(np.float16)
        self.met: list[list[int]] = []  #: instances, in the order in which they were asked for

    def history_vectors(self, instances: NDArray[np.int32], /) -> NDArray[np.float16]:
        self.met.append(instances.tolist())
        return self.histories_ND[instances]

    def item_vectors(self, items: NDArray[Any] | None = None, /) -> NDArray[np.float16]:
        return self.items_VD if items is None else self.items_VD[items]


def student(dataset: Dataset, *, dropout: float = 0.5) -> SASRec:
    """A SASRec of 8 dimensions."""
    config = SASRecConfig(
        hidden=8, heads=2, inner=12, dropout=dropout, max_length=dataset.max_length
    )
    return SASRec(config, dataset.num_items)
