"""A Recformer in a folder, and what the tuned one answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional as F

from cache.dataset import EXTENDS, Dataset, write_dataset
from cache.errors import StoreError, UsageError
from cache.store import Store
from pipeline.build import build
from pipeline.curriculum import PlanSettings, make_plan
from teachers import recformer
from teachers.protocol import Teacher, Watched
from teachers.recformer import Batch, Recformer, encode, token_batches
from teachers.recformer_teacher import RecformerTeacher, load_recformer, save_recformer
from teachers.recformer_tokens import Limits, attributes_of, tokenise_items
from teachers.recformer_tune import read_items
from teachers.registry import load_teacher
from tests.fakes import tiny_dataset
from tests.teachers.recformer_parts import LIMITS, TINY, shop, vocabulary


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return shop(tmp_path / "shop")


def tuned(
    folder: Path, dataset: Dataset, *, stage: str = "tuned", text: str = "", **config: Any
) -> Recformer:
    torch.manual_seed(0)
    model = Recformer(TINY, items=dataset.num_items)
    for parameter in model.longformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    words = vocabulary()
    read_items(model, tokenise_items(dataset, words, LIMITS))
    save_recformer(
        folder,
        model,
        model.state_dict(),
        vocabulary=replace(words, text=words.text + text),
        limits=LIMITS,
        stage=stage,
        dataset=dataset.digest,
        validation={"ndcg@10": 0.25},
        **config,
    )
    return model


def test_it_answers_unit_vectors_and_cosines(tmp_path: Path, dataset: Dataset) -> None:
    model = tuned(tmp_path / "t", dataset)
    teacher: Teacher = load_teacher(tmp_path / "t")
    assert isinstance(teacher, RecformerTeacher)
    assert (teacher.name, teacher.factorises, teacher.quality) == (
        "recformer",
        True,
        {"ndcg@10": 0.25},
    )
    users, ends = dataset.training_instances()
    table, vectors = teacher.encode_items(dataset), teacher.encode_histories(dataset, users, ends)
    assert table.dtype == vectors.dtype == np.float32
    np.testing.assert_allclose(table, F.normalize(model.table(), dim=-1).numpy(), atol=1e-6)
    items = tokenise_items(dataset, vocabulary(), LIMITS)
    for row in (0, len(users) // 2, len(users) - 1):
        read = items.histories(dataset, users[row : row + 1], ends[row : row + 1])
        with torch.no_grad():
            state = model.eval().first_states(Batch.of(read.lay(np.array([0])), TINY))
        np.testing.assert_allclose(vectors[row], F.normalize(state, dim=-1)[0].numpy(), atol=1e-6)
    scores = teacher.score(vectors[:3], table[:4])
    np.testing.assert_allclose(scores, vectors[:3] @ table[:4].T)
    assert scores.shape == (3, 4)


def test_it_says_which_share_of_the_tokens_it_has_read(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned(tmp_path / "t", dataset)
    teacher = load_teacher(tmp_path / "t")
    assert isinstance(teacher, Watched)
    users, ends = dataset.training_instances()
    lengths = tokenise_items(dataset, vocabulary(), LIMITS).histories(dataset, users, ends).lengths
    monkeypatch.setitem(recformer._BUDGET, "cpu", 1)  # a history at a time, the longest first
    shares: list[float] = []
    watched = teacher.encode_histories_watched(dataset, users, ends, shares.append)
    read = np.cumsum(np.sort(lengths)[::-1])
    np.testing.assert_allclose(shares, read / read[-1])
    assert np.array_equal(watched, teacher.encode_histories(dataset, users, ends))


def test_an_answer_depends_on_nothing_else_that_is_asked(tmp_path: Path, dataset: Dataset) -> None:
    tuned(tmp_path / "t", dataset)
    teacher = RecformerTeacher.load(tmp_path / "t")
    users, ends = dataset.training_instances()
    together = teacher.encode_histories(dataset, users, ends)
    order = np.random.default_rng(0).permutation(len(users))
    shuffled = teacher.encode_histories(dataset, users[order], ends[order])
    np.testing.assert_allclose(shuffled, together[order], atol=1e-6)
    for row in range(0, len(users), 7):
        alone = teacher.encode_histories(dataset, users[row : row + 1], ends[row : row + 1])
        np.testing.assert_allclose(alone[0], together[row], atol=1e-6)


def test_batches_hold_like_lengths_within_the_budget() -> None:
    lengths = np.array([5, 9, 2, 9, 30, 4])
    batches = [one.tolist() for one in token_batches(lengths, 20)]
    # longest first: 30 is alone beyond the budget; 9 + 9 (with 5: 23); 5 + 4 + 2
    assert batches == [[4], [1, 3], [0, 5, 2]]


def test_a_folder_needs_no_hub_and_no_tokenizer_of_transformers(
    tmp_path: Path, dataset: Dataset
) -> None:
    tuned(tmp_path / "t", dataset)
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == [
        "config.json",
        "tokenizer.json",
        "weights.safetensors",
    ]
    code = (
        "import sys; from pathlib import Path; from cache.dataset import open_dataset\n"
        "from teachers.registry import load_teacher\n"
        "sys.modules['transformers'] = sys.modules['huggingface_hub'] = None\n"
        "teacher, dataset = load_teacher(Path(sys.argv[1])), open_dataset(Path(sys.argv[2]))\n"
        "print(teacher.encode_histories(dataset, *dataset.held_out('test')).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "t"), str(dataset.path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    users = len(dataset.held_out("test")[0])
    assert done.stdout.strip() == f"({users}, {TINY.hidden})"


def test_weights_tokenizer_and_limits_are_part_of_the_digest(
    tmp_path: Path, dataset: Dataset
) -> None:
    tuned(tmp_path / "a", dataset)
    tuned(tmp_path / "b", dataset)
    tuned(tmp_path / "c", dataset, text=" ")
    digests = [load_recformer(tmp_path / name).digest for name in "abc"]
    assert digests[0] == digests[1] != digests[2]
    config = json.loads((tmp_path / "a" / "config.json").read_bytes())
    assert config["limits"] == {"attribute": 6, "items": 4, "tokens": 24}
    assert config["vocabulary"]["text"] == vocabulary().digest


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_another_tokenizer_than_the_sealed_one_is_refused(
    damage: str, tmp_path: Path, dataset: Dataset
) -> None:
    tuned(tmp_path / "t", dataset)
    path = tmp_path / "t" / "tokenizer.json"
    path.unlink() if damage == "gone" else path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(StoreError, match=r"tokenizer\.json: sha256:.* expected") as caught:
        load_teacher(tmp_path / "t")
    assert caught.value.code == "teacher.damaged"


@pytest.mark.parametrize(
    "edit",
    [
        {"stage": ...},
        {"vocabulary": ...},
        {"vocabulary": {"text": "sha256:0"}},
        {"vocabulary": {**vocabulary().ids, "colour": 1, "text": vocabulary().digest}},
        {"validation": ...},
        {"dataset": ...},
        {"architecture": ...},
        {"architecture": {**asdict(TINY), "layers": 3}},
        {"architecture": {**asdict(TINY), "heads": 5}},
        {"limits": {"attribute": 6, "items": 4, "tokens": 24, "colour": 1}},
        {"limits": None},
        {"attributes": ["colour"]},
        {"attributes": 7},
    ],
)
def test_a_configuration_that_does_not_fit_its_weights_is_refused(
    tmp_path: Path, dataset: Dataset, edit: dict[str, Any]
) -> None:
    tuned(tmp_path / "t", dataset)
    path = tmp_path / "t" / "config.json"
    config = {**json.loads(path.read_bytes()), **edit}
    path.write_text(json.dumps({key: one for key, one in config.items() if one is not ...}))
    with pytest.raises(StoreError) as caught:
        load_teacher(tmp_path / "t")
    assert caught.value.code == "teacher.damaged"


def test_a_full_gpu_is_not_taken_for_a_damaged_folder(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    tuned(tmp_path / "t", dataset)
    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(torch.OutOfMemoryError):
        RecformerTeacher.load(tmp_path / "t")


def with_descriptions(path: Path, *, later: bool, extends: tuple[str, int] | None) -> Dataset:
    """Three items without a brand, and later a fourth that has one."""
    table = {
        "item": ["a", "b", "c"],
        "title": ["red lamp", "blue sock", "oak"],
        "category": ["tool", "desk", ""],
        "description": ["steel pine", "red", "socket"],
        "brand": ["", "", ""],
    }
    if later:
        for name, one in zip(table, ("d", "desk", "tool", "blue", "oak"), strict=True):
            table[name].append(one)
    settings = {EXTENDS: [{"dataset": extends[0], "items": extends[1]}]} if extends else {}
    return write_dataset(
        path,
        items=pa.table(table),
        user_ids=None,
        flat=np.array([0, 1, 2, 0, 1, 2, 1, 0]),
        offsets=np.array([0, 4, 8]),
        settings=settings,
    )


def test_old_histories_are_read_as_before_where_a_later_item_brings_another_attribute(
    tmp_path: Path,
) -> None:
    old = with_descriptions(tmp_path / "old", later=False, extends=None)
    made = with_descriptions(tmp_path / "new", later=True, extends=(old.digest, 3))
    assert attributes_of(old) == ("title", "category", "description")
    assert attributes_of(made) == ("title", "brand", "category")
    users, ends = old.training_instances()
    for name, config in (("now", {"attributes": attributes_of(old)}), ("before", {})):
        tuned(tmp_path / name, old, **config)
        teacher = load_teacher(tmp_path / name)
        one, other = (teacher.encode_histories(data, users, ends) for data in (old, made))
        # a folder that does not say them leaves it to the dataset, as it did
        assert np.allclose(one, other, atol=1e-6) == bool(config)
        assert teacher.encode_items(made).shape == (4, TINY.hidden)


def test_another_dataset_is_refused(tmp_path: Path, dataset: Dataset) -> None:
    tuned(tmp_path / "t", dataset)
    teacher = load_teacher(tmp_path / "t")
    other = tiny_dataset(tmp_path / "other")
    for ask in (
        lambda: teacher.encode_items(other),
        lambda: teacher.encode_histories(other, *other.held_out("test")),
    ):
        with pytest.raises(StoreError, match="kd-teacher tune recformer") as caught:
            ask()
        assert caught.value.code == "teacher.foreign"


def test_a_folder_of_another_kind_is_no_recformer(tmp_path: Path, dataset: Dataset) -> None:
    tuned(tmp_path / "t", dataset)
    path = tmp_path / "t" / "config.json"
    path.write_bytes(path.read_bytes().replace(b'"teacher":"recformer"', b'"teacher":"unisrec"'))
    with pytest.raises(
        UsageError, match="holds a unisrec where a recformer was expected"
    ) as caught:
        load_recformer(tmp_path / "t")
    assert caught.value.code == "teacher.other_kind"


def test_a_folder_gives_models_with_what_is_asked_for(tmp_path: Path, dataset: Dataset) -> None:
    expected = tuned(tmp_path / "t", dataset)
    loaded = load_recformer(tmp_path / "t")
    # as it is; for another domain of four items; for more pre-training
    same, anew, headed = loaded.model(), loaded.model(items=4), loaded.model(with_head=True)
    assert torch.equal(same.table(), expected.table())
    assert anew.table().shape == (4, TINY.hidden)
    assert not anew.table().any()
    assert headed.words(torch.zeros(2, TINY.hidden)).shape == (2, TINY.vocabulary)
    for model in (same, anew, headed):
        for name, one in expected.longformer.state_dict().items():
            assert torch.equal(model.longformer.state_dict()[name], one)
    with pytest.raises(RuntimeError, match="without a word head"):
        same.words(torch.zeros(2, TINY.hidden))


def test_words_and_their_decoder_stay_one_through_a_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Recformer(TINY, with_head=True)
    save_recformer(
        tmp_path / "p",
        model,
        model.state_dict(),
        vocabulary=vocabulary(),
        limits=LIMITS,
        stage="pretrained",
    )
    loaded = load_recformer(tmp_path / "p")
    assert "lm_head.decoder.weight" not in loaded.weights  # once is enough
    found = loaded.model(with_head=True)
    for name, one in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], one)
    with pytest.raises(RuntimeError, match="without a target domain"):
        found.table()


def test_more_than_the_tables_hold_is_not_read() -> None:
    TINY.check(Limits(items=7, tokens=65))  # rows 1 to 7; rows 1 to 65
    for limits in (Limits(items=8, tokens=65), Limits(items=7, tokens=66)):
        with pytest.raises(UsageError, match="at most 65 tokens and 7 items") as caught:
            TINY.check(limits)
        assert caught.value.code == "recformer.too_long"


def test_a_store_is_built_with_it(tmp_path: Path, dataset: Dataset) -> None:
    tuned(tmp_path / "t", dataset)
    store = Store.create(
        tmp_path / "store",
        dataset,
        lambda folder, inside: make_plan(folder, inside, PlanSettings(batch_size=8, buckets=2)),
    )
    teacher = load_teacher(tmp_path / "t")
    build(teacher, store)
    assert len(store.scores("recformer")) == len(store.plan)


def test_bfloat16_reading_stays_near_float32(tmp_path: Path, dataset: Dataset) -> None:
    model = tuned(tmp_path / "t", dataset).eval()
    items = tokenise_items(dataset, vocabulary(), LIMITS)
    read = items.histories(dataset, *dataset.held_out("test"))
    exact = F.normalize(encode(model, read), dim=-1)
    rounded = F.normalize(encode(model, read, bfloat16=True), dim=-1)
    assert rounded.dtype == torch.float32
    assert float((exact * rounded).sum(dim=-1).min()) > 0.99
