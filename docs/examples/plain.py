"""A recurrent model of one's own, trained from a store in a plain loop, judged as all others are.

python docs/examples/plain.py cache/toys [EPOCHS]
"""

from __future__ import annotations

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader

from pipeline.evaluate import rank_student
from pipeline.metrics import metrics_of_ranks
from student.losses import cross_entropy, distillation_loss
from student.stream import StoreBatches

KD_WEIGHT = 5.0


class Recurrent(nn.Module):
    """Reads padded histories; knows nothing of stores, plans and teachers."""

    def __init__(self, num_items: int, width: int = 64) -> None:
        super().__init__()
        self.items = nn.Embedding(num_items + 1, width, padding_idx=0)
        self.gru = nn.GRU(width, width, batch_first=True)

    def forward(self, items_BL: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        states_BLD, _ = self.gru(self.items(items_BL))
        users_BD = states_BLD[torch.arange(len(lengths_B)), lengths_B - 1]
        return users_BD @ self.items.weight[1:].T

    def logits(self, packed, items_C=None):
        """What ranking asks for: student/protocol.py."""
        logits_BV = self(*packed.padded())
        return logits_BV if items_C is None else logits_BV[:, items_C]


def train(path: str, epochs: int) -> dict[str, float]:
    """Train on all teachers of the store; metrics on the test items."""
    torch.manual_seed(0)
    batches = StoreBatches(path)
    loader = DataLoader(batches, batch_size=None, num_workers=2)
    model = Recurrent(batches.store.dataset.num_items)
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        for batch in loader:
            logits_TV = model(*batch.packed.padded())
            kd = distillation_loss(logits_TV[:, batch.items_C], batch.target.q_TC)
            loss = cross_entropy(logits_TV, batch.rows_T) + KD_WEIGHT * kd
            adam.zero_grad()
            loss.backward()
            adam.step()
        print(f"epoch {epoch + 1} of {epochs}: loss {loss.item():.3f} nats")
    dataset = batches.store.dataset
    return metrics_of_ranks(rank_student(model.eval(), dataset, dataset.held_out("test")))


if __name__ == "__main__":
    for name, value in train(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 20).items():
        print(f"test {name} {value:.4f}")
