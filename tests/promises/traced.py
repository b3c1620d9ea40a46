"""Work in a fork under strace: every system call of it that touches a folder, told; or one of them hit by a signal or error.

strace reaches what no hook in the program can: each `write`, and calls of libraries. It attaches to a fork that has the
imports behind it, so that a run costs a tenth of a second. Whoever uses this must never have run a thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from cache.errors import CkdError, DiskError

__all__ = ["CHANGES", "Call", "available", "calls", "hit", "under"]

#: system calls that change the disk, or in the case of `openat` may
CHANGES = (
    "openat",
    "write",
    "fsync",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "mkdir",
    "rmdir",
    "link",
    "linkat",
    "ftruncate",
    "fchmod",
)

_LINE = re.compile(r"(\d+) +([a-z0-9]+)\((.*)")


@dataclass(frozen=True)
class Call:
    """The `number`-th call of `name` since the fork, in the thread that did the work."""

    name: str
    number: int
    line: str  #: as strace prints it, without the process

    @property
    def writes(self) -> bool:
        """Whether it would change the disk."""
        return self.name != "openat" or bool(re.search(r"O_WRONLY|O_RDWR|O_CREAT", self.line))


def available() -> bool:
    """Whether strace is there."""
    return shutil.which("strace") is not None


def under(work: Callable[[], None], options: Sequence[str]) -> int:
    """Run `work` in a fork that strace is attached to; its exit status, negative if a signal ended it."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        _let_be_traced()
        os.close(there)
        os.read(here, 1)
        _leave(work)
    os.close(here)
    tracer = subprocess.Popen(
        ["strace", "-f", *options, "-p", str(child)], stderr=subprocess.PIPE, text=True
    )
    assert tracer.stderr is not None
    said = tracer.stderr.readline()
    attached = "attached" in said
    os.write(there, b"x")
    os.close(there)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    rest = tracer.stderr.read()
    tracer.wait()
    tracer.stderr.close()
    if not attached:
        raise OSError(f"strace: {said}{rest}")
    return status


def _let_be_traced() -> None:
    """By a process that is no ancestor, which some systems refuse unless asked to (Yama)."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(2**64 - 1), 0, 0, 0)  # PR_SET_PTRACER


def _leave(work: Callable[[], None]) -> NoReturn:
    """Exit as the commands do: 0, or the status of a foreseen error, said in one line."""
    try:
        work()
    except CkdError as error:
        os.write(2, f"{error}  [{error.code}]\n".encode())
        os._exit(error.exit)
    except OSError as error:  # as in console.run
        os.write(2, f"{error.filename}: {error.strerror}\n".encode())
        os._exit(DiskError.exit if error.filename is not None else 1)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)
    os._exit(0)


def calls(work: Callable[[], None], folder: Path, log: Path, *options: str) -> list[Call]:
    """Every change of the disk at or below `folder` that `work` makes, in order."""
    status = under(work, ["-y", "-e", f"trace={','.join(CHANGES)}", *options, "-o", str(log)])
    assert status == 0, status
    seen: Counter[tuple[str, str]] = Counter()
    found = []
    for line in log.read_text().splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        thread, name, rest = match.groups()
        seen[thread, name] += 1
        call = Call(name, seen[thread, name], f"{name}({rest}")
        if str(folder) in rest and call.writes:
            found.append(call)
    return found


def hit(work: Callable[[], None], call: Call, what: str) -> int:
    """Run `work`, and let `what` happen on entry of that call: ``signal=SIGKILL`` or ``error=ENOSPC``."""
    inject = f"inject={call.name}:{what}:when={call.number}"
    return under(work, ["-e", f"trace={call.name}", "-e", inject, "-o", os.devnull])
