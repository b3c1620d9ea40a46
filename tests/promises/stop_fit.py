"""Run by test_p17 and test_p18: trains, or builds, over and over in forks, stopped in the middle, then to the end.

    python stop_fit.py FOLDER steps N       SIGKILL before each N-th step of training
    python stop_fit.py FOLDER changes N     SIGKILL before each N-th change that training makes to the disk
    python stop_fit.py FOLDER calls N       SIGKILL at each N-th system call of training that touches its run, by strace
    python stop_fit.py FOLDER signals N     SIGTERM or SIGINT at N random times of a fit or build, through the exit of commands
    python stop_fit.py FOLDER twice         a second signal while the first is being answered

Prints JSON: {"points", "stopped", "different"}. A fork a run keeps this fast; the parent computes once, on one thread.
"""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import typer

from cache.store import Store
from pipeline import console
from pipeline.build import build
from pipeline.fit import fit
from student.sasrec import SASRecConfig
from student.schedule import TrainSettings
from student.targets import join_settings
from tests.fakes import TableTeacher, tiny_store, tree
from tests.pipeline.kill_points import counting, in_child
from tests.promises import traced


def train(
    store: Path, out: Path, on_step: Callable[[float, int], None] = lambda done, total: None
) -> None:
    torch.set_num_threads(1)
    opened = Store.open(store)
    readers = [opened.scores("table")]
    settings = TrainSettings(join=join_settings(readers), epochs=2, kd_weight=1.0)
    fit(opened, readers, out, SASRecConfig(hidden=8, heads=2, inner=8), settings, on_step=on_step)


class Slow(TableTeacher):
    """Long enough for a signal to find it at work."""

    def score(self, users_TD: Any, items_CD: Any) -> Any:
        time.sleep(0.002)
        return super().score(users_TD, items_CD)


class Stubborn(TableTeacher):
    """Answers a first signal with a long clean-up."""

    def score(self, users_TD: Any, items_CD: Any) -> Any:
        try:
            os.write(int(os.environ["READY"]), b"1")
            time.sleep(250)
        finally:
            os.write(int(os.environ["READY"]), b"2")
            time.sleep(250)


def command(name: str, work: Callable[[], None]) -> None:
    """Through the same exit as every command line."""
    app = typer.Typer()
    app.callback(invoke_without_command=True)(work)
    sys.argv = [name, "--"]
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        console.run(app, name)
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1)


def forked(work: Callable[[], None]) -> tuple[int, int]:
    """(pid, end of a pipe that hears when it is under way)."""
    hear, say = os.pipe()
    child = os.fork()
    if child == 0:
        os.environ["READY"] = str(say)
        work()
        os._exit(0)
    os.close(say)
    return child, hear


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Job:
    """Something that is stopped and run again, in a folder of its own, with what must come of it."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind, self.clean = folder, kind, folder / f"clean-{kind}"

        def prepare() -> None:
            made = tiny_store(self.clean)
            if kind == "fit":
                build(TableTeacher(), made, shard_bytes=600, quality={"ndcg@10": 0.1})

        assert in_child(prepare) == 0
        self.fresh()
        if kind == "fit":
            self.run()  # here too, once: what torch imports late is then there in every fork
            self.fresh()
        started = time.monotonic()
        assert in_child(self.run) == 0
        self.span = time.monotonic() - started
        self.wanted = tree(self.result)

    @property
    def result(self) -> Path:
        return self.folder / "run" if self.kind == "fit" else self.folder / "store"

    def fresh(self) -> None:
        for path in (self.folder / "run", self.folder / "store"):
            shutil.rmtree(path, ignore_errors=True)
        # what lies beside a run changes how many calls the next one makes: its first line two more, a lock that is there
        # one fewer (killed between its last files, a run is finished, and nobody takes its lock again)
        for name in ("run.times.jsonl", ".lock-run"):
            (self.folder / name).unlink(missing_ok=True)
        shutil.copytree(self.clean, self.folder / "store")

    def run(self, on_step: Callable[[float, int], None] = lambda done, total: None) -> None:
        if self.kind == "fit":
            train(self.folder / "store", self.folder / "run", on_step)
        else:
            build(Slow(), Store.open(self.folder / "store"), shard_bytes=600)

    def again(self, what: object) -> list[str]:
        """Run to the end; what is different then."""
        status = in_child(self.run)
        odd = sorted(set(tree(self.result).items()) ^ set(self.wanted.items()))
        return [f"{self.kind} {what}: {status} {odd}"] if status or odd else []


def every_step(job: Job, step: int) -> dict[str, Any]:
    told = job.folder / "count"

    def killed_at(point: int) -> None:
        taken = 0

        def on_step(done: float, total: int) -> None:
            nonlocal taken
            if taken == point:
                os.kill(os.getpid(), signal.SIGKILL)
            taken += 1
            if point < 0:
                told.write_text(str(taken))

        job.run(on_step)

    job.fresh()
    in_child(lambda: killed_at(-1))
    return over(job, range(0, int(told.read_text()), step), killed_at)


def every_change(job: Job, step: int) -> dict[str, Any]:
    told = job.folder / "count"

    def killed_at(point: int) -> None:
        counting(point, told if point < 0 else None)
        job.run()

    job.fresh()
    in_child(lambda: killed_at(-1))
    return over(job, range(0, int(told.read_text()), step), killed_at)


def every_call(job: Job, step: int) -> dict[str, Any]:
    job.fresh()
    found = traced.calls(job.run, job.result, job.folder / "log")[::step]
    stopped, different = 0, []
    for call in found:
        job.fresh()
        stopped += traced.hit(job.run, call, "signal=SIGKILL") == -signal.SIGKILL
        different += job.again(call.line)
    return {"points": len(found), "stopped": stopped, "different": different}


def over(job: Job, points: range, killed_at: Callable[[int], None]) -> dict[str, Any]:
    stopped, different = 0, []
    for point in points:
        job.fresh()
        stopped += in_child(lambda point=point: killed_at(point)) == -signal.SIGKILL
        different += job.again(point)
    return {"points": len(points), "stopped": stopped, "different": different}


def at_random(jobs: list[Job], count: int) -> dict[str, Any]:
    dice, stopped, different = random.Random(0), 0, []
    for number in range(count):
        job = jobs[number % len(jobs)]
        wanted = dice.choice([signal.SIGTERM, signal.SIGINT])

        def work(job: Job = job) -> None:
            def inside() -> None:
                os.write(int(os.environ["READY"]), b"1")
                job.run()

            command("kd-x", inside)

        job.fresh()
        child, hear = forked(work)
        os.read(hear, 1)
        time.sleep(dice.random() * job.span)
        os.kill(child, wanted)
        status = ended(child)
        os.close(hear)
        stopped += status == 128 + wanted
        if status not in {0, 128 + wanted}:
            different.append(f"{job.kind}: {wanted.name} gave {status}")
        different += job.again(wanted.name)
    return {"points": count, "stopped": stopped, "different": different}


def twice(job: Job) -> dict[str, Any]:
    stopped, different, pairs = (
        0,
        [],
        [(a, b) for a in (signal.SIGTERM, signal.SIGINT) for b in (signal.SIGTERM, signal.SIGINT)],
    )
    for first, second in pairs:
        job.fresh()
        child, hear = forked(lambda: command("kd-x", lambda: _stubborn(job.folder / "store")))
        for number in (first, second):
            assert select.select([hear], [], [], 60)[0], "it does not answer"
            os.read(hear, 1)
            os.kill(child, number)
        status = ended(child)
        os.close(hear)
        stopped += status == 128 + second
        different += [] if status == 128 + second else [f"{first.name}, {second.name}: {status}"]
        different += job.again((first.name, second.name))
    return {"points": len(pairs), "stopped": stopped, "different": different}


def _stubborn(store: Path) -> None:
    build(Stubborn(), Store.open(store), shard_bytes=600)


def main(folder: Path, how: str, count: int = 1) -> None:
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # heard even where a shell told us to ignore it
    if how == "steps":
        told = every_step(Job(folder, "fit"), count)
    elif how == "changes":
        told = every_change(Job(folder, "fit"), count)
    elif how == "calls":
        told = every_call(Job(folder, "fit"), count)
    elif how == "signals":
        told = at_random([Job(folder, "fit"), Job(folder, "build")], count)
    else:
        told = twice(Job(folder, "build"))
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
