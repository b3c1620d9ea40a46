"""Run by the tests of P01 and P10: builds a store over and over under strace, hit at one system call, then builds again.

    python trace_points.py FOLDER KEEP STEP WHAT...    every STEP-th call that changes the store, WHAT in turn

WHAT is ``signal=SIGKILL`` or ``error=ENOSPC`` and the like. Prints JSON: a complaint, or "", for each point that was tried.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipeline.build import Keep
from tests.fakes import tiny_store, tree
from tests.pipeline.kill_points import in_child
from tests.promises import traced
from tests.promises.stores import copied, small_build, small_pieces

KILL = "signal=SIGKILL"


def main(folder: Path, keep: Keep, step: int, whats: list[str]) -> None:
    small_pieces()
    clean, path, said = folder / "clean", folder / "store", folder / "said"

    def prepare() -> None:
        tiny_store(clean)

    def work() -> None:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        small_build(path, keep)

    def afresh() -> None:
        """As before any build; the log beside the store too, whose first line makes two calls more."""
        path.with_name(f"{path.name}.log").unlink(missing_ok=True)
        copied(clean, path)

    assert in_child(prepare) == 0
    afresh()
    found = traced.calls(work, path, folder / "log")
    wanted = tree(path)
    complaints = []
    for number, call in enumerate(found[::step]):
        what = whats[number % len(whats)]
        afresh()
        status = traced.hit(work, call, what)
        complaint = _killed(status) if what == KILL else _told(status, said, path, wanted)
        if not complaint and in_child(work) != 0:
            complaint = f"did not go on: {said.read_text()}"
        if not complaint and (odd := sorted(set(tree(path).items()) ^ set(wanted.items()))):
            complaint = f"differs: {odd}"
        complaints.append(f"{what} at {call.line[:200]}: {complaint}" if complaint else "")
    json.dump(complaints, sys.stdout)


def _killed(status: int) -> str:
    return "" if status == -9 else f"was not killed, exit {status}"


def _told(status: int, said: Path, path: Path, wanted: dict[str, str]) -> str:
    """A disk that refuses ends the build with 5 and a path, unless nothing was lost by it."""
    text = said.read_text()
    if status == 0:
        return "" if tree(path) == wanted else "ended well with another store"
    if status != 5:
        return f"exit {status}: {text}"
    return "" if str(path) in text and text.count("\n") == 1 else f"no path, or no one line: {text}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:])  # type: ignore[arg-type]
