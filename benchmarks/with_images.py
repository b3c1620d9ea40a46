"""`scientific` with the pictures that `scientific_mm` has of its items: rows for `kd-cache ingest`.

    python benchmarks/with_images.py OUT

1,585 of 4,385 items have a CLIP vector; the rows of the others are zeros, which count as missing.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def main(out: Path) -> int:
    """Write the folder; 2 where there is no source."""
    target, pictured = _DATA / "scientific", _DATA / "scientific_mm"
    if not pictured.is_dir():
        print(f"with_images: not run, there is no {pictured}.", file=sys.stderr)
        return 2
    row_of = {name: row for row, name in enumerate(_items(pictured))}
    known_VW = np.load(pictured / "image_feat.npy", allow_pickle=False)
    names = _items(target)
    images_VW = np.zeros((len(names), known_VW.shape[1]), np.float32)
    for row, name in enumerate(names):
        if name in row_of:
            images_VW[row] = known_VW[row_of[name]]
    out.mkdir(parents=True, exist_ok=True)
    for file in ("interactions.parquet", "items.parquet"):
        shutil.copyfile(target / file, out / file)
    np.save(out / "image_feat.npy", images_VW)
    print(f"{out}: {int(images_VW.any(1).sum()):,} of {len(names):,} items have an image vector")
    return 0


def _items(folder: Path) -> list[str]:
    names: list[str] = pq.read_table(folder / "items.parquet", columns=["item"])["item"].to_pylist()
    return names


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
