"""Which options reach which student: flags, then kd.toml, then --preset, then the student's own defaults."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer

from cache.errors import CkdError, StoreError, UsageError
from encoder.checkpoint import load_weights, save_weights
from encoder.precision import bfloat16_is_fast
from pipeline import cli_student
from pipeline.build import build
from pipeline.fit import fit
from pipeline.student_options import configuration, preset_value, source_value
from pipeline.suite_ground import shop_store
from student.bert4rec import BERT4RecConfig
from student.gru4rec import GRU4RecConfig
from student.registry import BUILT_IN, StudentKind, find_student
from student.sasrec import SASRecConfig
from tests.fakes import TableTeacher, tree

FIT: Any = typer.main.get_command(cli_student.app).commands["fit"]


def context(line: str, **toml: Any) -> Any:
    """What the command would see; `toml` as kd.toml's table would set it."""
    return FIT.make_context("fit", line.split(), default_map=toml)


def configured(line: str, student: str = "sasrec", **toml: Any) -> Any:
    told = context(line, **toml)
    return configuration(told, find_student(student), told.params["preset"])


@pytest.mark.parametrize("student", BUILT_IN)
def test_where_nothing_is_said_a_student_is_its_canonical_self(student: str) -> None:
    assert configured("", student) == find_student(student).config()


def test_what_is_said_reaches_the_student() -> None:
    line = "--hidden 12 --layers 3 --heads 4 --inner 5 --dropout 0.25"
    expected = SASRecConfig(hidden=12, layers=3, heads=4, inner=5, dropout=0.25)
    assert configured(line) == expected
    assert configured("--inner 7", "gru4rec") == GRU4RecConfig(inner=7)


def test_the_papers_preset_is_its_section_4_1_4() -> None:
    assert configured("--preset paper") == SASRecConfig(
        hidden=300, layers=2, heads=2, inner=256, dropout=0.1
    )
    assert configured("--preset paper", "gru4rec") == GRU4RecConfig(
        hidden=300, inner=128, layers=2, dropout=0.1
    )
    told = context("--preset paper")
    assert preset_value(told, "paper", "learning_rate") == 1e-3
    assert preset_value(told, "paper", "weight_decay") == 1e-5


@pytest.mark.parametrize("student", BUILT_IN)
def test_the_preset_is_for_every_student(student: str) -> None:
    config = configured("--preset paper", student)
    assert config.hidden == 300
    for name, value in (("layers", 2), ("heads", 2), ("dropout", 0.1)):
        assert getattr(config, name, value) == value


def test_flags_and_kd_toml_win_over_the_preset() -> None:
    assert configured("--preset paper --hidden 64").hidden == 64
    assert configured("--preset paper", hidden=32).hidden == 32
    for told in (
        context("--preset paper --weight-decay 0.5"),
        context("--preset paper", weight_decay=0.5),
    ):
        assert preset_value(told, "paper", "weight_decay") == 0.5
    # and so does a flag that says what the default is anyway
    told = context("--preset paper --weight-decay 0.0")
    assert preset_value(told, "paper", "weight_decay") == 0.0
    assert preset_value(context("--learning-rate 0.5"), None, "learning_rate") == 0.5


def test_an_option_that_a_student_does_not_know_is_refused_when_typed() -> None:
    with pytest.raises(UsageError) as caught:
        configured("--heads 2", "gru4rec")
    assert str(caught.value) == (
        "--heads means nothing to gru4rec, which knows --dropout, --hidden, --inner, --layers; leave it away."
    )
    assert caught.value.code == "fit.other_option"
    # kd.toml speaks of all students, a preset too
    assert configured("", "gru4rec", heads=4) == GRU4RecConfig()


def test_what_one_student_alone_has_is_set_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    told = configured("--set mask_ratio=0.25 --set ft_ratio=1 --hidden 12", "bert4rec")
    assert told == BERT4RecConfig(mask_ratio=0.25, ft_ratio=1.0, hidden=12)
    assert (
        type(told.ft_ratio) is float
    )  # a run knows its settings by their JSON, where 1 is not 1.0
    assert configured("--set depth=1", "deepfm").depth == 1
    assert configured("--set reg_weight=1e-3", "lightgcn").reg_weight == 1e-3
    # the last one counts, and what is typed counts instead of what kd.toml says
    assert configured("--set ft_ratio=0 --set ft_ratio=0.75", "bert4rec").ft_ratio == 0.75
    told = configured("--set ft_ratio=0", "bert4rec", set_=["mask_ratio=0.5"])
    assert told == BERT4RecConfig(ft_ratio=0.0)
    # kd.toml speaks of all students; a name that was meant otherwise is not lost without a word
    assert not capsys.readouterr().err
    assert configured("", "bert4rec", set_=["depth=4", "ft_ratio=0"]).ft_ratio == 0
    assert (
        capsys.readouterr().err
        == "kd.toml: depth of its `set` means nothing to bert4rec, left away\n"
    )
    assert configured("", "sasrec", set_=["depth=4"]) == SASRecConfig()


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A plug-in's settings, of every type that there may be."""

    warm: bool = False
    depth: int = 1
    rate: float = 0.5
    pool: str = "mean"
    widths: tuple[int, ...] = field(default_factory=lambda: (3, 4))
    cut: int | None = None

    def __post_init__(self) -> None:
        if self.pool not in ("mean", "last"):
            raise ValueError(f"pool is {self.pool!r}, mean or last was expected")


FOREIGN = StudentKind(name="foreign", title="Foreign", config=Foreign, make=lambda *_: None)


def test_a_plug_ins_settings_are_set_alike() -> None:
    line = "--set warm=true --set depth=2 --set rate=1 --set pool=last --set widths=[5] --set cut=7"
    told = configuration(context(line), FOREIGN, None)
    assert told == Foreign(warm=True, depth=2, rate=1.0, pool="last", widths=[5], cut=7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("warm=1", "true or false"),
        ("depth=true", "a whole number"),
        ("depth=1.0", "a whole number"),
        ("rate=true", "a number"),
        ("rate=much", "a number"),
        ("rate=NaN", "a number"),
        ("rate=-Infinity", "a number"),
        ("rate=1" + "0" * 400, "a number"),
        ("rate=", "a number"),
        ("widths=[", "a JSON value"),
        ("widths=" + "[" * 100_000, "a JSON value"),
        ("cut=null", "a JSON value"),
        ("rate", "name=value"),
        ("=1", "name=value"),
        ("hidden=3", "`--hidden 3` says that"),
    ],
)
def test_a_value_of_another_type_is_refused(given: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        configuration(context(f"--set {given}"), FOREIGN, None)
    assert str(caught.value).startswith(f"--set {given}: {said}")
    assert caught.value.code == "fit.bad_setting"


def test_a_setting_that_a_student_does_not_know_is_refused_when_typed() -> None:
    for line, student, known in (
        ("--set depth=2", "bert4rec", "ft_ratio, mask_ratio"),
        ("--set max_length=9", "bert4rec", "ft_ratio, mask_ratio"),
        ("--set source_items=9", "sasrec", "no such setting"),
    ):
        with pytest.raises(UsageError, match=f"{student}, which knows {known}; leave") as caught:
            configured(line, student)
        assert caught.value.code == "fit.other_option"


@pytest.mark.parametrize(
    ("student", "given"),
    [
        ("bert4rec", "mask_ratio=1.01"),
        ("bert4rec", "ft_ratio=-0.01"),
        ("recguru", "reconstruct_weight=-1"),
        ("recguru", "adversary_weight=-1"),
        ("recguru", "reconstruct_ratio=2"),
        ("lightgcn", "reg_weight=-1"),
        ("deepfm", "depth=0"),
        ("deepfm", "depth=65"),
    ],
)
def test_a_value_that_the_student_cannot_take_is_refused(student: str, given: str) -> None:
    with pytest.raises(UsageError, match=f"{student}: {given.partition('=')[0]} is ") as caught:
        configured(f"--set {given}", student)
    assert caught.value.code == "fit.bad_setting"
    with pytest.raises(UsageError, match="foreign: pool is 'max', mean or last was expected"):
        configuration(context("--set pool=max"), FOREIGN, None)


def test_bfloat16_is_asked_for_on_a_processor(toys: Path) -> None:
    fitted("--no-distill --out plain")
    fitted("--no-distill --out rounded --bfloat16")
    plain, rounded = (
        json.loads(Path(f"{out}/sasrec-base/seed-0/run.json").read_bytes())
        for out in ("plain", "rounded")
    )
    assert [one["identity"]["train.amp"] for one in (plain, rounded)] == [False, True]
    assert plain["history"][0]["ce"] != rounded["history"][0]["ce"]
    assert plain["history"][0]["ce"] == pytest.approx(rounded["history"][0]["ce"], rel=0.01)


@pytest.mark.parametrize(("major", "fast"), [(7, False), (8, True)])
def test_a_gpu_has_bfloat16_from_its_eighth_generation_on(
    major: int, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # older ones take bfloat16 too, slower than float32
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    gpu = SimpleNamespace(major=major)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    assert bfloat16_is_fast("cuda:0") is fast


def test_batches_of_another_size_than_the_presets_are_told(
    toys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = "--preset paper: batches hold 16 instances here, 512 in the paper; `kd-cache plan"
    fitted("--no-distill --preset paper --heads 1")
    assert note in " ".join(capsys.readouterr().err.split())
    fitted("--no-distill --batch-size 512 --preset paper --out fresh --heads 1")
    assert "--preset paper" not in capsys.readouterr().err


def test_what_was_set_is_trained_and_is_another_run(toys: Path) -> None:
    fitted("--student deepfm --no-distill --set depth=1")
    weights = load_weights(toys / "runs/toys/deepfm-base/seed-0/model.safetensors")[0]
    assert not [name for name in weights if name.startswith("layer.")]
    assert identity("deepfm-base")["student.depth"] == 1
    with pytest.raises(StoreError, match=r"student\.depth 1, this one would have 3") as caught:
        fitted("--student deepfm --no-distill")
    assert caught.value.code == "run.foreign"


def test_a_source_in_kd_toml_is_for_students_of_two_domains() -> None:
    told = context("", source="data/games")
    assert source_value(told, find_student("recguru")) == Path("data/games")
    assert source_value(told, find_student("sasrec")) is None
    # typed, it is told further, to be refused
    typed = context("--source data/games")
    assert source_value(typed, find_student("sasrec")) == Path("data/games")
    assert source_value(context(""), find_student("recguru")) is None


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to type in, with a store of two teachers and a checkpoint of each."""
    (tmp_path / "cache").mkdir()
    store = shop_store(tmp_path / "cache/toys")
    for seed, name in enumerate(["a", "a@1", "b", "b@1"]):
        build(TableTeacher(name, seed=seed), store, keep="both")
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)  # the command sets it for the whole process


def fitted(line: str, **toml: Any) -> None:
    """`kd-student fit` in small, in this process."""
    sizes = "--hidden 8 --epochs 1 --threads 1 --device cpu"
    FIT.main([*sizes.split(), *line.split()], standalone_mode=False, default_map=toml)


def identity(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(f"runs/toys/{kind}/seed-0/run.json").read_bytes())
    return found["identity"]


@pytest.mark.parametrize("join", ["consistency", "hetcomp"])
def test_which_teacher_is_named_first_decides_nothing(
    join: str, toys: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor whose state is whose in a run that goes on."""
    heard: list[list[str]] = []

    def spy(store: Any, readers: Any, *args: Any, **more: Any) -> Any:
        heard.append([one.name for one in readers])
        return fit(store, readers, *args, **more)

    monkeypatch.setattr(cli_student, "fit", spy)
    given = f"--join {join} {'--top 4' if join == 'hetcomp' else '--weights b=3,a=1'}"
    fitted(f"{given} --teacher b --teacher a")
    if join == "consistency":
        assert identity("sasrec-distilled")["join.weights"] == [0.25, 0.75]
    for line in ("--teacher a --teacher b", ""):
        capsys.readouterr()
        fitted(f"{given} {line}")
        assert "trained before, nothing to do" in capsys.readouterr().err
    way = [["a", "b"], ["a@1", "a", "b@1", "b"]]
    assert heard == 3 * [way[join == "hetcomp"]]


@pytest.mark.parametrize(
    ("line", "toml", "weight"),
    [
        ("--student sasrec", {}, 5.0),
        ("--student lightgcn", {}, 0.2),  # its own
        ("--student lightgcn", {"kd_weight": 3}, 3.0),
        ("--student lightgcn --kd-weight 0", {"kd_weight": 3}, 0.0),
    ],
)
def test_a_student_may_have_a_weight_of_its_own_for_what_teachers_say(
    toys: Path, line: str, toml: dict[str, Any], weight: float
) -> None:
    fitted(line, **toml)
    assert identity(f"{line.split()[1]}-distilled")["train.kd_weight"] == weight


def test_a_best_that_patience_kept_early_is_told_as_what_it_may_be(
    toys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # nothing is learnt, so that no epoch is better than the first, whatever the machine's rounding
    fitted("--no-distill --learning-rate 0 --patience 2 --epochs 30 --out early")
    told = json.loads(Path("early/sasrec-base/seed-0/run.json").read_bytes())
    assert (told["best_epoch"], told["epochs"]) == (0, 3)
    note = "so early a best may be chance; --patience 8 with another --out would tell"
    assert note in capsys.readouterr().err
    # that all epochs were trained is no chance
    fitted("--no-distill --patience 2 --epochs 2 --out ended")
    assert note not in capsys.readouterr().err


def test_a_source_in_kd_toml_does_not_stop_a_student_of_one_domain(toys: Path) -> None:
    fitted("--no-distill", source="nosuch")
    with pytest.raises(UsageError, match="--source means nothing to sasrec"):
        fitted("--no-distill --source cache/toys/dataset")


def test_comparing_trains_nothing_where_its_second_half_is_refused(toys: Path) -> None:
    def comparing(line: str, code: str) -> None:
        before = tree(toys)
        with pytest.raises(CkdError) as caught:
            fitted(f"--compare {line}")
        assert caught.value.code == code
        assert tree(toys) == before

    comparing("--student fm --kd-items all", "fit.own_loss")
    fitted("--kd-weight 3")
    comparing("", "run.foreign")
    # a run that was only begun is known beforehand too
    run = toys / "runs/toys/sasrec-distilled/seed-0"
    weights = load_weights(run / "model.safetensors")[0]
    told = {"state": {}, "identity": identity("sasrec-distilled")}
    (run / "run.json").unlink()
    save_weights(run / "checkpoint.safetensors", weights, told)
    comparing("", "checkpoint.foreign")


def test_a_width_that_the_heads_do_not_divide_is_refused() -> None:
    for line in ("--hidden 13", "--heads 3", "--preset paper --heads 7"):
        with pytest.raises(UsageError, match="is not a multiple of --heads") as caught:
            configured(line)
        assert caught.value.code == "fit.bad_sizes"


def test_the_help_names_every_built_in_student() -> None:
    (option,) = [one for one in FIT.params if one.name == "student"]
    assert all(name in option.help for name in BUILT_IN)


def test_an_unknown_student_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="known are sasrec, gru4rec"):
        find_student("sasrek")
