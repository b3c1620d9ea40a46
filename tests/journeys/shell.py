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
from unittest import mock

SCRIPTS = Path(sys.executable).parent
LIMIT = 240  # seconds; a guard against hanging, not a claim

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
    fork = forked(folder, line, **env)
    fork.join(LIMIT)
    if fork.exitcode is None:
        fork.kill()
        raise TimeoutError(line)
    out, err = (path.read_text() for path in _outputs(folder))
    return _checked(line, Done(fork.exitcode, out, err), expect)


def forked(folder: Path, line: str, err: Any = None, **env: str) -> Any:
    """A command on its way in a fork: a multiprocessing.Process."""
    out, beside = _outputs(folder)
    fork = _forks.Process(
        target=_in_fork,
        args=(words(line), folder, environment(**env), out, err or beside),
        daemon=True,
    )
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):  # the server that forks is started once
        fork.start()
    return fork


def cells(text: str) -> list[list[str]]:
    """The rows of the printed tables, head rows too."""
    rows = [line for line in text.splitlines() if line[:1] in {"│", "┃"}]
    return [[cell.strip() for cell in row.strip("│┃").replace("┃", "│").split("│")] for row in rows]


class Started:
    """A command on its way, its standard error to be read line by line."""

    def __init__(self, folder: Path, line: str, *, script: bool) -> None:
        self._script: subprocess.Popen[str] | None = None
        if script:
            self._script = subprocess.Popen(
                words(line),
                cwd=folder,
                env=environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            assert self._script.stderr is not None
            self._said = self._script.stderr
        else:
            here, there = _forks.Pipe(duplex=False)
            self._fork = forked(folder, line, there)
            there.close()
            self._said = os.fdopen(os.dup(here.fileno()))
            here.close()

    def until(self, pattern: str) -> None:
        """Read up to the first line that `pattern` is found in."""
        read = ""
        for line in self._said:
            read += line
            if re.search(pattern, line):
                return
        raise AssertionError(f"it ended before {pattern!r} came: {read}")

    def stop(self, number: signal.Signals) -> tuple[int, list[str]]:
        """Send a signal; (exit status, what it still said)."""
        process = self._script or self._fork
        os.kill(process.pid, number)
        lines = self._said.read().splitlines()
        self._said.close()
        if self._script:
            return self._script.wait(LIMIT), lines
        self._fork.join(LIMIT)
        return self._fork.exitcode, lines

    def end(self) -> None:
        """Kill it if it is still there."""
        process = self._script or self._fork
        process.kill()
        (self._script.wait if self._script else self._fork.join)(LIMIT)
        self._said.close()


@contextmanager
def started(folder: Path, line: str, *, script: bool = False) -> Iterator[Started]:
    """A command that is killed at the end of the block: the installed script, or a fork."""
    command = Started(folder, line, script=script)
    try:
        yield command
    finally:
        command.end()


def _outputs(folder: Path) -> tuple[Path, Path]:
    return folder.parent / f".{folder.name}.out", folder.parent / f".{folder.name}.err"


def _checked(line: str, done: Done, expect: int | None) -> Done:
    assert "Traceback" not in done.err, done.err
    if expect is not None:
        assert done.status == expect, f"{line}: exit {done.status}\n{done.out}{done.err}"
    return done


def _in_fork(argv: list[str], folder: Path, env: Mapping[str, str], out: Path, err: Path) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    for number, target in ((0, Path(os.devnull)), (1, out), (2, err)):
        if isinstance(target, Path):
            flags = os.O_RDWR | os.O_CREAT | (os.O_TRUNC if number else 0)
            os.dup2(os.open(target, flags, 0o600), number)
        else:  # a pipe
            os.dup2(target.fileno(), number)
            target.close()
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")
