"""A teacher's vectors of all training prefixes against those of each user's longest prefix alone.

    python benchmarks/bench_prefixes.py [--rounds 9] [--threads 0]

UniSRec of the public sizes (hidden 300, two blocks) over random text vectors of width 384, on the real `scientific`:
34,101 prefixes, 8,442 users. Both are encoded by what `kd-cache build` calls, so each user costs one causal pass; the
bar says that the prefixes come along with it. The second line sets the prefixes against a pass whose last block
is computed for the last item alone, the least that a vector a user can cost.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from real_data import scientific
from timing import goal, ratios, turns
from torch import Tensor

from cache.dataset import Dataset, Ints
from encoder.packed import Packed
from teachers.passes import plan_passes
from teachers.unisrec import Architecture, UniSRec
from teachers.unisrec_teacher import encode_histories

NAME = "prefixes"
_TOKENS = 16384  # laid out at once, as the teacher does


@torch.inference_mode()
def last_alone(model: UniSRec, table_VD: Tensor, dataset: Dataset) -> Tensor:
    """[U, D] one vector a user by passes that answer nothing else."""
    passes = plan_passes(dataset, *dataset.training_instances("last"))
    order = np.argsort(passes.lengths, kind="stable")
    vectors = []
    for chosen in passes.batches(order, _TOKENS, passes.lengths):
        laid = passes.pack(chosen)
        packed = Packed.of(laid.items, laid.lengths)
        states_BD = model.states(table_VD[packed.items], packed, only_last=True)
        vectors.append(torch.nn.functional.normalize(states_BD, dim=-1))
    return torch.cat(vectors)


def main() -> int:
    """Run the goal; 1 if it falls short."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=0, help="0 takes torch's choice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        dataset = scientific(Path(folder), NAME)
    torch.manual_seed(0)
    model = UniSRec(Architecture(text_width=384), torch.randn(dataset.num_items, 384) / 2).eval()
    with torch.inference_mode():
        table_VD = model.item_table()
    every, longest = dataset.training_instances(), dataset.training_instances("last")

    def encoding(instances: tuple[Ints, Ints]) -> Callable[[int], object]:
        return lambda number: encode_histories(model, table_VD, dataset, *instances)

    all_s, once_s, alone_s = turns(
        [encoding(every), encoding(longest), lambda number: last_alone(model, table_VD, dataset)],
        options.rounds,
    )
    prefixes = f"all {len(every[0]):,} training prefixes"
    kept = goal(NAME, prefixes, f"{len(longest[0]):,} users once", ratios(all_s, once_s), at_most=2)
    least = "users once, last block for the last item"
    kept &= goal(NAME, prefixes, least, ratios(all_s, alone_s), at_most=2)
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
