"""RecBole in a process and a virtual environment of its own, for the benchmarks that are held against it.

    python benchmarks/recbole_side.py       makes .venv-peers at the root of the checkout (about a minute, from PyPI)

The benchmarks make it themselves on first use. Both sides get the same torch, interactions, batch size, sizes and loss;
what else RecBole does stays as it is by default.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peer_venv import PEERS, ROOT, python_of

from cache.dataset import Dataset

__all__ = ["MODELS", "RecBole", "recbole"]

_VERSION = "recbole==1.2.1"

#: what both sides share whatever the model; everything else is RecBole's default (overall.yaml, <model>.yaml)
SETTINGS = {
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "train_batch_size": 512,
    "eval_args": {
        "split": {"LS": "valid_and_test"},
        "group_by": "user",
        "order": "TO",
        "mode": "full",
    },
    "metrics": ["Recall", "NDCG"],
    "topk": [5, 10, 20],
    "valid_metric": "NDCG@10",
    "metric_decimal_place": 6,
    "use_gpu": False,
    "show_progress": False,
}

#: what a factorisation machine there can be told of what ours knows: with `attributes`, and with `histories`
_ITEM = ["item_id", "brand", "category"]
_HISTORY = "history"

_SOFTMAX = {"train_neg_sample_args": None, "loss_type": "CE"}  # over all items, no negatives
_NEGATIVE = {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}}

#: by model: what the loss and sizes of the same student here ask for
MODELS: dict[str, dict[str, Any]] = {
    "SASRec": {**_SOFTMAX, "hidden_size": 64, "n_layers": 2, "n_heads": 2},
    "GRU4Rec": _SOFTMAX,
    "BERT4Rec": _SOFTMAX,
    "LightGCN": _NEGATIVE,
    "FM": {**_NEGATIVE, "train_batch_size": 1024},  # 512 positives and a negative each
    "DeepFM": {**_NEGATIVE, "train_batch_size": 1024},
}


def install() -> Path:
    """The interpreter of .venv-peers with RecBole in it; ends the benchmark with status 2 where PyPI cannot be reached."""
    constraints = ["-c", str(ROOT / "constraints.txt")]
    needed = ["-r", str(PEERS / "requirements.txt")]
    return python_of(
        ".venv-peers", "recbole", [[*constraints, *needed], [*constraints, "--no-deps", _VERSION]]
    )


class RecBole:
    """A running RecBole; commands are those of peers/recbole_peer.py.

    An answer's `seconds` and `processor` are the work's own, on the clock and on the processor. What it prints is in `log`.
    """

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self.log = log

    def ask(self, do: str, threads: int, **command: Any) -> dict[str, Any]:
        """The answer, with the seconds that the work took."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = json.dumps({"do": do, "threads": threads, **command}) + "\n"
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        except (OSError, ValueError) as error:
            self._process.kill()
            told = self.log.read_text(errors="replace")[-2000:]
            print(f"{told}\nRecBole ended at {do!r}.", file=sys.stderr)
            raise SystemExit(1) from error
        return answer


@contextmanager
def recbole(
    dataset: Dataset,
    folder: Path,
    model: str = "SASRec",
    attributes: NDArray[np.int64] | None = None,
    *,
    histories: bool = False,
    **more: Any,
) -> Iterator[RecBole]:
    """A model of RecBole on the interactions of `dataset`, in an atomic file under `folder`.

    Args:
        attributes: [V, 2] which brand and which category each item has, for it to know.
        histories: it knows too what the user had before, as a field of many values, of which it takes the mean.
    """
    python = install()
    known = "-attributes" * (attributes is not None) + "-histories" * histories
    home = folder / f"recbole-{model}{known}"
    (home / "toys").mkdir(parents=True, exist_ok=True)
    columns = dict(SETTINGS["load_col"])
    _write_interactions(home / "toys" / "toys.inter", dataset, histories=histories)
    if histories:
        columns["inter"] = [*columns["inter"], _HISTORY]
    if attributes is not None:
        rows = [
            f"{item}\t{brand}\t{kind}\n" for item, (brand, kind) in enumerate(attributes.tolist())
        ]
        head = "item_id:token\tbrand:token\tcategory:token\n"
        (home / "toys" / "toys.item").write_text(head + "".join(rows))
        columns["item"] = _ITEM
    settings = {
        **SETTINGS,
        "load_col": columns,
        **MODELS[model],
        "MAX_ITEM_LIST_LENGTH": dataset.max_length,
        **more,
    }
    script = [str(python), str(PEERS / "recbole_peer.py"), model, str(home), "toys"]
    log = home / "log.txt"
    with (
        log.open("a") as errors,
        subprocess.Popen(
            [*script, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=home,  # it leaves folders where it stands
        ) as process,
    ):
        yield RecBole(process, log)
        assert process.stdin is not None
        process.stdin.close()


def _write_interactions(path: Path, dataset: Dataset, *, histories: bool) -> None:
    with path.open("w") as file:
        head = "user_id:token\titem_id:token\ttimestamp:float"
        file.write(head + f"\t{_HISTORY}:token_seq" * histories + "\n")
        for user in range(dataset.num_users):
            items = [str(item) for item in dataset.sequence(user)]
            for position, item in enumerate(items):
                before = " ".join(items[max(0, position - dataset.max_length) : position])
                file.write(f"{user}\t{item}\t{position}" + f"\t{before}" * histories + "\n")


if __name__ == "__main__":
    install()
