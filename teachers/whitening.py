"""UniSRec's adaptor: frozen text vectors to the recommender's space, by a mixture of whitening experts.

Every expert is a parametric whitening `W (x - b)` (arXiv 2206.05941, eq. 2); a gate that looks at the text vector mixes all of
them (eqs. 3-5; dense, nothing is routed). Parameter names are the official ones. Legend: V items, E experts, D text width.
Costs 2 * V * E * D * hidden flops a call: most of a tuning step, so callers adapt an item table once and share it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MoEAdaptor", "PWLayer"]


class PWLayer(nn.Module):
    """One whitening expert, `y = W (dropout(x) - b)`.

    Computed as `W dropout(x) - W b`, which is the same and spares the gradient of a [V, D] difference.
    """

    def __init__(self, text_width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.bias = nn.Parameter(torch.zeros(text_width))
        self.lin = nn.Linear(text_width, hidden, bias=False)
        nn.init.normal_(self.lin.weight, std=0.02)

    def forward(self, x_VD: Tensor) -> Tensor:
        """[V, text width] to [V, hidden]."""
        return F.linear(self.dropout(x_VD), self.lin.weight, -(self.lin.weight @ self.bias))


class MoEAdaptor(nn.Module):
    """All experts, mixed by a softmax gate whose logits are noisy in training only (eqs. 4-5).

    Gates start at zero, so every expert begins with the same share.
    """

    def __init__(self, experts: int, text_width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.w_gate = nn.Parameter(torch.zeros(text_width, experts))
        self.w_noise = nn.Parameter(torch.zeros(text_width, experts))
        self.experts = nn.ModuleList(
            PWLayer(text_width, hidden, dropout) for _ in range(experts)
        )

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
        out = gates_VE[:, :1] * self.experts[0](x_VD)
        for number, expert in enumerate(list(self.experts)[1:], start=1):
            out = torch.addcmul(out, gates_VE[:, number, None], expert(x_VD))
        return out
