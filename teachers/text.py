"""Item texts to vectors, through any `transformers` encoder (teachers/encoders.py); each text is encoded once.

Vectors are kept beside the dataset under a name that carries the digest of everything that decides them, but for the device:
a GPU computes them in bfloat16. Costs about 10 ms of one core for a text of 60 tokens with MiniLM; batches hold texts of like
length, so padding is next to nothing. Refused: vectors that are no numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from cache.dataset import Dataset
from cache.digest import canonical_json, sha256_bytes
from cache.errors import CkdError, InputError, short_of_memory
from cache.vectors import list_vectors, read_vectors, write_vectors
from teachers.encoders import MINILM, digests, load_encoder, locate

__all__ = [
    "Pooling",
    "Progress",
    "TextSettings",
    "drop_words",
    "encode_texts",
    "item_vectors",
    "keep_vectors",
    "named",
    "plain_name",
]

Pooling: TypeAlias = Literal["mean", "cls"]
#: called with (done, total, what is being done)
Progress: TypeAlias = Callable[[int, int, str], None]

_TOKEN_BUDGET = 8192  # padded tokens of one forward pass: some 100 MB of activations at width 768


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSettings:
    """How texts become vectors.

    Attributes:
        model: `minilm`, a folder, or a hub name.
        pooling: `mean` over the tokens of a text, or the state of its first token (`cls`); a CLIP pools by itself.
        max_length: longer texts are cut to this many tokens.
        word_drop: share of words removed from every text before encoding; 0 but for the second view of pre-training.
        seed: draws the words that are dropped.
    """

    model: str = MINILM
    pooling: Pooling = "mean"
    max_length: int = 256
    word_drop: float = 0.0
    seed: int = 0


def describe(folder: Path, settings: TextSettings) -> dict[str, Any]:
    """What decides the vectors: digests of weights, tokenizer and configuration, and the settings.

    The place of the model on this machine is left out, so that two machines agree.
    """
    values = asdict(settings)
    if not settings.word_drop:
        del values["seed"]
    values["model"] = settings.model if settings.model == MINILM else Path(settings.model).name
    return {**values, **digests(folder)}


def named(settings: TextSettings) -> tuple[Path, dict[str, Any], str]:
    """(folder of the encoder, what decides its vectors, name of the set that they are kept under)."""
    folder = locate(settings.model)
    made_by = describe(folder, settings)
    mark = sha256_bytes(canonical_json(made_by)).removeprefix("sha256:")[:12]
    return folder, made_by, f"{plain_name(made_by['model'])}-{settings.pooling}-{mark}"


def item_vectors(
    dataset: Dataset,
    settings: TextSettings,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[str, NDArray[np.float32]]:
    """The text vectors of a dataset's items: read where they were kept, else encoded and kept.

    Returns:
        (name, vectors): the name of the set under `vectors/`, and float32 [V, d].
    """
    folder, made_by, name = named(settings)
    if name not in list_vectors(dataset):
        texts = dataset.texts()
        if settings.word_drop:
            texts = drop_words(texts, settings.word_drop, settings.seed)
        vectors_VD = encode_texts(folder, texts, settings, device=device, progress=progress)
        keep_vectors(dataset, name, vectors_VD, made_by)
    return name, read_vectors(dataset, name)


def keep_vectors(
    dataset: Dataset, name: str, vectors_VD: NDArray[np.float32], made_by: dict[str, Any]
) -> None:
    """Write a vector set whose name tells its content; another run may have been first with the same."""
    try:
        write_vectors(dataset, name, vectors_VD, made_by)
    except CkdError:
        if name not in list_vectors(dataset):
            raise


def drop_words(texts: list[str], share: float, seed: int) -> list[str]:
    """Every word leaves with probability `share`; a text that would be empty keeps its first word.

    The second view of UniSRec's pre-training (arXiv 2206.05941, section 2.2.2).
    """
    draws = np.random.default_rng(seed)
    out = []
    for text in texts:
        words = text.split()
        kept = [
            word
            for word, draw in zip(words, draws.random(len(words)), strict=True)
            if draw >= share
        ]
        out.append(" ".join(kept or words[:1]))
    return out


def encode_texts(
    folder: Path,
    texts: list[str],
    settings: TextSettings,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Encode texts with the model in `folder`; rows in the order of `texts`.

    Returns:
        float32 [len(texts), hidden size].

    Raises:
        InputError: ``text.not_finite`` when the model answers NaN or infinity; ``text.unreadable``,
            ``text.foreign_code`` or ``text.incomplete`` when `folder` does not hold a whole model.
    """
    tokenizer, model = _load(folder)
    model.eval().to(device)
    shape = model.config.get_text_config()  # of a model of images too, its texts' part
    room = int(getattr(shape, "max_position_embeddings", settings.max_length))
    # RoBERTa's last two positions are not for texts: the tokenizer knows
    max_length = min(settings.max_length, room, int(tokenizer.model_max_length))
    tokens: list[list[int]] = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
    pad = tokenizer.pad_token_id or 0
    known = getattr(shape, "vocab_size", None)
    # before it is asked: a GPU that is asked for a row that is not there answers nothing more
    if known is not None and (most := max(map(max, [[pad], *filter(None, tokens)]))) >= known:
        raise InputError(
            f"{folder}: its tokenizer gives the token {most:,}, its weights know {known:,}; "
            "fetch it again or name another with --text.",
            code="text.unreadable",
        )
    lengths = np.array([len(ids) for ids in tokens], np.int64)
    total = int(lengths.sum())
    width_of_all = shape.hidden_size
    if hasattr(model, "get_text_features"):
        width_of_all = model.config.projection_dim
    out_VD = np.empty((len(texts), int(width_of_all)), np.float32)
    done = 0
    for rows in _alike(lengths):
        width = int(lengths[rows].max())
        ids_BT = torch.full((len(rows), width), pad)
        for place, row in enumerate(rows):
            ids_BT[place, : lengths[row]] = torch.tensor(tokens[row])
        mask_BT = torch.arange(width) < torch.from_numpy(lengths[rows])[:, None]
        with (
            torch.inference_mode(),
            torch.autocast("cuda", torch.bfloat16, enabled=device.startswith("cuda")),
        ):
            vectors_BD = _asked(
                folder, model, ids_BT.to(device), mask_BT.to(device), settings.pooling
            )
        out_VD[rows] = vectors_BD.cpu().numpy()
        done += int(lengths[rows].sum())
        if progress is not None:
            progress(done, total, "encoding texts")
    if not np.isfinite(out_VD).all():
        raise InputError(
            f"{folder}: the text encoder answered NaN or infinity for "
            f"{int((~np.isfinite(out_VD).all(1)).sum())} texts; use another model.",
            code="text.not_finite",
        )
    return out_VD


def _load(folder: Path) -> tuple[Any, Any]:
    """(tokenizer, model) of a folder, none of whose code is run."""

    def tokenizer_of(transformers: Any) -> Any:
        return transformers.AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)

    return load_encoder(folder, "text", "AutoModel", tokenizer_of)


def _alike(lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Rows in batches of like length, the longest first, each within the token budget."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, _TOKEN_BUDGET // int(lengths[order[start]]))
        yield order[start : start + size]
        start += size


def _asked(
    folder: Path, model: Any, ids_BT: torch.Tensor, mask_BT: torch.Tensor, pooling: Pooling
) -> torch.Tensor:
    """[B, D] float32; a model of images too (CLIP) pools and projects its texts itself."""
    ask = getattr(model, "get_text_features", model)
    try:
        answer = ask(input_ids=ids_BT, attention_mask=mask_BT.long())
        if ask is not model:
            projected: torch.Tensor = getattr(answer, "pooler_output", answer)
            return projected.float()
        return _pool(answer.last_hidden_state.float(), mask_BT, pooling)
    except (ValueError, RuntimeError, TypeError, IndexError, AttributeError) as error:
        if short_of_memory(error):
            raise
        raise InputError(
            f"{folder}: gives no vectors of texts ({type(error).__name__}: {' '.join(str(error).split())[:120]}); "
            "name another with --text.",
            code="text.unreadable",
        ) from error


def _pool(states_BTD: torch.Tensor, mask_BT: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    if pooling == "cls":
        return states_BTD[:, 0]
    weights_BT1 = mask_BT[:, :, None].to(states_BTD.dtype)
    return (states_BTD * weights_BT1).sum(1) / weights_BT1.sum(1)


def plain_name(name: str) -> str:
    """`name` with nothing in it that a folder's name may not hold."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name)[:80]
