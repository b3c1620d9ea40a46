"""Commands as a person types them, in processes of their own.

`typed` starts the installed console script anew (two or three seconds, most of it `import torch`). `quick` runs the very same
script in a fork of a process that has the imports behind it, for the many commands that only have to be refused.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPTS = Path(sys.executable).parent
LIMIT = 120  # seconds; a guard against hanging, not a claim

_forks: Any = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    ["__main__", "pipeline.cli_cache", "pipeline.cli_teacher", "pipeline.cli_student"]
)


@dataclass(frozen=True)
class Done:
    """What came of a command."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Standard error, line by line."""
        return self.err.splitlines()


def environment(**more: str) -> dict[str, str]:
    """One thread and 80 columns, whatever the machine; scripts found by name."""
    base = {name: value for name, value in os.environ.items() if not name.startswith("KD_")}
    path = f"{SCRIPTS}{os.pathsep}{base.get('PATH', '')}"
    return {**base, "PATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "80", **more}


def words(line: str) -> list[str]:
    """`kd-cache show` as a process would get it, with the script's full path."""
    name, *arguments = shlex.split(line)
    return [str(SCRIPTS / name), *arguments]


def typed(folder: Path, line: str, *, expect: int | None = 0, **env: str) -> Done:
    """Run a line in `folder` through the installed script."""
    done = subprocess.run(
        words(line),
        cwd=folder,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    return _checked(line, Done(done.returncode, done.stdout, done.stderr), expect)


def quick(folder: Path, line: str, *, expect: int | None = 0, **env: str) -> Done:
    """The same in a fork; what it prints goes through files beside `folder`."""
    out, err = (folder.parent / f".{folder.name}.{end}" for end in ("out", "err"))
    fork = _forks.Process(
        target=_in_fork, args=(words(line), folder, environment(**env), out, err), daemon=True
    )
    fork.start()
    fork.join(LIMIT)
    if fork.exitcode is None:
        fork.kill()
        raise TimeoutError(line)
    return _checked(line, Done(fork.exitcode, out.read_text(), err.read_text()), expect)


@contextmanager
def started(folder: Path, line: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """A command on its way, its standard error to be read line by line; killed at the end."""
    process = subprocess.Popen(
        words(line),
        cwd=folder,
        env=environment(**env),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=LIMIT)


def until(process: subprocess.Popen[str], pattern: str) -> str:
    """Read standard error up to the first line that `pattern` is found in."""
    assert process.stderr is not None
    read = ""
    for line in process.stderr:
        read += line
        if re.search(pattern, line):
            return line
    raise AssertionError(f"it ended with {process.wait(LIMIT)} before {pattern!r} came: {read}")


def stop(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, list[str]]:
    """Send a signal; (exit status, what it still said)."""
    process.send_signal(number)
    _, err = process.communicate(timeout=LIMIT)
    return process.returncode, err.splitlines()


def _checked(line: str, done: Done, expect: int | None) -> Done:
    assert "Traceback" not in done.err, done.err
    if expect is not None:
        assert done.status == expect, f"{line}: exit {done.status}\n{done.out}{done.err}"
    return done


def _in_fork(argv: list[str], folder: Path, env: Mapping[str, str], out: Path, err: Path) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    for number, path in ((0, Path(os.devnull)), (1, out), (2, err)):
        flags = os.O_RDWR | os.O_CREAT | (os.O_TRUNC if number else 0)
        os.dup2(os.open(path, flags, 0o600), number)
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")
