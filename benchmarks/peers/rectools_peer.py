"""RecTools 0.19's SASRecModel behind a pipe: trains so many batches on each command. Runs in .venv-rectools alone.

    rectools_peer.py INTERACTIONS.csv SETTINGS_JSON BATCHES    commands and answers are lines of JSON on stdin and stdout

Everything is RecTools' own: dataset, data preparator, model, Lightning module and trainer, its defaults but for what
SETTINGS_JSON says. Timed by a callback from the start of a training epoch to its end, so that preparing data is not counted.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from typing import Any, ClassVar

warnings.simplefilter("ignore")

import pandas as pd  # noqa: E402
import torch  # noqa: E402
from pytorch_lightning import Callback, Trainer  # noqa: E402
from rectools import Columns  # noqa: E402
from rectools.dataset import Dataset  # noqa: E402
from rectools.models import SASRecModel  # noqa: E402


class Clock(Callback):
    """Seconds and targets of the last training epoch; kept by the class, since the trainer is copied."""

    started: ClassVar[float] = 0.0
    seconds: ClassVar[float] = 0.0
    instances: ClassVar[int] = 0

    def on_train_epoch_start(self, *_: Any) -> None:
        Clock.started, Clock.instances = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        Clock.instances += int((batch["y"] != 0).sum())

    def on_train_epoch_end(self, *_: Any) -> None:
        Clock.seconds = time.perf_counter() - Clock.started


def trainer(batches: int) -> Trainer:
    """As theirs is by default, with a clock and an end after so many batches."""
    return Trainer(
        max_epochs=1,
        limit_train_batches=batches,
        accelerator="cpu",
        devices=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
        callbacks=[Clock()],
    )


def main() -> None:
    """Answer until the pipe closes."""
    answers, sys.stdout = sys.stdout, sys.stderr
    path, settings, batches = sys.argv[1:]
    frame = pd.read_csv(path).rename(
        columns={"user": Columns.User, "item": Columns.Item, "position": Columns.Datetime}
    )
    frame[Columns.Datetime] = pd.to_datetime(frame[Columns.Datetime], unit="s")
    frame[Columns.Weight] = 1.0
    dataset = Dataset.construct(frame)
    model = SASRecModel(
        **json.loads(settings),
        get_trainer_func=trainer,
        get_trainer_func_kwargs={"batches": int(batches)},
    )
    for line in sys.stdin:
        torch.set_num_threads(json.loads(line)["threads"])
        model.fit_partial(dataset, 1, 1)
        print(
            json.dumps({"seconds": Clock.seconds, "instances": Clock.instances}),
            file=answers,
            flush=True,
        )


if __name__ == "__main__":
    main()
