"""What the programs say of themselves, and what README and errors tell people to type: all of it exists."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.shell import quick

ROOT = Path(__file__).parents[2]
MAKE = runpy.run_path(str(ROOT / "docs/make_cli.py"))
PROGRAMS: dict[str, Any] = MAKE["programs"]()
LINES = [f"{name} {verb}" for name, program in PROGRAMS.items() for verb in program.commands]


def command(line: str) -> Any:
    name, verb = line.split()
    return PROGRAMS[name].commands[verb]


def options(line: str) -> set[str]:
    """The long options of a command."""
    return {
        option
        for parameter in command(line).params
        for option in [*parameter.opts, *parameter.secondary_opts]
        if option.startswith("--")
    } | {"--help"}


@pytest.mark.parametrize("line", [*PROGRAMS, *LINES])
def test_help_fits_80_columns_and_is_what_the_page_shows(line: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    said = quick(home, f"{line} --help").out
    assert said.startswith(f"Usage: {line} ")
    assert all(len(row) <= 80 for row in said.splitlines())
    assert said.rstrip() == MAKE["helps"]()[line].rstrip()


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_alone_prints_its_help(name: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    assert quick(home, name).out == quick(home, f"{name} --help").out
    for verb in PROGRAMS[name].commands:
        (row,) = re.findall(rf"^  {verb} .*$", quick(home, name).out, re.MULTILINE)
        assert not row.endswith("...")  # cut off in the middle of a word


@pytest.mark.parametrize("line", LINES)
def test_help_explains_every_option(line: str) -> None:
    said = MAKE["helps"]()[line]
    for option in options(line):
        assert re.search(rf"{option}\b", said), option
    for parameter in command(line).params:
        assert parameter.help, f"{line}: {parameter.name} is not explained"


def test_the_page_of_all_commands_is_current() -> None:
    assert (ROOT / "docs/cli.md").read_text() == MAKE["page"](), "run `python docs/make_cli.py`"


def typed_in(path: Path) -> list[str]:
    """The command lines of a page's code blocks, comments cut off."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line.partition(" #")[0].strip() for line in lines if line.startswith("kd-")]


def test_the_commands_of_the_readme_are_read_without_complaint() -> None:
    lines = typed_in(ROOT / "README.md")
    assert len(lines) >= 5
    for line in lines:
        name, verb, *arguments = shlex.split(line)
        context = command(f"{name} {verb}").make_context(f"{name} {verb}", arguments)
        assert context.params


def told_to_type() -> list[tuple[str, str]]:
    """(file, command line) of every `kd-...` that a message or page of ours puts between backticks."""
    sources = [
        path
        for package in ("cache", "encoder", "teachers", "student", "pipeline")
        for path in sorted((ROOT / package).rglob("*.py"))
    ]
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = []
    for path in [*sources, *pages]:
        text = re.sub(r'"\n\s*f?"', "", path.read_text())  # strings that go on in the next line
        text = text.replace("\n", " ")
        found += [(path.name, line) for line in re.findall(r"`(kd-[a-z]+ [^`]+)`", text)]
    return found


def test_every_command_that_is_told_to_type_exists() -> None:
    found = told_to_type()
    assert len(found) > 20
    for where, line in found:
        name, verb, *rest = line.replace("(again)", "").split()
        for one in verb.split("|"):
            known = {"--help"} if one.startswith("-") else PROGRAMS[name].commands
            assert one in known or one.startswith(("{", "<")), f"{where}: {line}"
            if one in PROGRAMS[name].commands:
                said = set(re.findall(r"--[a-z][a-z-]*", " ".join(rest)))
                assert said <= options(f"{name} {one}"), f"{where}: {line}"
