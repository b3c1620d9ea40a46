"""Training may be stopped at any instant, by any signal; the same command then ends in the same bytes."""

from __future__ import annotations

import random
import re
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import filelock
import pytest

from tests.fakes import tree
from tests.journeys.conftest import Road
from tests.journeys.shell import LIMIT, forked, quick, started

#: long enough for a signal to find it at work
FIT = "kd-student fit --cache cache/toys --out runs/long --epochs 25 --patience 25 --threads 1"


@dataclass(frozen=True)
class Job:
    """A training command that ran to its end undisturbed."""

    line: str
    home: Path  #: where it may be run again: all but its result is there
    result: str  #: what it makes, below `home`
    wanted: dict[str, str]  #: the files of that, by digest

    def fresh(self, tmp_path: Path) -> Path:
        return Path(shutil.copytree(self.home, tmp_path / "home"))

    def whole(self, home: Path) -> bool:
        return tree(home / self.result) == self.wanted


def _job(home: Path, line: str, result: str) -> Job:
    quick(home, line)
    wanted = tree(home / result)
    shutil.rmtree(home / Path(result).parts[0] / Path(result).parts[1])
    return Job(line, home, result, wanted)


@pytest.fixture(scope="module")
def start(road: Road, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(road.path, tmp_path_factory.mktemp("killed") / "home"))


@pytest.fixture(scope="module")
def fit(start: Path) -> Job:
    return _job(start, FIT, "runs/long/sasrec-distilled/seed-0")


@pytest.fixture(scope="module")
def tune(start: Path) -> Job:
    (vectors,) = (start / "data/toys/vectors").glob("minilm-*")
    line = f"kd-teacher tune unisrec --data data/toys --vectors {vectors.name} --batch-size 64"
    return _job(
        start, f"{line} --out tuned/again --epochs 5 --patience 5 --threads 1", "tuned/again"
    )


@pytest.fixture(scope="module")
def pretrain(start: Path, tune: Job) -> Job:
    line = "kd-teacher pretrain unisrec --data data/toys --batch-size 64 --limit 200 --epochs 4"
    return _job(start, f"{line} --out pretrained/unisrec --threads 1", "pretrained/unisrec")


@pytest.fixture
def job(request: pytest.FixtureRequest) -> Job:
    found: Job = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize(
    ("job", "epoch"),
    [("fit", 1), ("fit", 2), ("tune", 1), ("pretrain", 1)],
    indirect=["job"],
)
def test_killed_after_an_epoch_and_run_again_ends_in_the_same_bytes(
    job: Job, epoch: int, tmp_path: Path
) -> None:
    home = job.fresh(tmp_path)
    with started(home, job.line) as process:
        process.until(rf": epoch {epoch}, ")
        assert process.stop(signal.SIGKILL)[0] == -signal.SIGKILL
    assert (home / job.result / "checkpoint.safetensors").is_file()
    assert not job.whole(home)
    again = quick(home, job.line)
    assert again.lines[0] == f"{job.result}: goes on from its last whole epoch"
    done = [int(number) for number in re.findall(r": epoch (\d+), ", again.err)]
    assert done
    assert min(done) > epoch
    assert job.whole(home)


@pytest.mark.parametrize(
    ("number", "status", "name"),
    [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")],
)
@pytest.mark.parametrize("job", ["fit"], indirect=True)
def test_a_signal_ends_it_with_its_own_status_and_one_line(
    job: Job, number: signal.Signals, status: int, name: str, tmp_path: Path
) -> None:
    home = job.fresh(tmp_path)
    with started(home, job.line, script=True) as process:
        process.until(r": epoch 1, ")
        found, lines = process.stop(number)
    assert found == status
    program = job.line.partition(" ")[0]
    *epochs, last = lines
    assert last == f"{program}: stopped by {name}; the same command goes on from here."
    assert all(": epoch " in line for line in epochs)
    assert not job.whole(home)
    quick(home, job.line)
    assert job.whole(home)


def test_killed_at_random_instants_over_and_over(fit: Job, tmp_path: Path) -> None:
    home = fit.fresh(tmp_path)
    began = time.monotonic()
    quick(home, fit.line)
    span = time.monotonic() - began
    shutil.rmtree(home / "runs/long")
    dice = random.Random(0)
    died = 0
    for _ in range(6):
        process = forked(home, fit.line)
        process.join(dice.random() * span / 2)
        process.kill()
        process.join(LIMIT)
        died += process.exitcode == -signal.SIGKILL
    assert died >= 3
    quick(home, fit.line)
    assert fit.whole(home)


@pytest.fixture
def begun(fit: Job, tmp_path: Path) -> Path:
    """A home with a run that was killed after its first epoch."""
    home = fit.fresh(tmp_path)
    with started(home, fit.line) as process:
        process.until(r": epoch 1, ")
        process.stop(signal.SIGKILL)
    return home


def test_an_unfinished_run_refuses_other_settings_by_name(fit: Job, begun: Path) -> None:
    before = tree(begun)
    done = quick(begun, f"{fit.line} --learning-rate 0.01", expect=3)
    assert "train.learning_rate 0.001, this one has 0.01" in done.err
    assert "[checkpoint.foreign]" in done.err
    assert len(done.lines) == 1  # why it cannot go on, before anything is begun
    assert tree(begun) == before


@pytest.mark.parametrize("harm", ["flip", "cut", "empty"])
def test_a_damaged_checkpoint_is_refused_by_name_and_can_be_removed(
    fit: Job, begun: Path, harm: str
) -> None:
    checkpoint = begun / fit.result / "checkpoint.safetensors"
    data = bytearray(checkpoint.read_bytes())
    data[len(data) // 2] ^= 1
    checkpoint.write_bytes({"flip": data, "cut": data[:-9], "empty": b""}[harm])
    done = quick(begun, fit.line, expect=3)
    assert done.lines[-1].startswith(f"kd-student: {fit.result}/checkpoint.safetensors: ")
    assert done.lines[-1].endswith("[checkpoint.damaged]")
    checkpoint.unlink()
    quick(begun, fit.line)
    assert fit.whole(begun)


@pytest.mark.parametrize("job", ["fit", "tune", "pretrain"], indirect=True)
def test_what_another_process_trains_right_now_is_refused(job: Job, tmp_path: Path) -> None:
    home = job.fresh(tmp_path)
    folder = home / job.result
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.parent / f".lock-{folder.name}"
    with filelock.FileLock(lock):
        before = tree(home)
        done = quick(home, job.line, expect=3)
        assert f"{job.result}: another process is training it right now" in done.lines[-1]
        assert done.lines[-1].endswith("[train.busy]")
        assert tree(home) == before
    quick(home, job.line)
    assert job.whole(home)
    assert not lock.exists()
