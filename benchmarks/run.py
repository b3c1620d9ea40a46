"""Runs the benchmarks, one after another, each in a process of its own, and passes their lines through.

    python benchmarks/run.py [NAME ...]

Exit status: 0 with every goal kept, 1 with any short, 2 where one could not be run (it says why) or a name is unknown.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAMES = (
    "ingest",
    "prefixes",
    "recformer",
    "build",
    "writer",
    "reader",
    "verify",
    "fit",
    "sasrec",
    "students",
    "evaluate",
    "export",
)


def main(wanted: list[str]) -> int:
    """Run the named benchmarks, or all."""
    unknown = [name for name in wanted if name not in NAMES]
    if unknown:
        print(f"{unknown[0]}: no such benchmark; there are {', '.join(NAMES)}.", file=sys.stderr)
        return 2
    status = 0
    for name in wanted or NAMES:
        done = subprocess.run([sys.executable, str(HERE / f"bench_{name}.py")], check=False)
        if done.returncode not in (0, 1, 2):
            print(f"{name}: ended with status {done.returncode}.", file=sys.stderr, flush=True)
        if done.returncode and status != 1:  # a goal that is short outweighs one that was not run
            status = 2 if done.returncode == 2 else 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
