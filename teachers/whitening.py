"""UniSRec's adaptor: frozen text vectors to the recommender's space, by a mixture of whitening experts.

Every expert is a parametric whitening `W (x - b)` (arXiv 2206.05941, eq. 2); a gate that looks at the text vector mixes all
of them (eqs. 3-5; dense, nothing is routed). Parameter names are the official ones. V items, E experts, H hidden width.
Costs 2 * V * E * D * H flops for texts of width D, most of a tuning step: callers adapt an item table once and share it.
All experts run as one matrix product; to that end they share one dropout mask a call, where the public code draws E.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoder.dropout import dropout

__all__ = ["MoEAdaptor", "PWLayer"]


class PWLayer(nn.Module):
    """The parameters of one whitening expert, `y = W (dropout(x) - b)`; :class:`MoEAdaptor` runs them."""

    def __init__(self, text_width: int, hidden: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(text_width))
        self.lin = nn.Linear(text_width, hidden, bias=False)
        nn.init.normal_(self.lin.weight, std=0.02)


class MoEAdaptor(nn.Module):
    """All experts, mixed by a softmax gate whose logits are noisy in training only (eqs. 4-5).

    Gates start at zero, so every expert begins with the same share.
    """

    def __init__(self, experts: int, text_width: int, hidden: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.w_gate = nn.Parameter(torch.zeros(text_width, experts))
        self.w_noise = nn.Parameter(torch.zeros(text_width, experts))
        self.experts = nn.ModuleList(PWLayer(text_width, hidden) for _ in range(experts))

    def gates(self, x_VD: Tensor) -> Tensor:
        """[V, E] shares, each row summing to one."""
        logits_VE = x_VD @ self.w_gate
        if self.training:
            spread_VE = F.softplus(x_VD @ self.w_noise) + 1e-2
            logits_VE = logits_VE + torch.randn_like(logits_VE) * spread_VE
        return logits_VE.softmax(dim=-1)

    def forward(self, x_VD: Tensor) -> Tensor:
        """[V, text width] to [V, hidden]."""
        gates_VE = self.gates(x_VD)
        experts = [expert for expert in self.experts if isinstance(expert, PWLayer)]
        weights_EHD = torch.stack([expert.lin.weight for expert in experts])
        biases_ED = torch.stack([expert.bias for expert in experts])
        dropped_VD = dropout(x_VD, self.rate) if self.training else x_VD
        # W (x - b) = W x - W b, which spares the gradient of a [V, D] difference an expert
        shifts_EH = torch.einsum("ehd,ed->eh", weights_EHD, biases_ED)
        outputs = F.linear(dropped_VD, weights_EHD.flatten(0, 1))
        outputs_VEH = outputs.view(len(x_VD), *shifts_EH.shape)
        mixed_VH = torch.bmm(gates_VE[:, None].to(outputs.dtype), outputs_VEH)[:, 0]
        return mixed_VH.to(x_VD.dtype) - gates_VE @ shifts_EH
