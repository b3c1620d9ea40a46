"""`kd-cache verify` against sha256 of the same bytes: what the audit of a store costs beside its hashing.

    python benchmarks/bench_verify.py [--batches 480] [--rounds 7]

The store of bench_reader, in the page cache. Bare: `hashlib.sha256` over each of the store's files, mapped into memory
with all pages at hand, and over each read into one buffer of 1 MiB, which has the bar. Audit: `cache.verify.verify`,
everything that the command does beside printing. One thread each.
"""

from __future__ import annotations

import argparse
import hashlib
import mmap
import sys
import tempfile
from pathlib import Path

from bench_reader import make_store
from timing import goal, ratios, turns

sys.path.insert(0, str(Path(__file__).parents[1]))

from cache.verify import verify
from pipeline.build import build
from tests.fakes import TableTeacher

NAME, WHAT, BAR = "verify", "bytes a second of verify", 0.8


def mapped(files: list[Path]) -> None:
    """Hash each file as one piece of memory."""
    for path in files:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory,
        ):
            memory.madvise(mmap.MADV_WILLNEED)
            hashlib.sha256(memory).digest()


def read(files: list[Path]) -> None:
    """Hash each file through a buffer of 1 MiB."""
    buffer = bytearray(1 << 20)
    view = memoryview(buffer)
    for path in files:
        state = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                state.update(view[:count])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=480)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), options.batches)
        build(TableTeacher(width=32), store)
        files = [path for path in store.path.rglob("*") if path.is_file() and path.stat().st_size]

        def audit(number: int) -> None:
            if verify(store.path):
                raise SystemExit("the store of the benchmark is not sound")

        in_memory, from_file, ours = turns(
            [lambda number: mapped(files), lambda number: read(files), audit], options.rounds
        )
        size = sum(path.stat().st_size for path in files) / 1e9
        note = f"{size / sorted(in_memory)[len(in_memory) // 2]:.2f} GB/s bare"
        goal(NAME, WHAT, "sha256 of the mapped files", ratios(in_memory, ours), note=note)
        kept = goal(NAME, WHAT, "sha256 of the files read", ratios(from_file, ours), at_least=BAR)
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
