"""What RecBole 1.2.1's own training reaches on `scientific`, for the table in docs/results.md that ours is held against.

    python benchmarks/recbole_quality.py MODEL ... [--seeds 1] [--epochs 200] [--every 1] [--patience 10] [--threads 1]
                                                   [--attributes] [--folder FOLDER]

RecBole's `Trainer.fit` with its early stopping on validation NDCG@10, its default configuration for the model, batches of 512
positives, learning rate 1e-3; Recall@10 and NDCG@10 of full ranking. With `--attributes` FM and DeepFM know brand and
category, as ours do. Slow: minutes an epoch for some models, and as long for validation where it ranks pair by pair. A file
that is named at once tells how far it is; with `--folder` a run that was stopped goes on from its best validation.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from real_data import scientific
from recbole_side import MODELS, recbole

from student.fields import codes


def main() -> None:
    """A line a model and seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", choices=MODELS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--every", type=int, default=1, help="epochs between two validations")
    parser.add_argument("--patience", type=int, default=10, help="validations without a better one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--attributes", action="store_true", help="brand and category too")
    parser.add_argument("--folder", type=Path, help="where runs are kept, to go on with them")
    options = parser.parse_args()
    more = {
        "epochs": options.epochs,
        "eval_step": options.every,
        "stopping_step": options.patience,
    }
    for model in options.models:
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as name:
                dataset = scientific(Path(name), "recbole_quality")
                known = codes(dataset).numpy() if options.attributes else None
                kept = options.folder / f"seed-{seed}" if options.folder else Path(name)
                with recbole(dataset, kept.resolve(), model, known, seed=seed, **more) as peer:
                    print(f"{model} seed {seed}: epochs as they come in {peer.log}", flush=True)
                    found = peer.ask("fit", options.threads)
            parts = [
                f"{part} {metric} {found[part][metric]:.4f}"
                for part in ("valid", "test")
                for metric in ("recall@10", "ndcg@10")
            ]
            print(f"{model} seed {seed}: {', '.join(parts)}; {found['seconds']:,.0f} s", flush=True)


if __name__ == "__main__":
    main()
