"""Weights and unfinished runs on disk: bit for bit, the same bytes, refused when foreign or damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cache.errors import DiskError, StoreError
from encoder.checkpoint import load_checkpoint, load_weights, save_checkpoint, save_weights

IDENTITY = {"dataset": "sha256:1", "seed": 3, "rate": 0.1, "teachers": ["a", "b"]}
STATE = {"epoch": 4, "best": 0.1 + 0.2, "history": [{"ce": 1 / 3}], "finished": False}


class Run:
    """A tiny model, and an optimizer that has made some steps."""

    def __init__(self, seed: int = 0, steps: int = 3, rate: float = 0.01) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=rate, fused=True)
        self.train(steps)
        self.best = {name: value.clone() for name, value in self.model.state_dict().items()}

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.model(torch.tensor([0, 2, 2])).square().sum().backward()
            self.optimizer.step()

    def save(self, path: Path, identity: dict[str, Any] = IDENTITY) -> None:
        save_checkpoint(path, self.model, self.optimizer, self.best, STATE, identity)

    def load(self, path: Path, identity: dict[str, Any] = IDENTITY) -> Any:
        return load_checkpoint(path, self.model, self.optimizer, identity)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a checkpoint."""
    path = tmp_path_factory.mktemp("saved") / "checkpoint.safetensors"
    Run().save(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "checkpoint.safetensors"


def test_weights_come_back_bit_for_bit_whatever_their_type(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = {
        "float": torch.randn(3, 2),
        "half": torch.randn(4).half(),
        "brain": torch.randn(4).bfloat16(),
        "double": torch.randn(2).double(),
        "integer": torch.tensor([-(2**62), 2**62]),
        "flag": torch.tensor([True, False]),
        "scalar": torch.tensor(0.1),
        "empty": torch.empty(0, 3),
        "odd": torch.tensor([torch.nan, torch.inf, -0.0]).nan_to_num(nan=1e-45),
        "across": torch.randn(3, 4).T,
    }
    weights["shared"] = weights["float"][1:]
    card = {"config": {"hidden": 8, "rate": 0.1}, "text": "Größe", "none": None, "list": [1, [2]]}
    save_weights(tmp_path / "w", weights, card)
    found, read = load_weights(tmp_path / "w")
    assert same(found, weights)
    assert read == card


def test_a_stock_reader_opens_the_file(tmp_path: Path) -> None:
    save_weights(tmp_path / "w", {"a": torch.arange(3)}, {"kind": "test"})
    with safe_open(tmp_path / "w", "pt") as file:
        assert list(file.keys()) == ["a"]
        assert torch.equal(file.get_tensor("a"), torch.arange(3))
        assert file.metadata().keys() == {"ckd"}
        assert json.loads(file.metadata()["ckd"])["kind"] == "test"


def test_the_same_content_gives_the_same_bytes(tmp_path: Path, saved: bytes) -> None:
    Run().save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == saved
    # neither the order of names nor what stood there before has a say
    one, other = torch.ones(2), torch.zeros(3)
    save_weights(tmp_path / "again", {"a": one, "b": other}, {"x": 1, "y": 2})
    save_weights(tmp_path / "more", {"b": other, "a": one}, {"y": 2, "x": 1})
    assert (tmp_path / "again").read_bytes() == (tmp_path / "more").read_bytes()


def test_a_run_comes_back_bit_for_bit(tmp_path: Path) -> None:
    run, fresh = Run(), Run(seed=1, steps=0)
    run.save(tmp_path / "c")
    state, best = fresh.load(tmp_path / "c")
    assert state == STATE
    assert same(best, run.best)
    assert same(fresh.model.state_dict(), run.model.state_dict())
    found, kept = fresh.optimizer.state_dict()["state"], run.optimizer.state_dict()["state"]
    assert found.keys() == kept.keys() == {0, 1, 2}
    for number in kept:
        assert kept[number].keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert same(found[number], kept[number])
        assert found[number]["step"].item() == 3  # Adam's count decides its bias correction


def test_a_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole, fresh = Run(steps=3), Run(seed=1, steps=2)
    whole.save(tmp_path / "c")
    fresh.load(tmp_path / "c")
    whole.train(4)
    fresh.train(4)
    assert same(fresh.model.state_dict(), whole.model.state_dict())


def test_the_optimizers_settings_are_those_of_the_present_run(tmp_path: Path) -> None:
    Run(rate=0.01).save(tmp_path / "c")
    other = Run(rate=0.5)
    other.load(tmp_path / "c")
    assert other.optimizer.param_groups[0]["lr"] == 0.5


def test_an_optimizer_that_never_stepped_comes_back_so(tmp_path: Path) -> None:
    Run(steps=0).save(tmp_path / "c")
    other = Run(steps=2)
    other.load(tmp_path / "c")
    assert other.optimizer.state_dict()["state"] == {}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"seed": 4}, "a run with seed 3, this one has 4"),
        ({"rate": 0.2}, "a run with rate 0.1, this one has 0.2"),
        ({"dataset": "sha256:2"}, "a run with dataset sha256:1, this one has sha256:2"),
        ({"teachers": ["b", "a"]}, r"a run with teachers \['a', 'b'\], this one has \['b', 'a'\]"),
        ({"new": 1}, "a run with new None, this one has 1"),
    ],
)
def test_a_foreign_run_is_refused_by_what_differs(
    tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    path = tmp_path / "c"
    Run().save(path)
    other = Run(seed=1)
    before = {name: value.clone() for name, value in other.model.state_dict().items()}
    with pytest.raises(
        StoreError, match=f"{path}: belongs to {told}; choose another --out"
    ) as told_:
        other.load(path, IDENTITY | changed)
    assert told_.value.code == "checkpoint.foreign"
    assert same(other.model.state_dict(), before)


def test_a_setting_that_is_gone_is_refused_too(tmp_path: Path) -> None:
    Run().save(tmp_path / "c", IDENTITY | {"old": 1})
    with pytest.raises(StoreError, match="a run with old 1, this one has None"):
        Run().load(tmp_path / "c")


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(StoreError) as told:
        Run(steps=0).load(path)
    assert told.value.code == "checkpoint.damaged"
    assert str(told.value).startswith(f"{path}: ")
    assert str(told.value).endswith("; remove it and run the same command again.")
    return str(told.value)


@given(st.data())
def test_a_flipped_bit_anywhere_is_refused(saved: bytes, scratch: Path, data: Any) -> None:
    place = data.draw(st.integers(0, len(saved) - 1))
    bent = bytearray(saved)
    bent[place] ^= 1 << data.draw(st.integers(0, 7))
    refused(scratch, bytes(bent))


def test_another_text_of_the_same_number_is_refused(saved: bytes, scratch: Path) -> None:
    told, other = b"0.30000000000000004", b"0.30000000000000005"  # one float64
    assert saved.count(told) == 1
    assert "is not what was written" in refused(scratch, saved.replace(told, other))


def test_a_flipped_bit_in_any_byte_of_the_header_is_refused(saved: bytes, scratch: Path) -> None:
    header = 8 + int.from_bytes(saved[:8], "little")
    for place in range(header):
        bent = bytearray(saved)
        bent[place] ^= 1 << (place % 7)
        scratch.write_bytes(bent)
        with pytest.raises(StoreError) as told:
            load_weights(scratch)
        assert told.value.code == "checkpoint.damaged"


@given(st.data())
def test_a_truncated_or_lengthened_file_is_refused(saved: bytes, scratch: Path, data: Any) -> None:
    cut = data.draw(st.integers(0, len(saved) - 1))
    refused(scratch, saved[:cut])
    refused(scratch, saved + saved[: max(1, cut)])


@given(st.binary(max_size=200))
def test_garbage_is_refused(scratch: Path, data: bytes) -> None:
    refused(scratch, data)


@settings(max_examples=100)
@given(
    st.one_of(
        st.just({}),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=3),
            lambda some: (
                st.lists(some, max_size=2) | st.dictionaries(st.text(max_size=3), some, max_size=2)
            ),
            max_leaves=4,
        ),
    ),
    st.booleans(),
)
def test_any_header_of_someone_elses_is_refused(scratch: Path, value: Any, inside: bool) -> None:
    header = {"__metadata__": {"ckd": json.dumps(value)}} if inside else value
    text = json.dumps(header).encode()
    refused(scratch, len(text).to_bytes(8, "little") + text)


def test_a_card_nested_without_end_is_refused(scratch: Path) -> None:
    text = json.dumps({"__metadata__": {"ckd": "[" * 100_000}}).encode()
    refused(scratch, len(text).to_bytes(8, "little") + text)


def test_another_programs_weights_are_refused(tmp_path: Path) -> None:
    save_file({"model.0.weight": torch.ones(5, 3)}, tmp_path / "w")
    with pytest.raises(StoreError, match="is not a file of weights that this program wrote"):
        load_weights(tmp_path / "w")


def test_two_tensors_that_changed_places_are_refused(tmp_path: Path) -> None:
    weights = {"a": torch.full((4,), 1.0), "b": torch.full((4,), 2.0)}
    save_weights(tmp_path / "w", weights, {})
    data = (tmp_path / "w").read_bytes()
    (tmp_path / "w").write_bytes(data[:-32] + data[-16:] + data[-32:-16])
    with pytest.raises(StoreError, match="its content is not what was written"):
        load_weights(tmp_path / "w")


def test_a_caller_who_checked_the_file_himself_need_not_have_it_checked_again(
    tmp_path: Path,
) -> None:
    save_weights(tmp_path / "w", {"a": torch.tensor([1.0])}, {"kind": "test"})
    data = bytearray((tmp_path / "w").read_bytes())
    data[-1] ^= 0x80  # the sign
    (tmp_path / "w").write_bytes(data)
    with pytest.raises(StoreError):
        load_weights(tmp_path / "w")
    weights, card = load_weights(tmp_path / "w", verify=False)
    assert weights["a"].item() == -1
    assert card == {"kind": "test"}


def test_weights_are_no_unfinished_run(tmp_path: Path) -> None:
    run = Run()
    weights = {f"model.{name}": value for name, value in run.model.state_dict().items()}
    save_weights(tmp_path / "w", weights, {"student": "sasrec"})
    with pytest.raises(StoreError, match="holds weights, not an unfinished run"):
        run.load(tmp_path / "w")


def test_a_run_of_another_shape_is_refused(tmp_path: Path) -> None:
    run = Run()
    run.save(tmp_path / "c")
    other = nn.Sequential(nn.Embedding(6, 3), nn.Linear(3, 2))
    with pytest.raises(StoreError, match="holds tensors that do not fit the model") as told:
        load_checkpoint(tmp_path / "c", other, torch.optim.Adam(other.parameters()), IDENTITY)
    assert told.value.code == "checkpoint.damaged"


def test_a_file_that_is_not_there_is_the_disks_error(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="No such file"):
        load_weights(tmp_path / "nowhere")


def test_what_no_json_can_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "c"
    Run().save(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        Run().save(path, IDENTITY | {"rate": float("nan")})
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["c"]
