"""Run by the test of P11: builds of one store that are let go at the same instant, over and over.

    python race_points.py FOLDER RACERS ROUNDS LOCK    LOCK is `locked`, or `unlocked`: the lock is granted to everybody

Prints JSON: for each round the racers' statuses, what they said, the lines in the log, and a complaint or "".
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import filelock

from cache.errors import CkdError
from cache.store import Store
from cache.verify import verify
from pipeline.build import build
from tests.fakes import TableTeacher, tiny_store, tree
from tests.pipeline.kill_points import in_child
from tests.promises.granted import Granted
from tests.promises.stores import SHARD_BYTES, copied, small_build, small_pieces


def race(path: Path, racers: int, said: Path) -> list[int]:
    """The exit statuses of `racers` builds of one store, started together."""
    hear, tell = os.pipe()
    ready, done = os.pipe()
    children = []
    for _ in range(racers):
        child = os.fork()
        if child == 0:
            store = Store.open(path)
            os.write(done, b"x")
            os.close(tell)
            os.read(hear, 1)  # until the parent closes its end
            os._exit(_raced(store, said))
        children.append(child)
    for _ in children:
        os.read(ready, 1)
    os.close(tell)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    for handle in (hear, ready, done):
        os.close(handle)
    return statuses


def _raced(store: Store, said: Path) -> int:
    try:
        build(TableTeacher(), store, shard_bytes=SHARD_BYTES, keep="both")
    except CkdError as error:
        text, status = f"{error.code}: {error}\n", error.exit
    except BaseException as error:
        text, status = f"{type(error).__name__}: {error}\n", 1
    else:
        return 0
    handle = os.open(said, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, text.encode())
    return status


def main(folder: Path, racers: int, rounds: int, lock: str) -> None:
    small_pieces()
    if lock == "unlocked":
        # as on a network disk that grants it to every caller
        filelock.FileLock = Granted  # type: ignore[assignment,misc]
    clean, path, said = folder / "clean", folder / "store", folder / "said"
    assert in_child(lambda: tiny_store(clean)) == 0
    copied(clean, path)
    assert in_child(lambda: small_build(path)) == 0
    wanted = tree(path)
    told = []
    for _ in range(rounds):
        copied(clean, path)
        path.with_name("store.log").unlink()
        said.unlink(missing_ok=True)
        statuses = race(path, racers, said)
        log = path.with_name("store.log")
        lines = len(log.read_text().splitlines()) if log.exists() else 0
        complaint = "".join(f"{one}; " for one in verify(path))
        after = tree(path)
        if in_child(lambda: small_build(path)) != 0:
            complaint += "does not go on; "
        if tree(path) != wanted:
            complaint += f"differs: {sorted(set(tree(path).items()) ^ set(wanted.items()))[:4]}; "
        said.touch()
        told.append(
            {
                "statuses": statuses,
                "said": said.read_text().splitlines(),
                "lines": lines,
                "same": after == wanted,
                "complaint": complaint,
            }
        )
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
