"""P26: reading needs no network, and nothing is told to anybody: the whole road opens no socket.

Once with every socket reported, and with a network namespace of its own that holds nothing, where the system lets us.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.promises.grounds import in_memory
from tests.promises.ledger import all_kept

ROAD = Path(__file__).with_name("road.py")


def cut_off() -> list[str]:
    """A command that takes the network away, or nothing where there is none that works."""
    command = [found, "-n"] if (found := shutil.which("unshare")) else []
    works = (
        command
        and not subprocess.run([*command, "true"], capture_output=True, check=False).returncode
    )
    return command if works else []


def test_the_whole_road_opens_no_socket() -> None:
    with in_memory() as folder:
        told = folder / "told.json"
        done = subprocess.run(
            [*cut_off(), sys.executable, str(ROAD), str(folder), str(told)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": ""},
            capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        seen = json.loads(told.read_text())
    all_kept(
        "P26",
        ["" if not status else f"{line}: {status}" for line, status in seen["statuses"].items()],
    )
    all_kept("P26", ["; ".join(seen["socket"])])
    all_kept(
        "P08", ["; ".join(seen["process"]), "; ".join(seen["pickle"]), "; ".join(seen["code"])]
    )
    assert len(seen["statuses"]) == 9


def test_the_hook_hears_a_socket_a_process_and_a_pickle() -> None:
    """Or else the test above would prove nothing."""
    script = (
        f"import sys; sys.path.insert(0, {str(ROAD.parent)!r}); import road, pickle, socket, subprocess, datetime\n"
        "sys.addaudithook(road.watch)\n"
        "try: socket.create_connection(('127.0.0.1', 9), 1)\nexcept OSError: pass\n"
        "subprocess.run(['true']); pickle.loads(pickle.dumps(datetime.date(2020, 1, 1)))\n"
        "exec(compile('1', '/tmp/canary.py', 'exec'))\n"
        "print([len(road.seen[name]) > 0 for name in ('socket', 'process', 'pickle', 'code')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[True, True, True, True]"
