"""What each modality brings a teacher: text alone, image alone, both, and both with images removed.

    python benchmarks/modalities.py [--seeds 3] [--epochs 60] [--patience 6] [--threads 1]

On `scientific_mm` (CLIP vectors of texts and images, every item has both), NDCG@10 of validation and test, inductive, from
scratch, mean and standard deviation over seeds. One modality alone is a UniSRec on its vectors; both are the reconstructed
UniM2Rec. Removed images are rows of zeros at tuning and at scoring; which ones is drawn once for all seeds. No bar: told.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.dataset import Dataset
from cache.vectors import read_vectors, write_vectors
from pipeline import teach, teach_unim2rec
from pipeline.ingest import ingest
from pipeline.teach_unim2rec import Modalities
from teachers.text import TextSettings
from teachers.trainer import Recipe

_SOURCE = Path(__file__).resolve().parents[2] / "shared" / "data" / "scientific_mm"
_REMOVED = (30, 100)  # per cent of the images


def without(dataset: Dataset, share: int) -> str:
    """The vector set `image` with `share` per cent of its rows removed, under its own name."""
    name = f"image-{share}"
    images = np.array(read_vectors(dataset, "image"))
    order = np.random.default_rng(0).permutation(len(images))
    images[order[: round(len(images) * share / 100)]] = 0
    write_vectors(dataset, name, images, {"origin": "image", "removed": share})
    return name


def tuned(
    dataset: Dataset, out: Path, seed: int, sets: dict[str, str], options: Any
) -> list[float]:
    """[validation, test] NDCG@10 of one teacher."""
    recipe = Recipe(seed=seed, epochs=options.epochs, patience=options.patience)
    common: dict[str, Any] = {
        "whiten": True,
        "start": None,
        "transductive": False,
        "freeze_encoder": False,
        "architecture": {},
        "recipe": recipe,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "report": lambda done, total, note: None,
    }
    if len(sets) == 1:
        (name,) = sets.values()
        config = teach.tune(dataset, out, text=TextSettings(), vectors=name, **common)
    else:
        modalities = Modalities(text_vectors=sets["text"], image_vectors=sets["image"])
        config = teach_unim2rec.tune(dataset, out, modalities=modalities, **common)
    return [config["validation"]["ndcg@10"], config["test"]["ndcg@10"]]


def main() -> None:
    parser = argparse.ArgumentParser(description="What each modality brings a teacher.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--patience", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not _SOURCE.is_dir():
        print(f"modalities: not run, there is no {_SOURCE}.", file=sys.stderr)
        raise SystemExit(2)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        dataset = ingest(_SOURCE, folder / "data", k_core=0).dataset
        contenders = {
            "text alone": {"text": "text"},
            "image alone": {"image": "image"},
            "text + image": {"text": "text", "image": "image"},
        } | {
            f"text + image, {share}% of images removed": {
                "text": "text",
                "image": without(dataset, share),
            }
            for share in _REMOVED
        }
        print(f"{'features':<38}  {'valid ndcg@10':<17}  test ndcg@10")
        for title, sets in contenders.items():
            rows = [
                tuned(dataset, folder / f"{title}-{seed}", seed, sets, options)
                for seed in range(options.seeds)
            ]
            means, spreads = np.mean(rows, 0), np.std(rows, 0, ddof=int(len(rows) > 1))
            valid, test = (f"{m:.4f} +- {s:.4f}" for m, s in zip(means, spreads, strict=True))
            print(f"{title:<38}  {valid:<17}  {test}", flush=True)


if __name__ == "__main__":
    main()
