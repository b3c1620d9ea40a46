"""How far codec `u8` moves the softmax of a real score set, at several temperatures; and what an instance takes.

    python benchmarks/codec_kl.py cache/toys unisrec

Reads a set of codec `none` and lays each batch out in bytes in memory. KL of the stored softmax to that of the bytes, in
nats, over all rows. The bar is 1e-4 in the mean at every temperature from 0.2 to 2; nothing is written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from cache.codec import AFFINE_BYTES, decode, encode_into
from cache.score_writer import log_softmax_32
from cache.store import Store

BAR, TAUS = 1e-4, (0.2, 0.3, 0.5, 1.0, 2.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("name")
    options = parser.parse_args()
    reader = Store.open(options.store).scores(options.name)
    if reader.layout.codec != "none":
        print(f"{options.name}: is of codec u8; name a set of codec none.", file=sys.stderr)
        return 2
    codes = np.empty((reader.layout.slots, reader.layout.columns + AFFINE_BYTES), np.uint8)
    taus = (reader.tau, *(tau for tau in TAUS if tau != reader.tau))
    found: dict[float, list[np.ndarray]] = {tau: [] for tau in taus}
    steps = []
    for index in range(len(reader)):
        stored_TC = reader[index].astype(np.float32)
        bytes_TC = np.empty_like(stored_TC)
        encode_into(codes, stored_TC)
        decode(codes, bytes_TC)
        steps.append(np.ptp(stored_TC, axis=1) / 254)
        for tau in taus:
            p_TC, q_TC = (
                log_softmax_32(some * np.float32(reader.tau), tau).astype(np.float64)
                for some in (stored_TC, bytes_TC)
            )
            found[tau].append((np.exp(p_TC) * (p_TC - q_TC)).sum(axis=1))
    print(
        f"# {options.store}, {options.name}: {len(reader)} batches, {reader.layout.columns} columns"
    )
    print(
        f"# an instance takes {2 * reader.layout.columns} bytes, in u8 {reader.layout.columns + AFFINE_BYTES}; "
        f"a step is {np.concatenate(steps).mean():.3f} nats in the mean"
    )
    kept = True
    for tau in taus:
        values = np.concatenate(found[tau])
        told = "no bar" if tau < min(TAUS) else f"bar {BAR:g}"
        kept = kept and (tau < min(TAUS) or values.mean() <= BAR)
        print(
            f"tau {tau:<5g} KL mean {values.mean():.2e}  largest of a row {values.max():.2e}  {told}"
        )
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
