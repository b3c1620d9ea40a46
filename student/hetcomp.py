"""HetComp's way of joining teachers: rankings from their training trajectories, each teacher moving on as the student does.

A reconstruction of Kang et al. (WWW 2023), see docs/decisions/0018-hetcomp.md. A teacher is a row of states, checkpoints of
its tuning and at last itself, each a score set or factor set of the store. Every instance stands at one state of each
teacher. The states of an epoch do not change within it: what its steps found out counts from the next one on, so a
batch made ready ahead of time is the same batch. Held in memory: 4 bytes an instance and teacher.
Legend: N instances of the plan, K teachers, T slots, C columns, L items of a list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.errors import StoreError, UsageError
from cache.plan import Batch, Plan
from student.permutations import discrepancy, ensemble, list_size, top_columns
from student.ready import Lists
from student.targets import Items, Scores, called, scores_of

__all__ = ["HetComp", "HetCompSettings", "check_trajectories"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HetCompSettings:
    """How rankings of teachers' states are joined and when a teacher moves on."""

    states: tuple[
        int, ...
    ]  #: [K] how many each teacher has; the readers come state by state, teacher by teacher
    top: int = 100  #: items of a list
    alpha: float = 1.05  #: how much nearer the next state must be than the present one
    decay: float = (
        0.995  #: of alpha, at each decision; once it is below one, every teacher moves on
    )
    every: int = 1  #: epochs from one decision to the next
    items: Items = "in-batch"  #: lists are of the batch's columns, or of all items
    method: Literal["hetcomp"] = "hetcomp"


def check_trajectories(settings: HetCompSettings, readers: Sequence[object]) -> None:
    """Refuse teachers without a way that they came, which would leave nothing of the method.

    Raises:
        UsageError: ``fit.no_trajectory``.
    """
    if sum(settings.states) != len(readers):
        raise ValueError(f"{sum(settings.states)} states and {len(readers)} readers")
    if max(settings.states) < 2:
        raise UsageError(
            "--join hetcomp needs checkpoints of a teacher's tuning, the store has none of these teachers; "
            "run `kd-teacher tune unisrec --keep-trajectory 3` into a new folder, and `kd-cache build` for each.",
            code="fit.no_trajectory",
        )


class HetComp:
    """At which state of which teacher every instance stands, and what the teachers there say of a batch."""

    def __init__(
        self,
        plan: Plan,
        readers: Sequence[Scores],
        settings: HetCompSettings,
        *,
        num_items: int,
        memory: Mapping[str, Tensor] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """`memory` is what another one's :attr:`memory` was."""
        check_trajectories(settings, readers)
        ends = np.cumsum(settings.states)
        self._readers = [
            readers[end - count : end] for end, count in zip(ends, settings.states, strict=True)
        ]
        self._settings = settings
        self._device, self._num_items = device, num_items
        self._last_K = torch.tensor([count - 1 for count in settings.states], dtype=torch.int16)
        shape = (plan.num_instances, len(settings.states))
        at = torch.zeros(shape, dtype=torch.int16)
        if memory:
            at.copy_(memory["states"])
        self._at_NK, self._then_NK = at, at.clone()

    @property
    def memory(self) -> dict[str, Tensor]:
        """What a resumed run must know."""
        return {"states": self._at_NK.clone()}

    @property
    def progress(self) -> float:
        """Share of the way that the teachers have come, over all instances; from 0 to 1."""
        return float(self._at_NK.sum(dtype=torch.int64) / (self._last_K.sum() * len(self._at_NK)))

    def lists(self, batch: Batch) -> Lists:
        """The teachers' rankings of a batch, each instance's at its states, and their ensemble.

        Raises:
            StoreError: ``store.wrong_shape``, ``store.not_finite``, or what the reader itself refuses.
            UsageError: ``fit.no_factors`` for a state without factors, and a batch of no plan or all items.
        """
        at_TK = self._at_NK[torch.from_numpy(batch.instances.astype(np.int64))]
        next_TK = torch.minimum(at_TK + 1, self._last_K)
        all_items = self._settings.items == "all"
        columns = self._num_items if all_items else len(batch.items)
        size = list_size(self._settings.top, columns)

        def of(wanted_TK: Tensor) -> Tensor:
            columns_KT = wanted_TK.T.contiguous().numpy()
            pairs = zip(self._readers, columns_KT, strict=True)
            return torch.stack([self._lists_of(one, batch, at_T, size) for one, at_T in pairs])

        now_KTL = of(at_TK)
        return Lists(
            instances=batch.instances,
            order_TL=ensemble(now_KTL, columns),
            final_T=(at_TK == self._last_K).all(dim=1),
            now_KTL=now_KTL,
            next_KTL=of(next_TK),
            all_items=all_items,
        )

    def hear(self, lists: Lists, logits_TC: Tensor, epoch: int) -> None:
        """Decide from the student's logits [T, C] where these instances stand in the next epoch.

        A teacher moves on where D(present state) > alpha * D(next state), and everywhere once alpha is below one.
        """
        settings = self._settings
        if (epoch + 1) % settings.every:
            return
        alpha = settings.alpha * settings.decay ** (epoch // settings.every)
        rows = torch.from_numpy(lists.instances.astype(np.int64))
        half = max(1, lists.now_KTL.shape[2] // 2)
        for k, last in enumerate(self._last_K.tolist()):
            if alpha < 1:
                moves_T = torch.ones(len(rows), dtype=torch.bool)
            else:
                now_T = discrepancy(logits_TC, lists.now_KTL[k, :, :half])
                next_T = discrepancy(logits_TC, lists.next_KTL[k, :, :half])
                moves_T = (now_T > alpha * next_T).cpu()
            at_T = self._at_NK[rows, k]
            self._then_NK[rows, k] = torch.where(moves_T, at_T + 1, at_T).clamp(max=last)

    def turn(self) -> None:
        """The epoch is over: what was decided in it counts from now on."""
        self._at_NK.copy_(self._then_NK)

    def _lists_of(
        self, states: Sequence[Scores], batch: Batch, wanted_T: NDArray[np.int16], size: int
    ) -> Tensor:
        """[T, L] one teacher's list of each slot, at the state that is wanted for it."""
        everything = self._settings.items == "all"
        device = self._device if everything else "cpu"
        lists_TL = torch.empty((len(wanted_T), size), dtype=torch.int64, device=device)
        for state in np.unique(wanted_T):
            rows = np.flatnonzero(wanted_T == state)
            reader = states[state]
            scores_nC = scores_of(reader, batch, rows, everything=everything, device=device)
            if not bool(torch.isfinite(scores_nC.sum())):
                raise StoreError(
                    f"{called(batch)}: the scores of {reader.name} hold something that is not a "
                    "number; run `kd-cache verify`.",
                    code="store.not_finite",
                )
            lists_TL[torch.from_numpy(rows).to(device)] = top_columns(scores_nC, size)
        return lists_TL
