"""Which options reach which student: flags, then kd.toml, then --preset, then the student's own defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from cache.errors import UsageError
from pipeline import cli_student
from pipeline.student_options import configuration, preset_value
from student.gru4rec import GRU4RecConfig
from student.registry import BUILT_IN, find_student
from student.sasrec import SASRecConfig

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
