"""P28: hours of random faults against a store, with a model of what must come of each.

    python tests/promises/soak.py --minutes 360 [--seed 0]

Each turn picks a fault: a build or pull killed at a random time, a bit flipped, a file cut, lost, added or linked,
a manifest forged, a bad network, a broken teacher. The model: damage is refused by `verify` and by reading, never taken; what
was killed ends in the bytes of an undisturbed run. Prints violations and the slope of memory (kB a turn);
exits 1 on a violation.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cache.errors import CkdError
from cache.remote import locate
from cache.store import Store
from cache.verify import verify
from pipeline.build import build
from pipeline.share import pull, push
from tests.fakes import TableTeacher, tree
from tests.pipeline.kill_points import in_child
from tests.promises.grounds import (
    built,
    code_of,
    copied,
    in_memory,
    opened,
    resealed,
    serving,
    silent,
)

Fault = Callable[[Path, random.Random], str]


def _file(store: Path, dice: random.Random) -> Path:
    return dice.choice([p for p in sorted(store.rglob("*")) if p.is_file()])


def _refused(store: Path, what: str) -> str:
    """Damage must be found by the audit, and by reading unless it is only something extra beside the parts."""
    found = verify(store)
    if not found:
        return f"{what}: verify found nothing"
    code = code_of(lambda: opened(store))
    return "" if code or "stranger" in what else f"{what}: read as sound"


def flip(folder: Path, dice: random.Random) -> str:
    path = _file(copied(folder / "store"), dice)
    data = bytearray(path.read_bytes())
    at = dice.randrange(len(data))
    data[at] ^= 1 << dice.randrange(8)
    path.write_bytes(data)
    return _refused(folder / "store", f"bit of {path.name} at {at}")


def cut(folder: Path, dice: random.Random) -> str:
    path = _file(copied(folder / "store"), dice)
    os.truncate(path, dice.randrange(path.stat().st_size))
    return _refused(folder / "store", f"{path.name} cut")


def lose(folder: Path, dice: random.Random) -> str:
    path = _file(copied(folder / "store"), dice)
    path.unlink()
    return _refused(folder / "store", f"{path.name} lost")


def link(folder: Path, dice: random.Random) -> str:
    path = _file(copied(folder / "store"), dice)
    path.rename(folder / "moved")
    path.symlink_to(folder / "moved")
    return _refused(folder / "store", f"{path.name} linked")


def add(folder: Path, dice: random.Random) -> str:
    path = _file(copied(folder / "store"), dice).with_name("extra")
    path.write_bytes(dice.randbytes(9))
    return _refused(folder / "store", "a file more")


def forge(folder: Path, dice: random.Random) -> str:
    store = copied(folder / "store")
    path = dice.choice(sorted(store.rglob("manifest.json")))
    key = dice.choice(["settings", "counts"])
    resealed(
        path,
        lambda value: value[key].update({dice.choice(sorted(value[key])): dice.randrange(1 << 40)}),
    )
    return _refused(store, f"{key} of {path.parent.name} forged")


def kill_build(folder: Path, dice: random.Random) -> str:
    store = copied(folder / "store")

    def work() -> None:
        build(TableTeacher("new", seed=7), Store.open(store), shard_bytes=400, keep="both")

    return _killed(work, store, _wanted("build", work, store), dice)


def kill_pull(folder: Path, dice: random.Random) -> str:
    def work() -> None:
        pull(locate(str(built())), folder / "x", (), silent)

    return _killed(work, folder / "x", _wanted("pull", work, folder / "x"), dice)


_known: dict[str, dict[str, str]] = {}


def _wanted(kind: str, work: Callable[[], None], result: Path) -> dict[str, str]:
    """What an undisturbed run makes, found once."""
    if kind not in _known:
        before = copied(result.parent / "before") if kind == "build" else None
        assert in_child(work) == 0
        _known[kind] = tree(result)
        shutil.rmtree(result)
        if before:
            before.rename(result)
    return _known[kind]


def _killed(
    work: Callable[[], None], result: Path, wanted: dict[str, str], dice: random.Random
) -> str:
    for _ in range(dice.randint(1, 3)):
        child = os.fork()
        if child == 0:
            work()
            os._exit(0)
        time.sleep(dice.random() * 0.15)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    status = in_child(work)
    return "" if not status and tree(result) == wanted else f"killed: {status}, other bytes"


def network(folder: Path, dice: random.Random) -> str:
    """Any answer may be cut, refused or be other bytes, one in ten; whole or absent."""
    with serving(folder) as (url, fake):
        push(built(), locate(url), (), silent)
        fake.fault = lambda method, key: (
            dice.choice([503, 500, ("cut", dice.randrange(200)), ("lie", dice.randbytes(90))])
            if method == "GET" and dice.random() < 0.1
            else None
        )
        code = code_of(lambda: pull(locate(url), folder / "x", (), silent))
    if (folder / "x").exists():
        return "" if not code and tree(folder / "x") == tree(built()) else f"network: half, {code}"
    return "" if code else "network: absent and no word"


def teacher(folder: Path, dice: random.Random) -> str:
    store = copied(folder / "store")
    last = dice.randrange(10)

    class Broken(TableTeacher):
        def score(self, users_TD: np.ndarray, items_CD: np.ndarray) -> np.ndarray:
            scores = super().score(users_TD, items_CD)
            if self.calls["score"] > last:
                scores[-1, -1] = dice.choice([np.nan, np.inf, -np.inf])
            return scores

    code = code_of(lambda: build(Broken("bad"), Store.open(store), shard_bytes=400))
    sound = code == "teacher.not_finite" and Store.open(store).teachers == ["one", "two"]
    return "" if sound and not verify(store) else f"broken teacher: {code}"


FAULTS: list[Fault] = [flip, cut, lose, link, add, forge, kill_build, kill_pull, network, teacher]


def memory() -> int:
    """kB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def main() -> int:
    parser = argparse.ArgumentParser(description="Random faults against a store for some time.")
    parser.add_argument("--minutes", type=float, default=360.0, help="how long, in minutes")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    dice, end = random.Random(given.seed), time.monotonic() + 60 * given.minutes
    counts: collections.Counter[str] = collections.Counter()
    violations, held = [], []
    while time.monotonic() < end:
        fault = dice.choice(FAULTS)
        with in_memory() as folder:
            try:
                found = fault(folder, dice)
            except CkdError as error:
                found = f"refused what is sound: {error}"
            except Exception as error:
                found = f"{type(error).__name__}: {error}"
        counts[fault.__name__] += 1
        held.append(memory())
        if found:
            violations.append(f"turn {sum(counts.values())}, {fault.__name__}: {found}")
            print(violations[-1], flush=True)
    turns = sum(counts.values())
    later = held[len(held) // 5 :]  # the first turns fill what is kept for good
    slope = float(np.polyfit(np.arange(len(later)), later, 1)[0]) if len(later) > 1 else 0.0
    print(", ".join(f"{name} {number}" for name, number in sorted(counts.items())))
    print(f"memory {held[-1]:,} kB at the end, slope {slope:+.2f} kB a turn")
    print(f"P28 kept {turns - len(violations)} of {turns}")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
