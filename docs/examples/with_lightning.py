"""The same model under Lightning: `pip install pytorch-lightning`, then

python docs/examples/with_lightning.py cache/toys [EPOCHS]
"""

from __future__ import annotations

import sys

import pytorch_lightning as lightning
import torch
from plain import KD_WEIGHT, Recurrent
from torch.utils.data import DataLoader

from pipeline.evaluate import rank_student
from pipeline.metrics import metrics_of_ranks
from student.losses import cross_entropy, distillation_loss
from student.stream import StoreBatches


class Distilled(lightning.LightningModule):
    """Any module that scores all items, with the teachers' divergence as a second loss."""

    def __init__(self, model: torch.nn.Module, batches: StoreBatches) -> None:
        super().__init__()
        self.model, self.batches = model, batches

    def on_train_epoch_start(self) -> None:
        self.batches.set_epoch(self.current_epoch)  # the curriculum's stages, then the rounds

    def training_step(self, batch, _):
        logits_TV = self.model(*batch.packed.padded())
        ce = cross_entropy(logits_TV, batch.rows_T)
        kd = distillation_loss(logits_TV[:, batch.items_C], batch.target.q_TC)
        self.log_dict({"ce": ce, "kd": kd}, batch_size=batch.slots, prog_bar=True)
        return ce + KD_WEIGHT * kd

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def train(path: str, epochs: int) -> dict[str, float]:
    """Train on all teachers of the store; metrics on the test items."""
    lightning.seed_everything(0, verbose=False)
    batches = StoreBatches(path)
    dataset = batches.store.dataset
    model = Recurrent(dataset.num_items)
    trainer = lightning.Trainer(
        max_epochs=epochs, logger=False, enable_checkpointing=False, accelerator="auto"
    )
    trainer.fit(Distilled(model, batches), DataLoader(batches, batch_size=None, num_workers=2))
    return metrics_of_ranks(rank_student(model.eval(), dataset, dataset.held_out("test")))


if __name__ == "__main__":
    for name, value in train(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 20).items():
        print(f"test {name} {value:.4f}")
