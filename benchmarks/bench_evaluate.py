"""Full-ranking evaluation of SASRec: against the bare matrix product, and against RecBole 1.2.1's full-sort evaluation.

    python benchmarks/bench_evaluate.py [--data scientific games] [--rounds 9] [--threads 0]

The real `scientific`, 8,442 users' test items ranked among all 4,385, and `games`, 50,546 among 16,859 (a third of the
rounds). SASRec of width 64 with random weights.

- Against the product: `pipeline.evaluate.ranks_of_targets` on ready user vectors, against `torch.mm` of the same two
  matrices in the same blocks into one buffer, [block, V] as anyone would make it; and into room whose rows begin at a
  cache line, as ours has it (told). What is above 1 there is what ranking costs.
- Against RecBole: `rank_histories` and the metrics, from histories on, against the whole of `Trainer.evaluate` over its own
  loader (default batch of 4,096 users) with the same metrics, in a process of its own, in turns. Both models hold the
  same weights, and the benchmark stops unless both find the same Recall and NDCG.
- Memory: what a whole evaluation takes above what there was before it (resident, Linux).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from real_data import real
from recbole_side import RecBole, recbole
from timing import clocks, goal, ratios
from torch import Tensor

from cache.dataset import Dataset
from encoder.packed import Packed
from encoder.products import widened
from pipeline.evaluate import _BLOCK_ENTRIES, rank_histories, rank_student, ranks_of_targets
from pipeline.metrics import metrics_of_ranks
from student.sasrec import SASRec, SASRecConfig

NAME = "evaluate"
#: by data: at most so much of the product, at least so much of RecBole
BARS = {"scientific": (2, 5), "games": (1.6, 8)}
MEMORY_MIB = 512


@torch.inference_mode()
def against_product(model: SASRec, dataset: Dataset, rounds: int, bar: float) -> bool:
    """Ranks of ready vectors against the product that they need anyway."""
    users, ends = dataset.held_out("test")
    users_nD = model.encode(Packed.of(*dataset.histories(users, ends)))
    table_VD = model.item_table()
    targets_n = torch.from_numpy(dataset.targets(users, ends).astype(np.int64))
    block = _BLOCK_ENTRIES // len(table_VD)
    plain = torch.empty(block, len(table_VD))
    aligned = torch.empty(block, len(widened(table_VD)))[:, : len(table_VD)]

    def product(buffer: Tensor) -> None:
        for rows in torch.split(users_nD, block):
            torch.mm(rows, table_VD.T, out=buffer[: len(rows)])

    (ranked, *bare), (ranked_processor, *bare_processor) = clocks(
        [
            lambda number: ranks_of_targets(users_nD, table_VD, targets_n),
            lambda number: product(plain),
            lambda number: product(aligned),
        ],
        rounds,
        warm=3,
    )
    kept = True
    for against, seconds, processor, at_most in zip(
        ("the bare product", "the bare product into aligned rows"),
        bare,
        bare_processor,
        (bar, None),
        strict=True,
    ):
        kept &= goal(
            NAME,
            f"ranks of {len(users):,} users among {len(table_VD):,} items",
            against,
            ratios(ranked, seconds),
            at_most=at_most,
            note=f"processor time {np.median(ratios(ranked_processor, processor)):.2f}",
        )
    return kept


def memory(model: SASRec, dataset: Dataset) -> bool:
    """What a whole evaluation takes at its peak, above what there was before."""

    def status(key: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(one for one in lines if one.startswith(key)).split()[1]) / 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS:")
    rank_student(model, dataset, dataset.held_out("test"))
    users = len(dataset.held_out("test")[0])
    return goal(
        NAME,
        f"{users:,} users among {dataset.num_items:,} items",
        "memory",
        [status("VmHWM:") - before],
        at_most=MEMORY_MIB,
        figure="peak MiB",
    )


def against_recbole(
    model: SASRec, dataset: Dataset, peer: RecBole, folder: Path, rounds: int, bar: float
) -> bool:
    """Whole evaluations, histories in and metrics out."""
    threads = torch.get_num_threads()
    weights = folder / "weights.npz"
    np.savez(weights, **{name: value.numpy() for name, value in model.state_dict().items()})
    peer.ask("load", threads, weights=str(weights))
    found: list[dict[str, float]] = [{}, {}]

    def ours(number: int) -> None:
        ranks = rank_histories(model.encode, model.item_table(), dataset, dataset.held_out("test"))
        found[0] = metrics_of_ranks(ranks)

    def theirs(number: int) -> None:
        answer = peer.ask("evaluate", threads)
        found[1] = answer["metrics"]
        processor.append(answer["processor"])

    processor: list[float] = []
    (ours_s, theirs_s), (our_processor, _) = clocks([ours, theirs], rounds)
    for metric, value in found[0].items():
        if abs(value - found[1][metric]) > 2e-4:  # of equal scores RecBole ranks any first
            raise SystemExit(f"{metric} is {value:.6f} here and {found[1][metric]:.6f} in RecBole")
    users = len(dataset.held_out("test")[0])
    return goal(
        NAME,
        "users a second, histories to metrics,",
        "RecBole 1.2.1's evaluate",
        ratios(theirs_s, ours_s),
        at_least=bar,
        note=f"{users / np.median(ours_s):,.0f} and {users / np.median(theirs_s):,.0f}; "
        f"by processor time {np.median(ratios(processor[1:], our_processor)):.2f}",
    )


def main() -> int:
    """Run the goals; 1 if one falls short."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", choices=BARS, default=list(BARS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=0, help="0 takes torch's choice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        kept = [compare(data, Path(name), options.rounds) for data in options.data]
    return int(not all(kept))


def compare(data: str, folder: Path, rounds: int) -> bool:
    """The goals on one data set."""
    dataset = real(data, folder, NAME)
    product_bar, recbole_bar = BARS[data]
    rounds = rounds if data == "scientific" else max(1, rounds // 3)
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(max_length=dataset.max_length), dataset.num_items).eval()
    kept = memory(model, dataset)
    kept &= against_product(model, dataset, 3 * rounds, product_bar)
    with recbole(dataset, folder / data) as peer:
        kept &= against_recbole(model, dataset, peer, folder, rounds, recbole_bar)
    return kept


if __name__ == "__main__":
    sys.exit(main())
