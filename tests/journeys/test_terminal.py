"""On a terminal of 80 columns: a moving table while it works, what matters when it is done."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from pathlib import Path

from tests.journeys.conftest import Road
from tests.journeys.shell import LIMIT, environment, words

COLUMNS = 80


def on_terminal(folder: Path, line: str) -> list[str]:
    """Run a command on a pseudo-terminal; every state of a line that a person could have seen."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    env = environment(TERM="xterm-256color")
    del env["COLUMNS"]
    process = subprocess.Popen(
        words(line), cwd=folder, env=env, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            more = os.read(ours, 65536)
        except OSError:  # Linux says EIO when the other side is gone
            break
        if not more:
            break
        shown += more
    os.close(ours)
    assert process.wait(LIMIT) == 0, shown.decode()
    states = re.split(r"\r|\n|\x1b\[2K|\x1b\[1A", shown.decode())
    plain = (re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", state).rstrip() for state in states)
    return [state for state in plain if state]


def test_a_terminal_sees_progress_and_the_result_within_80_columns(
    road: Road, tmp_path: Path
) -> None:
    # the table is drawn four times a second, and five of these epochs may take less than that
    line = (
        f"kd-student fit --cache cache/toys --out {tmp_path} --epochs 30 --patience 30 --threads 1"
    )
    states = on_terminal(road.path, line)
    assert not any(": epoch " in state for state in states)  # those are for logs
    moving = [state for state in states if state.startswith("distilled ")]
    # stage, epoch, both losses, the curve, the best, instances a second, the time left at most
    live = r"^distilled +(stage \d/4|round 1|begins) .*\d \d\.\d{3} +\d\.\d{3} [▁-█]+ +0\.\d{4} +[\d,]+ +\d+ s$"
    assert any(re.search(live, state) for state in moving)
    assert re.search(r"^distilled +done +34 ", moving[-1])
    heads = [state for state in states if " inst./s " in state]
    assert heads
    assert all(len(state) <= COLUMNS for state in [*heads, *moving])
    tables = [state for state in states if state[0] in "┏┃┡│└"]
    assert len(tables) == 11  # three lines of head, seven metrics, one of foot
    assert all(len(state) <= COLUMNS and "…" not in state for state in tables)
    assert "34 epochs, the best " in "".join(states)


def test_a_pager_that_stops_reading_is_no_accident(road: Road) -> None:
    show = subprocess.Popen(
        words("kd-cache show"),
        cwd=road.path,
        env=environment(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert show.stdout is not None
    assert show.stderr is not None
    show.stdout.close()  # as `| head -0` does
    assert show.stderr.read() == ""
    show.stderr.close()
    assert show.wait(LIMIT) != 0
