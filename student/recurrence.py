"""A gated recurrent layer over histories that end at different steps, trained on a processor without waste.

torch's own layer, given packed histories on a processor, cuts slices out of one tensor a step, and on the way back fills a
gradient of the whole size for each: half of its time at 512 histories of up to 50 items. Here the way back writes each step's
rows where they belong and multiplies for the weights once, at the end. Keeps five numbers a token and unit for it.
Under autocast nothing of it is rounded.
Legend: N tokens in the order of steps (all first items, all second ones, ...), D width in, G width of the state.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["recurrence"]


def recurrence(x_ND: Tensor, into_3GD: Tensor, back_3GG: Tensor, alive: list[int]) -> Tensor:
    """[N, G] the states of a GRU without biases (arXiv 1406.1078, gates as torch lays them: reset, update, candidate).

    Args:
        alive: how many histories have a first, a second, ... item; falling, summing to N. Those of a step stand in the
            same order in every step, so that the histories which end are its last.
    """
    with torch.autocast(
        x_ND.device.type, enabled=False
    ):  # each product is written to where it belongs, as it is
        states: Tensor = _Recurrence.apply(x_ND, into_3GD, back_3GG, alive)  # type: ignore[no-untyped-call]
    return states


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, into_3GD: Tensor, back_3GG: Tensor, alive: list[int]
    ) -> Tensor:
        width = back_3GG.shape[1]
        gates_N3G = x_ND @ into_3GD.T  # what the input says to all three, then the gates themselves
        asked_N3G = torch.empty_like(gates_N3G)  # what the state before says to them
        states_NG = x_ND.new_empty(len(x_ND), width)
        before = x_ND.new_zeros(alive[0], width)
        start = 0
        for count in alive:
            rows = slice(start, start + count)
            before = before[:count]
            asked, gates = asked_N3G[rows], gates_N3G[rows]
            torch.mm(before, back_3GG.T, out=asked)
            both = gates[:, : 2 * width].add_(asked[:, : 2 * width]).sigmoid_()
            reset, update = both[:, :width], both[:, width:]
            candidate = gates[:, 2 * width :].addcmul_(reset, asked[:, 2 * width :]).tanh_()
            before = torch.lerp(candidate, before, update, out=states_NG[rows])
            start += count
        ctx.save_for_backward(x_ND, into_3GD, back_3GG, gates_N3G, asked_N3G, states_NG)
        ctx.alive = alive
        return states_NG

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, into_3GD, back_3GG, gates_N3G, asked_N3G, states_NG = ctx.saved_tensors
        (given_NG,) = gradient
        width, alive = back_3GG.shape[1], ctx.alive
        # gradients before the nonlinearities; of the candidate's two terms they differ by the reset gate
        into_N3G, back_N3G = torch.empty_like(gates_N3G), torch.empty_like(gates_N3G)
        before_NG = torch.zeros_like(states_NG)
        stop, later = len(x_ND), None
        for step in range(len(alive) - 1, -1, -1):
            count = alive[step]
            rows = slice(stop - count, stop)
            state_G = given_NG[rows]
            if later is not None:
                state_G = state_G.clone()
                state_G[: len(later)] += later
            reset, update, candidate = gates_N3G[rows].split(width, dim=1)
            before = before_NG[rows]
            if step:
                first = stop - count - alive[step - 1]
                before.copy_(states_NG[first : first + count])
            candidate_G = state_G * (1 - update) * (1 - candidate.square())
            update_G = state_G * (before - candidate) * update * (1 - update)
            reset_G = candidate_G * asked_N3G[rows, 2 * width :] * reset * (1 - reset)
            torch.cat([reset_G, update_G, candidate_G], dim=1, out=into_N3G[rows])
            torch.cat([reset_G, update_G, candidate_G * reset], dim=1, out=back_N3G[rows])
            later = torch.addmm(state_G * update, back_N3G[rows], back_3GG) if step else None
            stop -= count
        return into_N3G @ into_3GD, into_N3G.T @ x_ND, back_N3G.T @ before_NG, None
