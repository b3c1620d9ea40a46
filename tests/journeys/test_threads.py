"""`--threads` of the commands that compute: what torch works with by the time they are done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import typer

from cache.errors import StoreError
from pipeline import cli_cache, cli_student, cli_teacher
from tests.journeys.conftest import Road

RUN = "runs/toys/sasrec-distilled/seed-0"


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Leaves the other tests the threads that they had."""
    had = torch.get_num_threads()
    yield
    torch.set_num_threads(had)


@pytest.mark.parametrize(
    ("app", "line"),
    [
        (cli_cache.app, "build --teacher unisrec --dry-run"),
        (cli_cache.app, "extend cache/toys --data data/toys --out cache/later --dry-run"),
        (cli_teacher.app, "evaluate unisrec"),
        (cli_student.app, f"evaluate {RUN}"),
        (cli_student.app, f"recommend {RUN} --out {{tmp}}/lists.csv"),
    ],
)
def test_a_command_computes_on_the_threads_that_it_was_given(
    road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, app: typer.Typer, line: str
) -> None:
    monkeypatch.chdir(road.path)
    words = line.format(tmp=tmp_path).split()
    for said, threads in (("--threads 3", 3), ("--threads 2", 2), ("--threads 0", 2), ("", 2)):
        refused = (
            pytest.raises(StoreError, match="nothing that") if "extend" in words else nullcontext()
        )
        with refused:  # a log without news
            app([*words, *said.split()], standalone_mode=False)
        assert torch.get_num_threads() == threads


@pytest.mark.parametrize("threads", ["1025", "99999999999", "-1"])
def test_more_threads_than_any_machine_has_are_refused(threads: str) -> None:
    """Torch and OpenMP crash on them."""
    with pytest.raises(typer.TyperException) as caught:
        cli_cache.app(["build", "--teacher", "x", "--threads", threads], standalone_mode=False)
    assert caught.value.format_message().startswith("Invalid value for '--threads'")
