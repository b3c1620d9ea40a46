"""Where a training run stands between two epochs, and how it goes into a checkpoint and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor

__all__ = ["EpochRecord", "RunState"]

_MEMORY = "join:"  #: before names that are no weight's


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """What one epoch brought."""

    epoch: int
    stage: str  #: "stage 2/4", "round 1", or "fresh" for all instances in fresh batches; where the teachers stand
    instances: int
    ce: float  #: mean cross-entropy, or the student's own loss, nats
    kd: float  #: mean divergence, or HetComp's loss, nats
    validation: float | None  #: NDCG@10; None where this epoch was not validated


@dataclass(slots=True, kw_only=True)
class RunState:
    """Where a run stands between two epochs."""

    epoch: int = 0  #: next epoch
    step: int = 0  #: steps done
    best: float = -1.0  #: best validation
    best_epoch: int = -1
    stale: int = 0  #: standard epochs since the best
    finished: bool = False
    history: list[EpochRecord] = field(default_factory=list)
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    memory: dict[str, Tensor] = field(default_factory=dict)  #: of how teachers are joined

    def take(self, record: EpochRecord, weights: Mapping[str, Tensor], *, staged: bool) -> None:
        """Go on by one epoch; `weights` are copied if they are the best so far, and only standard epochs grow stale."""
        self.history.append(record)
        if record.validation is not None and record.validation > self.best:
            self.best, self.best_epoch, self.stale = record.validation, self.epoch, 0
            self.best_weights = {name: one.detach().clone() for name, one in weights.items()}
        elif not staged:
            self.stale += 1
        self.epoch += 1

    def to_json(self) -> dict[str, Any]:
        """All but the tensors."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        del values["best_weights"], values["memory"]
        return values | {"history": [asdict(record) for record in self.history]}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors, by names that tell the best weights from the rest."""
        return self.best_weights | {_MEMORY + name: value for name, value in self.memory.items()}

    @classmethod
    def of(cls, values: dict[str, Any], tensors: dict[str, Tensor]) -> RunState:
        """What :meth:`to_json` and :meth:`tensors` gave."""
        history = [EpochRecord(**record) for record in values["history"]]
        memory = {
            name.removeprefix(_MEMORY): one
            for name, one in tensors.items()
            if name.startswith(_MEMORY)
        }
        best = {name: one for name, one in tensors.items() if not name.startswith(_MEMORY)}
        return cls(**{**values, "history": history}, best_weights=best, memory=memory)
