"""Lines for a log and numbers for a person; what a clock says is given."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pipeline import console
from pipeline.config import PROGRAMS


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "0 s"),
        (48, "48 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599, "59 min 59 s"),
        (7500, "2 h 05 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert console.duration(seconds) == said


@pytest.mark.parametrize(
    ("length", "said"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (105_300_000, "105.3 MB"), (2e15, "2000.0 TB")],
)
def test_sizes(length: float, said: str) -> None:
    assert console.size(length) == said


def test_counts_have_the_right_number() -> None:
    assert console.count(1, "batch", "batches") == "1 batch"
    assert console.count(1250, "batch", "batches") == "1,250 batches"
    assert console.count(0, "epoch") == "0 epochs"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_ten_seconds_with_the_time_left(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with console.progress("toys") as report:
        for second in range(26):
            clock[0] = second
            report(second * 2, 400, "scores")
    # two a second: after 10 s 20 are done and 380 are left, which take 190 s
    assert capsys.readouterr().err.splitlines() == [
        "toys: 20 of 400, 3 min 10 s left, scores",
        "toys: 40 of 400, 3 min 00 s left, scores",
    ]


def test_a_new_stage_has_a_pace_of_its_own(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with console.progress("toys") as report:
        for second in range(9):
            clock[0] = second
            report(second, 8, "items")  # one a second
        for second in range(9, 21):
            clock[0] = second
            report((second - 9) * 0.5, 60, "")  # half an epoch a second
    # 10 s after the first report 0.5 of 60 is done in 1 s; 59.5 are left, which take 119 s
    assert capsys.readouterr().err.splitlines() == [
        "toys: 0.5 of 60, 1 min 59 s left",
        "toys: 5.5 of 60, 1 min 49 s left",
    ]


def test_what_is_for_a_log_is_silent_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console.log("one")
    monkeypatch.setattr(console._err, "_force_terminal", True)
    console.log("two")
    assert capsys.readouterr().err == "one\n"


def test_brackets_in_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Rich would take [bold] for markup."""
    console.table("runs/[bold]x", ["", "[red]"], [["[i]", "1"]], caption="[b]c")
    console.note("[bold]y")
    out, err = capsys.readouterr()
    assert "runs/[bold]x" in out
    assert "[red]" in out
    assert "[i]" in out
    assert "[b]c" in out
    assert err == "[bold]y\n"


def test_a_table_too_wide_for_its_place_runs_over_and_loses_no_number(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Twelve columns of nine letters and the lines between want more than the 100 of a pipe."""
    names = [f"teacher-{n:02}" for n in range(12)]
    numbers = [f"0.{n:08}" for n in range(12)]
    console.table("x", ["", *names], [["all pairs", *numbers]])
    found = capsys.readouterr().out.split()
    assert [word for word in found if word.startswith("teacher")] == names
    assert [word for word in found if word.startswith("0.")] == numbers


def test_a_long_head_of_several_words_leaves_the_first_column_its_words(
    capsys: pytest.CaptureFixture[str],
) -> None:
    head = " ".join(["word"] * 30)
    console.table("x", ["", head, "p"], [["all pairs", "0.5", "0.25"]])
    lines = capsys.readouterr().out.splitlines()
    assert sum(head in line for line in lines) == 1
    assert sum(word in line for line in lines for word in ("all", "pairs")) == 2


def test_prose_is_wrapped_and_what_stands_beside_it_is_whole(
    capsys: pytest.CaptureFixture[str],
) -> None:
    title = "Puncture Repair Kit with Glue, Patches and a Tyre Lever, for Road and Mountain Bikes"
    console.table("x", ["user", "item", "title"], [["U1", "B004F6AEG", title]], prose="title")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) == 100
    cells = [line.strip("│").split("│") for line in lines if line.startswith("│")]
    assert [cell.strip() for cell in cells[0][:2]] == ["U1", "B004F6AEG"]
    assert " ".join(row[2].strip() for row in cells) == title


def said(line: str) -> tuple[int, str]:
    """Exit status and standard error of a line of shell."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", line], env=env, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


def test_a_result_that_cannot_be_said_is_one_line_and_exit_5() -> None:
    assert said("kd-cache --help >/dev/full") == (
        5,
        "kd-cache: standard output or a file: No space left on device; mend that and try again.  [disk.refused]\n",
    )
    assert said("kd-cache show >&-") == (
        5,
        "kd-cache: standard output: is closed; direct it to a file or to /dev/null.  [disk.refused]\n",
    )


def test_wrong_options_have_a_code_too() -> None:
    status, line = said("kd-cache plan --buckets 99999999999999999999 --dry-run")
    assert status == 2
    assert line.startswith("kd-cache plan: Invalid value for '--buckets': ")
    assert line.endswith("; try `kd-cache plan --help`.  [config.bad_option]\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_heard_before_the_imports(number: signal.Signals) -> None:
    """Where importing a program takes as long as one likes."""
    line = (
        "import os, signal, sys, types\n"
        "from pipeline import entry\n"
        "assert not {'typer', 'numpy', 'rich'} & set(sys.modules)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"class Slow:\n    def __getattr__(self, name): os.kill(os.getpid(), {int(number)})\n"
        "sys.modules['pipeline.cli_cache'] = Slow()\n"
        "entry.kd_cache()\n"
    )
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=False)
    word = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert done.stderr == f"kd-cache: stopped by {word}; the same command goes on from here.\n"
    assert done.returncode == 128 + number


def test_the_scripts_begin_there() -> None:
    document = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text())
    assert document["project"]["scripts"] == {
        name: f"pipeline.entry:{name.replace('-', '_')}" for name in PROGRAMS
    }


def test_the_end_waits_and_tidies_but_does_not_take_python_apart() -> None:
    line = (
        "import atexit, os, signal, sys, threading, time, types\n"
        "from pipeline import entry\n"
        "class Left:\n    def __del__(self): print('taken apart')\n"
        "left = Left()\n"
        "def late():\n    time.sleep(0.3)\n    print('thread')\n"
        "def tidy():\n    os.kill(os.getpid(), signal.SIGINT)\n    print('tidied')\n"
        "def main():\n"
        "    threading.Thread(target=late).start()\n"
        "    atexit.register(tidy)\n"
        "    print('done')\n"
        "    raise SystemExit(3)\n"
        "sys.modules['pipeline.cli_cache'] = types.SimpleNamespace(main=main)\n"
        "entry.kd_cache()\n"
    )
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n") == ["done", "thread", "tidied", ""]
    assert done.stderr == ""
    assert done.returncode == 3
