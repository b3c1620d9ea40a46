"""Run by the test of P19: builds of one set by several processes, raced, killed, held and joined late.

    python rank_points.py FOLDER ATTACK=N...    N rounds, or for `points` the step between two kill points

Prints JSON: for each attack a list of complaints, "" where there is none.

The processes are forks with numpy teachers; what they wait for
is told through pipes, so that a held process holds for certain.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import filelock

import pipeline.build
import pipeline.together
from cache.errors import CkdError
from cache.store import Store
from cache.verify import verify
from pipeline.build import Keep, build
from pipeline.together import Crew
from tests.fakes import PairTeacher, TableTeacher, tiny_store, tree
from tests.pipeline.kill_points import counting, in_child
from tests.promises.granted import Granted
from tests.promises.stores import copied

pipeline.build.HISTORY_BLOCK = 4  # eight blocks from a tiny plan
pipeline.build.FACTOR_BLOCKS = 1
pipeline.together.POLL = 0.005
SHARD_BYTES = 130  # two batches each
HELD = 4  # the question in which a hand is held, so that it has done something before

#: what is built, and whether the teacher's scores are products of vectors
SORTS: dict[str, tuple[Keep, type[TableTeacher]]] = {
    "scores": ("scores", TableTeacher),
    "factors": ("factors", TableTeacher),
    "both": ("both", TableTeacher),
    "pairs": ("scores", PairTeacher),
}


class Gate:
    """A process waits here until another one lets it on."""

    def __init__(self) -> None:
        self._told, self._tell = os.pipe()
        self._hear, self._open = os.pipe()

    def wait(self) -> None:
        """Say that this process has come, and wait."""
        os.write(self._tell, b"x")
        os.read(self._hear, 1)

    def come(self) -> None:
        """Until somebody waits."""
        os.read(self._told, 1)

    def open(self) -> None:
        os.write(self._open, b"x")


@dataclass
class Ground:
    """One sort of build: a store without it, and how the tree looks with it."""

    folder: Path
    sort: str

    def __post_init__(self) -> None:
        self.keep, self.kind = SORTS[self.sort]
        self.clean, self.path = self.folder / "clean", self.folder / f"store-{self.sort}"
        self.asked = self.folder / "asked"
        if not self.clean.exists():
            assert in_child(lambda: tiny_store(self.clean)) == 0
        self.fresh()
        assert in_child(self.alone) == 0
        self.wanted = tree(self.path)
        self.units = self.questions()
        assert len(self.units) >= 6, self.units

    def fresh(self) -> None:
        """A store without the set."""
        copied(self.clean, self.path)
        self.path.with_name(f"{self.path.name}.log").unlink(missing_ok=True)
        self.asked.unlink(missing_ok=True)

    def questions(self) -> Counter[str]:
        """How often each set of histories was asked about, whoever asked."""
        return Counter(self.asked.read_text().splitlines() if self.asked.exists() else [])

    def alone(self) -> None:
        self._build(None)

    def start(
        self,
        *,
        gate: Gate | None = None,
        hold: int = -1,
        first: Callable[[], None] | None = None,
        tau: float = 0.07,
        said: Path | None = None,
    ) -> int:
        """A process that builds together with others; its id.

        Args:
            gate: where it waits in question number `hold`, or -1: once it is up, before it builds.
            first: called in it before anything else.
        """
        child = os.fork()
        if child:
            return child
        try:
            if first is not None:
                first()
            if gate is not None and hold < 0:
                gate.wait()
            self._build(Crew(), gate=gate, hold=hold, tau=tau)
        except CkdError as error:
            if said is not None:
                said.write_text(f"{error.code}: {error}")
            os.write(2, f"{error}\n".encode())
            os._exit(error.exit)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)

    def _build(
        self, crew: Crew | None, *, gate: Gate | None = None, hold: int = -1, tau: float = 0.07
    ) -> None:
        ground = self

        class Asked(self.kind):  # type: ignore[name-defined,misc]
            """Notes what it is asked, and waits where it is told to."""

            def encode_histories(self, dataset, users, ends):  # type: ignore[no-untyped-def]
                if gate is not None and self.calls["histories"] == hold:
                    gate.wait()
                handle = os.open(ground.asked, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                os.write(handle, f"{users.tolist()} {ends.tolist()}\n".encode())
                os.close(handle)
                return super().encode_histories(dataset, users, ends)

        store = Store.open(self.path)
        build(Asked(), store, tau=tau, shard_bytes=SHARD_BYTES, keep=self.keep, crew=crew)

    def amiss(self, statuses: list[int], wanted: list[int], *, once: bool = False) -> str:
        """What is not as it must be at the end, or "".

        Args:
            once: whether each question must have been asked once, and each set sealed once.
        """
        said = "" if statuses == wanted else f"ended with {statuses}; "
        said += "".join(f"{one}; " for one in verify(self.path))
        after = tree(self.path)
        if (
            -signal.SIGKILL in statuses
        ):  # one that dies as the last of all leaves its lock, an empty file
            after.pop("scores/.lock-table", None)
        if after != self.wanted:
            said += f"differs: {sorted(set(after.items()) ^ set(self.wanted.items()))[:4]}; "
        if once:
            log = self.path.with_name(f"{self.path.name}.log").read_text().splitlines()
            said += "" if len(log) == 1 + (self.keep == "both") else f"sealed {len(log)} times; "
            if (asked := self.questions()) != self.units:
                said += f"asked {sorted(asked.values())}, not {sorted(self.units.values())}; "
        return f"{self.sort}: {said}" if said else ""

    @property
    def sealed(self) -> bool:
        folders = {"scores": ["scores"], "factors": ["factors"], "both": ["scores", "factors"]}
        return any((self.path / name / "table").exists() for name in folders[self.keep])


def ended(children: list[int]) -> list[int]:
    """Their exit statuses, negative for a signal."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def grounds(folder: Path, *sorts: str) -> list[Ground]:
    return [Ground(folder, sort) for sort in sorts or SORTS]


def race(folder: Path, rounds: int) -> Iterator[str]:
    """1, 2 and 4 processes, let go at the same instant."""
    for ground in grounds(folder):
        for _ in range(rounds):
            for many in (1, 2, 4):
                yield raced(ground, many, once=True)


def unlocked(folder: Path, rounds: int) -> Iterator[str]:
    """The same where every claim is granted to everybody: work is done twice, the bytes are the same."""
    granted = fcntl.lockf
    fcntl.lockf = lambda *_: None  # type: ignore[assignment]
    try:
        for ground in grounds(folder, "both", "pairs"):
            for _ in range(rounds):
                yield raced(ground, 3, once=False)
    finally:
        fcntl.lockf = granted


def lockless(folder: Path, rounds: int) -> Iterator[str]:
    """And the lock of the set too: losers may find their files gone, the next command ends in the same bytes."""
    granted, lock = fcntl.lockf, filelock.FileLock
    fcntl.lockf = lambda *_: None  # type: ignore[assignment]
    filelock.FileLock = Granted  # type: ignore[assignment,misc]
    try:
        for ground in grounds(folder, "both", "pairs"):
            for _ in range(rounds):
                statuses = let_go(ground, 3)
                odd = "" if set(statuses) <= {0, 3, 5} else f"ended with {statuses}; "
                yield odd + ground.amiss([in_child(ground.alone)], [0])
    finally:
        fcntl.lockf, filelock.FileLock = granted, lock


def let_go(ground: Ground, many: int) -> list[int]:
    ground.fresh()
    gate = Gate()
    children = [ground.start(gate=gate) for _ in range(many)]
    for _ in children:
        gate.come()
    for _ in children:
        gate.open()
    return ended(children)


def raced(ground: Ground, many: int, *, once: bool) -> str:
    return ground.amiss(let_go(ground, many), [0] * many, once=once)


def points(folder: Path, step: int) -> Iterator[str]:
    """One of two dies before each of its changes to the disk, as the lead and as a hand; nobody starts it again."""
    for ground in grounds(folder, "both", "pairs"):
        told = folder / "count"
        ground.fresh()
        assert ended([ground.start(first=lambda: counting(-1, told))]) == [0]  # noqa: B023
        changes = int(told.read_text())
        for place, point in enumerate(range(0, changes, step)):
            ground.fresh()
            gate = Gate()

            def die(point: int = point) -> None:
                counting(point, None)

            if (
                place % 2
            ):  # a hand: the lead is up, and in its first question until a unit was asked of the hand
                other = ground.start(gate=gate, hold=0)
                gate.come()
                mortal = ground.start(first=die)
                await_change(ground, mortal)
                gate.open()
            else:
                mortal = ground.start(first=die)
                other = ground.start()
            statuses = ended([mortal, other])
            wanted = [
                -signal.SIGKILL if statuses[0] else 0,
                0,
            ]  # a hand may not live to so many changes
            yield ground.amiss(statuses, wanted)


def await_change(ground: Ground, child: int) -> None:
    """Until a question was asked, or the child is dead."""
    while not ground.asked.exists():
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        os.sched_yield()


def random_kills(folder: Path, rounds: int) -> Iterator[str]:
    """Of three, one or two die at a random moment; the others end well, and nobody starts anything again."""
    dice = random.Random(19)
    for ground in grounds(folder, "both", "pairs"):
        began = time.monotonic()
        let_go(ground, 3)
        span = time.monotonic() - began
        for _ in range(rounds):
            ground.fresh()
            children = [ground.start() for _ in range(3)]
            time.sleep(dice.random() * span)
            doomed = dice.sample(children, dice.randint(1, 2))
            for child in doomed:
                os.kill(child, signal.SIGKILL)
            statuses = ended(children)
            wanted = [
                status if child in doomed and status == -signal.SIGKILL else 0
                for child, status in zip(children, statuses, strict=True)
            ]
            yield ground.amiss(statuses, wanted)


def all_killed(folder: Path, rounds: int) -> Iterator[str]:
    """All die with work half done; then one comes: with the others' settings together, or all alone."""
    for ground in grounds(folder, "both", "pairs"):
        for number in range(rounds * 2):
            held, children = holding(ground, 2)
            for child in children:
                os.kill(child, signal.SIGKILL)
            early = "sealed too early; " if ground.sealed else ""
            killed = ended(children)
            done = ground.questions()
            together = number % 2 == 0
            status = ended([ground.start()]) if together else [in_child(ground.alone)]
            # what was done counts: nothing that was answered is asked again
            again = ground.questions() - ground.units
            early += f"asked again: {len(again)} of {len(done)}; " if again else ""
            yield early + ground.amiss([*killed, *status], [-signal.SIGKILL, -signal.SIGKILL, 0])
            del held


def holding(ground: Ground, many: int) -> tuple[list[Gate], list[int]]:
    """Processes of which each is held in a question: the lead in its first, hands in their second."""
    ground.fresh()
    gates, children = [], []
    for number in range(many):
        gate = Gate()
        children.append(ground.start(gate=gate, hold=HELD if number else 0))
        gate.come()
        gates.append(gate)
    return gates, children


def held(folder: Path, rounds: int) -> Iterator[str]:
    """What one holds the others neither do nor seal without; when it dies they do it."""
    for ground in grounds(folder, "both", "pairs"):
        for number in range(rounds * 2):
            gates, (lead, hand) = holding(ground, 2)
            # one that comes late does all that is free and waits
            late_gate = Gate()
            late = ground.start(gate=late_gate)
            late_gate.come()
            late_gate.open()
            await_questions(ground)
            early = "sealed too early; " if ground.sealed else ""
            dead, alive, gate = (lead, hand, gates[1]) if number % 2 else (hand, lead, gates[0])
            os.kill(dead, signal.SIGKILL)
            gate.open()
            statuses = ended([dead, alive, late])
            yield early + ground.amiss(statuses, [-signal.SIGKILL, 0, 0])


def await_questions(ground: Ground) -> None:
    """Until no unit is free: two are held, all others were asked."""
    unit = 1 if ground.kind is TableTeacher else 2  # questions: a block, or the batches of a shard
    while ground.questions().total() < ground.units.total() - 2 * unit:
        os.sched_yield()


def strangers(folder: Path, rounds: int) -> Iterator[str]:
    """A hand with another temperature is refused by name; the lead does not notice."""
    for ground in grounds(folder, "both", "pairs"):
        for _ in range(rounds):
            gates, (lead,) = holding(ground, 1)
            said = folder / "said"
            status = ended([ground.start(tau=0.1, said=said)])
            text = said.read_text()
            told = text.startswith("scores.foreign_work: ") and "tau 0.07 there, 0.1 now" in text
            gates[0].open()
            odd = ground.amiss([*status, *ended([lead])], [3, 0], once=True)
            yield ("" if told else f"said {text!r}; ") + odd


def damaged(folder: Path, rounds: int) -> Iterator[str]:
    """A flipped bit in what a hand did is found, and that unit done again."""
    for ground in grounds(folder, "both", "pairs"):
        for number in range(rounds):
            gates, (lead, hand) = holding(ground, 2)
            os.kill(hand, signal.SIGKILL)
            works = sorted((ground.path).glob("*/.work-table/hands/.work-*"))
            files = [
                p for w in works for p in (*w.glob("histories/*"), *w.glob("set/scores.zarr/*"))
            ]
            file = files[number % len(files)]
            data = bytearray(file.read_bytes())
            data[-1] ^= 1
            file.write_bytes(data)
            gates[0].open()
            odd = ground.amiss(ended([lead, hand]), [0, -signal.SIGKILL])
            again = ground.questions() - ground.units
            yield odd + ("" if again else "nothing was asked again; ")


def debris(folder: Path, rounds: int) -> Iterator[str]:
    """What hands leave half written, torn or foreign in their folders is neither taken nor left behind."""
    for ground in grounds(folder, "both", "pairs"):
        for _ in range(rounds):
            gates, (lead, hand) = holding(ground, 2)
            os.kill(hand, signal.SIGKILL)
            (hands,) = ground.path.glob("*/.work-table/hands")
            (work,) = hands.glob(".work-*")
            with (work / "journal.jsonl").open("ab") as file:
                file.write(b'{"path":"histories/0000006.npy","sha256":"00')
            (work / ".partial-x").touch()
            copied(work, hands / ".work-copy")
            (hands / ".work-empty").mkdir()
            (hands / "stray").touch()
            with contextlib.suppress(OSError):
                shutil.copyfile(work / "journal.jsonl", hands / "journal.jsonl")
            gates[0].open()
            yield ground.amiss(ended([lead, hand]), [0, -signal.SIGKILL])


ATTACKS = {
    "race": race,
    "unlocked": unlocked,
    "lockless": lockless,
    "points": points,
    "random": random_kills,
    "all": all_killed,
    "held": held,
    "strangers": strangers,
    "damaged": damaged,
    "debris": debris,
}


def main(folder: Path, *asked: str) -> None:
    attacks = [one.split("=") for one in asked]
    told = {name: list(ATTACKS[name](folder, int(count))) for name, count in attacks}
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
