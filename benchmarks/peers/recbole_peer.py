"""A model of RecBole 1.2.1 behind a pipe: trains and evaluates on command. Runs in .venv-peers, never in the product's.

    recbole_peer.py MODEL DATA_PATH DATASET CONFIG_JSON       commands and answers are lines of JSON on stdin and stdout

Everything is RecBole's own: dataset, prefix augmentation, data loaders, model, `Trainer._train_epoch` and
`Trainer.evaluate`, with its default configuration but for what CONFIG_JSON says. RecBole 1.2.1 was written for numpy 1 and
the SciPy of its day: names that they took away since are put back before it is imported; nothing else is changed.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

np.float_, np.complex_, np.unicode_ = np.float64, np.complex128, np.str_
warnings.simplefilter("ignore")

import scipy.sparse  # noqa: E402

scipy.sparse.dok_matrix._update = lambda self, values: self._dict.update(values)

# its trainer reads back the checkpoint that it wrote itself a moment before, which torch refuses by now
os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
import torch  # noqa: E402
from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.utils import get_model, get_trainer, init_seed  # noqa: E402


class Peer:
    """The model and its trainer."""

    def __init__(self, model: str, data_path: str, dataset: str, settings: dict[str, Any]) -> None:
        config = Config(model, dataset, config_dict={"data_path": data_path, **settings})
        init_seed(config["seed"], config["reproducibility"])
        self.dataset = create_dataset(config)
        self.train_data, self.valid_data, self.test_data = data_preparation(config, self.dataset)
        self.model = get_model(model)(config, self.train_data._dataset).to(config["device"])
        self.trainer = get_trainer(config["MODEL_TYPE"], model)(config, self.model)
        self.trainer.eval_collector.data_collect(self.train_data)
        self.batches = self._batches()
        self.trained = 0

    def _batches(self) -> Iterator[Any]:
        """Epoch after epoch, shuffled by RecBole's loader."""
        while True:
            for batch in self.train_data:
                # where negatives are rows of their own, only the positives are instances
                self.trained += int(batch["label"].sum()) if "label" in batch else len(batch)
                yield batch

    def train(self, batches: int) -> dict[str, Any]:
        """Go on with the epoch for so many batches, by the trainer's own loop."""
        before = self.trained
        self.trainer._train_epoch(islice(self.batches, batches), 0)
        return {"instances": self.trained - before}

    def fit(self) -> dict[str, Any]:
        """The whole of `Trainer.fit` with its early stopping; the best model on validation and test.

        Goes on from the best model of a run that was stopped in the same folder: RecBole keeps no other.
        """
        for kept in Path(self.trainer.checkpoint_dir).glob("*.pth"):
            self.trainer.resume_checkpoint(kept)
            print(f"on from epoch {self.trainer.start_epoch}", flush=True)

        def told(epoch: int, score: float) -> None:
            print(f"epoch {epoch + 1}, valid {score:.4f}", flush=True)

        self.trainer.fit(
            self.train_data, self.valid_data, saved=True, verbose=False, callback_fn=told
        )
        found = {}
        for part, data in (("valid", self.valid_data), ("test", self.test_data)):
            metrics = self.trainer.evaluate(data, load_best_model=True)
            found[part] = {name: float(value) for name, value in metrics.items()}
        return found

    def evaluate(self) -> dict[str, Any]:
        """Full-sort evaluation of the test items, metrics included."""
        found = self.trainer.evaluate(self.test_data, load_best_model=False)
        return {"metrics": {name: float(value) for name, value in found.items()}}

    def load(self, weights: str) -> dict[str, Any]:
        """Take over weights of RecBole's names, but with item rows in the order of the item tokens 0, 1, ..."""
        with np.load(weights) as file:
            found = {name: torch.from_numpy(file[name]) for name in file.files}
        rows = found["item_embedding.weight"]
        tokens = self.dataset.id2token("item_id", np.arange(1, len(rows) + 1)).astype(np.int64)
        padding = torch.zeros(1, rows.shape[1])
        found["item_embedding.weight"] = torch.cat([padding, rows[torch.from_numpy(tokens)]])
        self.model.load_state_dict(found)
        return {}

    def facts(self) -> dict[str, Any]:
        """What is compared, for the other side to check."""
        return {
            "instances": len(self.train_data._dataset),
            "batches": len(self.train_data),
            "users": len(self.test_data._dataset),
            "items": self.dataset.item_num - 1,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "torch": torch.__version__,
        }


def main() -> None:
    """Answer until the pipe closes."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever RecBole prints is no answer
    model, data_path, dataset, settings = sys.argv[1:]
    del sys.argv[1:]  # RecBole reads settings from there too
    peer = Peer(model, data_path, dataset, json.loads(settings))
    for line in sys.stdin:
        command = json.loads(line)
        torch.set_num_threads(command.pop("threads"))
        work = getattr(peer, command.pop("do"))
        start, processor = time.perf_counter(), time.process_time()
        answer = work(**command)
        answer["seconds"] = time.perf_counter() - start
        answer["processor"] = time.process_time() - processor
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
