"""What a person sees of training, and what TensorBoard gets."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from google_crc32c import value as crc32c
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from cache.errors import DiskError, UsageError
from cache.store import Store
from pipeline import console, live, scalars
from pipeline.live import board, sparkline
from student.state import EpochRecord, RunState
from tests.student.small import shop, trained


def after(*validations: float | None, kd: float = 0.0) -> RunState:
    """A state after so many epochs, None for those that were not validated."""
    history = [
        EpochRecord(epoch=n, stage="round 1", instances=90, ce=7 - n, kd=kd, validation=value)
        for n, value in enumerate(validations)
    ]
    state = RunState(epoch=len(history), history=history)
    if found := [value for value in validations if value is not None]:
        state.best, state.best_epoch = max(found), validations.index(max(found))
    return state


@pytest.mark.parametrize(
    ("values", "width", "drawn"),
    [
        ([], 4, ""),
        ([0.3], 4, "▁"),
        ([0.3, 0.3], 4, "▁▁"),
        ([0, 1], 4, "▁█"),
        # eighths of the way from 0 to 7: the sixth letter holds 5/7 (5.7 eighths)
        ([0, 5, 7], 4, "▁▆█"),
        # two by two: means 1, 3, 5 -> least, half of the way (4 eighths: the fifth letter), most
        ([0, 2, 2, 4, 4, 6], 3, "▁▅█"),
    ],
)
def test_a_curve_goes_from_the_least_to_the_most(
    values: list[float], width: int, drawn: str
) -> None:
    assert sparkline(values, width) == drawn


class Watched:
    """A terminal of 80 columns and a clock that is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8") -> None:
        self.text = io.TextIOWrapper(io.BytesIO(), encoding, write_through=True)
        self.console = Console(file=self.text, force_terminal=True, width=80)
        self.now = 0.0
        monkeypatch.setattr(console, "terminal", lambda: self.console)
        monkeypatch.setattr(live.time, "monotonic", lambda: self.now)

    def drawn(self, shown: Any) -> list[list[str]]:
        """The rows of the table as it stands, heads too, cut at every second space."""
        out = Console(file=io.StringIO(), width=80, legacy_windows=False)
        out.print(shown.table())
        lines = out.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert all(len(line) <= 80 for line in lines)
        return [line.split() for line in lines]


def test_a_row_has_stage_losses_curve_speed_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch)
    with board(["base", "distilled"], taught=[False, True]) as shown:
        shown.begin("base")
        shown.step(0.5, 100)
        watched.now = 10.0
        shown.step(2.5, 100)  # two epochs in ten seconds: 97.5 are left, which take 488 s
        shown.epoch(after(0.0, 0.3, 0.1, kd=0.5), 12345.6)
        _, _, base, waiting = watched.drawn(shown)
        left = ["8", "min", "08", "s"]
        # the base has no divergence to tell of; 0.1 lies a third of the way (2.7 eighths: the third letter)
        assert base == ["base", "round", "1", "3", "5.000", "▁█▃", "0.3000", "12,346", *left]
        assert waiting == ["distilled"]
        shown.end()
        shown.begin("distilled")
        shown.epoch(after(0.1, kd=0.5), 9.0)
        heads, units, base, ours = watched.drawn(shown)
        assert base[:2] == ["base", "done"]
        assert base[-1] == "12,346"  # no time is left
        assert ours == ["distilled", "round", "1", "1", "7.000", "0.500", "▁", "0.1000", "9"]
        assert " ".join(heads) == "ce kd validation speed time left"
        assert " ".join(units) == "run stage epoch nats nats NDCG@10 best inst./s at most"


def test_the_widest_row_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    with board(["distilled seed 99"], taught=[True]) as shown:
        shown.begin("distilled seed 99")
        shown.step(0, 200)
        watched.now = 60.0
        shown.step(1, 200)  # a minute an epoch: 199 are left
        shown.epoch(after(*[n / 100 for n in range(30)], kd=12.3456), 123456.7)
        (row,) = watched.drawn(shown)[2:]
        assert row[0:2] == ["distilled", "99"]
        assert row[-6:] == ["0.2900", "123,457", "3", "h", "19", "min"]
        assert "12.346" in row
        assert len(row[7]) == 12


def test_a_terminal_without_such_letters_gets_others(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, "ascii")
    with board(["base"], taught=[False]) as shown:
        shown.begin("base")
        shown.epoch(after(0, 1), 1.0)
        assert "_@" in watched.drawn(shown)[2]


def test_a_log_gets_a_line_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    with board(["base", "distilled"], taught=[False, True]) as shown:
        shown.begin("base")
        shown.epoch(after(0.1, kd=0.5), 9.0)
        shown.end()
        shown.begin("distilled")
        shown.epoch(after(0.3, 0.2, kd=0.5), 9.0)
    assert capsys.readouterr().err.splitlines() == [
        "base: epoch 1, round 1, ce 7.000, ndcg@10 0.1000, the best",
        "distilled: epoch 2, round 1, ce 6.000, kd 0.500, ndcg@10 0.2000, best 0.3000",
    ]


def test_epochs_that_were_not_validated_say_so_in_lines_and_leave_the_curve_as_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [after(None), after(None, 0.1), after(None, 0.1, None)]
    with board(["base"], taught=[False]) as shown:
        shown.begin("base")
        for state in states:
            shown.epoch(state, 9.0)
    assert capsys.readouterr().err.splitlines() == [
        "base: epoch 1, round 1, ce 7.000, not validated yet",
        "base: epoch 2, round 1, ce 6.000, ndcg@10 0.1000, the best",
        "base: epoch 3, round 1, ce 5.000, best 0.1000",
    ]
    watched = Watched(monkeypatch)
    with board(["base"], taught=[False]) as shown:
        shown.begin("base")
        rows = []
        for state in states:
            shown.epoch(state, 9.0)
            rows.append(watched.drawn(shown)[2])
    assert rows == [
        ["base", "round", "1", "1", "7.000", "9"],
        ["base", "round", "1", "2", "6.000", "▁", "0.1000", "9"],
        ["base", "round", "1", "3", "5.000", "▁", "0.1000", "9"],
    ]


def read_events(folder: Path) -> list[tuple[str, int, float]]:
    """(tag, step, value) of every scalar, by the format of TFRecord files: length, crc, data, crc."""
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length, _) = struct.unpack_from("<QI", data)
            content = data[12 : 12 + length]
            (crc,) = struct.unpack_from("<I", data, 12 + length)
            plain = crc32c(content)
            assert crc == (((plain >> 15) | (plain << 17)) + 0xA282EAD8) & 0xFFFFFFFF
            event = Event.FromString(content)
            found += [(one.tag, event.step, one.simple_value) for one in event.summary.value]
            data = data[16 + length :]
    return found


def test_tensorboard_gets_the_scalars_of_every_epoch(tmp_path: Path) -> None:
    with scalars.scalars(tmp_path / "a", taught=True) as tell:
        tell(after(0.1, kd=0.5), 100.0)
        tell(after(0.1, 0.3, kd=0.25), 200.0)
    assert read_events(tmp_path / "a") == [
        ("loss/ce_nats", 1, 7.0),
        ("loss/kd_nats", 1, 0.5),
        ("validation/ndcg_at_10", 1, pytest.approx(0.1)),
        ("speed/instances_per_second", 1, 100.0),
        ("loss/ce_nats", 2, 6.0),
        ("loss/kd_nats", 2, 0.25),
        ("validation/ndcg_at_10", 2, pytest.approx(0.3)),
        ("speed/instances_per_second", 2, 200.0),
    ]
    with scalars.scalars(tmp_path / "b", taught=False) as tell:
        tell(after(None), 100.0)
    tags = [tag for tag, *_ in read_events(tmp_path / "b")]
    assert tags == ["loss/ce_nats", "speed/instances_per_second"]
    with scalars.scalars(None, taught=True) as tell:
        tell(after(0.1), 100.0)
    with scalars.scalars(tmp_path / "none", taught=True):
        pass  # a run that was finished before
    assert not (tmp_path / "none").exists()


def test_logs_that_cannot_be_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scalars.check_log_dir(None)
    scalars.check_log_dir(tmp_path / "new" / "folder")
    (tmp_path / "file").touch()
    with pytest.raises(DiskError):
        scalars.check_log_dir(tmp_path / "file")
    monkeypatch.setattr(scalars, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'ckd-mdsr\[logs\]'"):
        scalars.check_log_dir(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return shop(tmp_path_factory.mktemp("live") / "store")


def test_the_record_has_what_tables_need_and_the_clock_speaks_beside_it(
    store: Store, tmp_path: Path
) -> None:
    run = trained(store, tmp_path / "seed-0", "fm", teachers=1, epochs=2)
    record = run.record
    assert [record["student"], record["kind"]] == ["fm", "distilled"]
    assert record["counts"] == {
        "users": 40,
        "items": 24,
        "evaluated users": 40,
        "instances": store.plan.num_instances,
    }
    assert record["teachers"] == {"t0": {"teacher": "known", "tau": 0.1}}
    assert record["weights_bytes"] == 4 * record["parameters"]
    lines = [
        json.loads(line) for line in (tmp_path / "seed-0.times.jsonl").read_text().splitlines()
    ]
    assert [line["epoch"] for line in lines] == [1, 2]
    for line, epoch in zip(lines, record["history"], strict=True):
        assert (line["stage"], line["instances"]) == (epoch["stage"], epoch["instances"])
        assert line["seconds"] >= 0
        assert line["instances_per_second"] > 0
    trained(store, tmp_path / "seed-0", "fm", teachers=1, epochs=2)  # finished: the clock is silent
    assert len((tmp_path / "seed-0.times.jsonl").read_text().splitlines()) == 2
