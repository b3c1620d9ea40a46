"""Recformer's reading of real histories against Hugging Face's Longformer, and against bare matrix products.

    python benchmarks/bench_recformer.py [--widths 768 384] [--rounds 3] [--histories 48] [--threads 1]

Random weights of 12 x 768 and 6 x 384 (window 64), texts of `scientific` in MiniLM's word pieces, at most 1,024
tokens a history. The same histories go to all: ours in batches of a token budget; LongformerModel in dataset order,
16 at a time; and sorted by length, 4 at a time, which leaves it the least padding. All answers must agree. The share
of the peak sets the multiply-adds that are useful (no padding, no masked key, nothing that the last block may leave
out) against torch.mm's of the same linear layers, in the same turns. bfloat16 is measured where the processor has it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from real_data import scientific
from timing import goal, ratios, turns
from torch import Tensor
from transformers import LongformerConfig, LongformerModel
from transformers.utils import logging

from encoder.precision import bfloat16_is_fast
from teachers.ragged import Ragged
from teachers.recformer import Architecture, Recformer, encode, reader, token_batches
from teachers.recformer_tokens import Limits, Sequences, Vocabulary, tokenise_items

NAME = "recformer"
SHAPES = {768: (12, 12, 3072), 384: (6, 12, 1536)}  # layers, heads, inner
WINDOW, BUDGET, DATASET_BATCH, SORTED_BATCH = 64, 4096, 16, 4
BARS = {"dataset order": 2.3, "sorted by length": 1.45}
SHARE = 0.95
HALF_BAR, HALF_COSINE = 4.3, 0.9999
CLOSE = 1e-4  # of states around 1

Longs = NDArray[np.int64]


def models(width: int, vocabulary: Vocabulary) -> tuple[Recformer, LongformerModel]:
    """Ours and theirs with the same weights; types and item positions add nothing, as theirs knows none."""
    layers, heads, inner = SHAPES[width]
    shape = Architecture(
        vocabulary=vocabulary.size,
        hidden=width,
        layers=layers,
        heads=heads,
        inner=inner,
        positions=1026,
        window=WINDOW,
    )
    torch.manual_seed(0)
    ours = Recformer(shape).eval()
    config = LongformerConfig(
        attention_window=[WINDOW] * layers,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        vocab_size=vocabulary.size,
        max_position_embeddings=1026,
        type_vocab_size=1,
        pad_token_id=shape.pad,
        layer_norm_eps=shape.eps,
    )
    theirs = LongformerModel(config, add_pooling_layer=False).eval()
    state = ours.longformer.state_dict()
    for name in ("token_type_embeddings", "item_position_embeddings"):
        state[f"embeddings.{name}.weight"].zero_()
    del state["embeddings.position_ids"], state["embeddings.item_position_embeddings.weight"]
    state["embeddings.token_type_embeddings.weight"] = torch.zeros(1, width)
    theirs.load_state_dict(state)
    return ours, theirs


def rectangles(sequences: Sequences, order: Longs, size: int, pad: int) -> list[tuple[Tensor, ...]]:
    """Batches as LongformerModel wants them: ids, what is real, which token is global; padded to the window."""
    batches = []
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        tokens = sequences.lay(chosen)
        longest = -(-int(tokens.lengths.max()) // WINDOW) * WINDOW
        real = np.arange(longest) < tokens.lengths[:, None]
        ids = np.full(real.shape, pad)
        ids[real] = tokens.ids
        front = torch.zeros(real.shape, dtype=torch.long)
        front[:, 0] = 1
        batches.append((torch.from_numpy(ids), torch.from_numpy(real).long(), front))
    return batches


@torch.inference_mode()
def theirs_read(model: LongformerModel, batches: list[tuple[Tensor, ...]]) -> Tensor:
    """[n, D] states of first tokens."""
    return torch.cat(
        [
            model(
                input_ids=ids, attention_mask=real, global_attention_mask=front
            ).last_hidden_state[:, 0]
            for ids, real, front in batches
        ]
    )


def useful(sequences: Sequences, shape: Architecture) -> tuple[float, float]:
    """Multiply-adds that our way needs: (all, those of linear layers over all tokens)."""
    width, inner, count = shape.hidden, shape.inner, len(sequences.lengths)
    tokens = float(sequences.lengths.sum())
    seen = float(Ragged.of(sequences.lengths, WINDOW).mask[..., :, :].sum())
    spare = -int(tokens) % (WINDOW // 2)  # queries beyond the last token
    seen -= spare * (WINDOW // 2 + 1)
    # scores and pooling of first tokens, and their query, its way back, and their value
    first = 2 * tokens * shape.heads * width + 3 * count * width**2
    linear = (shape.layers - 1) * tokens * (4 * width**2 + 2 * width * inner)
    local = (shape.layers - 1) * 2 * seen * width
    last = count * (width**2 + 2 * width * inner)
    return linear + local + shape.layers * first + last, linear


def products(sequences: Sequences, shape: Architecture) -> Callable[[int], None]:
    """torch.mm of one block's linear layers over the batches that ours reads."""
    sizes = [int(sequences.lengths[one].sum()) for one in token_batches(sequences.lengths, BUDGET)]
    width, inner = shape.hidden, shape.inner
    weights = [torch.randn(*s) for s in ((3 * width, width), (width, width), (inner, width))]
    weights.append(torch.randn(width, inner))
    most = max(sizes)
    inputs = {one: torch.randn(most, one) for one in {width, inner}}
    outputs = {one: torch.empty(most, one) for one in {3 * width, width, inner}}

    def run(_: int) -> None:
        for tokens in sizes:
            for weight in weights:
                out, into = weight.shape
                torch.mm(inputs[into][:tokens], weight.T, out=outputs[out][:tokens])

    return run


def compare(width: int, sequences: Sequences, vocabulary: Vocabulary, rounds: int) -> bool:
    """The goals of one width."""
    ours, theirs = models(width, vocabulary)
    shape = ours.architecture
    count = len(sequences.lengths)
    by_length = np.argsort(sequences.lengths, kind="stable")
    plain = rectangles(sequences, np.arange(count), DATASET_BATCH, shape.pad)
    alike = rectangles(sequences, by_length, SORTED_BATCH, shape.pad)
    read = reader(ours)
    found = encode(ours, sequences, budget=BUDGET, read=read)
    for name, batches, order in (
        ("dataset", plain, np.arange(count)),
        ("sorted", alike, by_length),
    ):
        gap = float((theirs_read(theirs, batches) - found[order]).abs().max())
        if gap > CLOSE:
            raise SystemExit(f"{NAME}: {name} order: ours and LongformerModel differ by {gap:.1e}")
    ours_s, plain_s, alike_s, peak_s = turns(
        [
            lambda _: encode(ours, sequences, budget=BUDGET, read=read),
            lambda _: theirs_read(theirs, plain),
            lambda _: theirs_read(theirs, alike),
            products(sequences, shape),
        ],
        rounds,
        warm=0,
    )
    name = f"{shape.layers} x {width}"
    tokens = int(sequences.lengths.sum())
    note = f"{tokens / min(ours_s):,.0f} tokens/s"
    kept = True
    for against, seconds in (("dataset order", plain_s), ("sorted by length", alike_s)):
        kept &= goal(
            NAME,
            f"{name} float32, tokens/s",
            f"LongformerModel in {against}",
            ratios(seconds, ours_s),
            at_least=BARS[against],
            note=f"{note} against {tokens / min(seconds):,.0f}",
        )
    whole, linear = useful(sequences, shape)
    per_block = linear / (shape.layers - 1)
    shares = [whole / per_block * peak / mine for peak, mine in zip(peak_s, ours_s, strict=True)]
    kept &= goal(
        NAME,
        f"{name} float32, useful multiply-adds/s",
        "torch.mm of its linear layers",
        shares,
        at_least=SHARE,
        figure="share",
        note=f"torch.mm {2e-9 * per_block / min(peak_s):.0f} GFLOP/s",
    )
    if bfloat16_is_fast("cpu"):
        half = encode(ours, sequences, budget=BUDGET, bfloat16=True)
        cosine = float(torch.cosine_similarity(half, found, dim=-1).min())
        half_s, plain_s = turns(
            [
                lambda _: encode(ours, sequences, budget=BUDGET, bfloat16=True),
                lambda _: theirs_read(theirs, plain),
            ],
            rounds,
            warm=0,
        )
        kept &= goal(
            NAME,
            f"{name} bfloat16, tokens/s",
            "LongformerModel in dataset order, float32",
            ratios(plain_s, half_s),
            at_least=HALF_BAR,
            note=f"smallest cosine {cosine:.5f}, at least {HALF_COSINE} wanted",
        )
        kept &= cosine >= HALF_COSINE
    return kept


def main() -> int:
    """Run the goals; 1 if any falls short."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="*", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--histories", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    if not bfloat16_is_fast("cpu"):
        print(f"# {NAME}: this processor multiplies no bfloat16, so none is measured", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        dataset = scientific(Path(folder), NAME)
        vocabulary = Vocabulary.load("minilm")
        items = tokenise_items(dataset, vocabulary, Limits())
        users, ends = dataset.held_out("test")
        chosen = np.sort(np.random.default_rng(0).permutation(len(users))[: options.histories])
        sequences = items.histories(dataset, users[chosen], ends[chosen])
    kept = [compare(width, sequences, vocabulary, options.rounds) for width in options.widths]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
