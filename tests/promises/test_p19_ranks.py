"""P19: 1, 2 and 4 processes build the same store together; one that dies only delays.

Nothing is sealed before it is complete.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cache.claims import Claims
from cache.errors import DiskError
from cache.unfinished import HANDS, Unfinished
from pipeline.build import build
from pipeline.together import Crew, take_own_gpu
from tests.fakes import PairTeacher, TableTeacher, tiny_store, tree
from tests.pipeline.kill_points import in_child
from tests.promises.ledger import all_kept
from tests.promises.stores import script

pytestmark = pytest.mark.timeout(1800)  # of the long attacks

HARNESS = Path(__file__).with_name("rank_points.py")


def attacked(memory: Path, **rounds: int) -> None:
    """Try these attacks, each so many rounds."""
    told = json.loads(script(HARNESS, memory, *(f"{name}={n}" for name, n in rounds.items())))
    assert all(told[name] for name in rounds)
    all_kept("P19", [complaint for name in rounds for complaint in told[name]])


def test_1_2_and_4_processes_give_the_store_of_one_alone(memory, long):
    """Scores, factors and both, and a teacher of pairs: each question asked once by one of them, each set sealed once."""
    attacked(memory, race=25 if long else 1)


def test_one_that_dies_only_delays(memory, long):
    """At each change to the disk and at random times, lead or hand, nobody starting it again; or all, then one goes on."""
    attacked(memory, points=1 if long else 50, random=40 if long else 2, all=10 if long else 1)


def test_what_one_holds_is_neither_done_nor_sealed_without_it(memory, long):
    """Until it dies; one that joins late helps, one with another temperature is refused."""
    attacked(memory, held=10 if long else 1, strangers=5 if long else 1)


def test_what_a_hand_leaves_counts_by_its_digest(memory, long):
    """Flipped bits, torn journals, half-written and foreign files."""
    attacked(memory, damaged=20 if long else 1, debris=10 if long else 1)


def test_where_locks_are_granted_to_everybody_the_bytes_are_the_same(memory, long):
    attacked(memory, unlocked=25 if long else 1, lockless=25 if long else 1)


def test_a_claim_is_one_process_s_until_it_frees_it_or_dies(tmp_path):
    path = tmp_path / "claims"
    mine = Claims(path, begin=True)
    assert mine.enter()
    assert mine.take(3)

    def other() -> None:
        claims = Claims(path)
        assert claims.enter()  # the door lets many in
        assert claims.take(4)
        assert not claims.take(3)
        os._exit(7)  # and 4 is free

    told = [in_child(other)]
    assert mine.take(4)
    mine.free(3)
    mine.free(4)

    def later() -> None:
        claims = Claims(path)
        assert claims.take(3)
        assert claims.take(4)

    told.append(in_child(later))
    mine.shut()
    told.append(in_child(lambda: _expect(Claims(path).enter() is False)))
    mine.close()
    told.append(in_child(lambda: _expect(Claims(path).enter() is True)))
    all_kept("P19", [status != wanted for status, wanted in zip(told, (7, 0, 0, 0), strict=True)])


def _expect(truth: bool) -> None:
    assert truth


def test_what_a_hand_is_writing_is_let_be_by_a_new_lead(tmp_path):
    whose = {"parents": {"plan": "sha256:0"}, "settings": {"tau": 0.07}}
    part = Unfinished.open(tmp_path / "table", **whose)
    writing = part.work / HANDS / ".work-x" / ".partial-y"
    writing.parent.mkdir(parents=True)
    writing.touch()
    Unfinished.open(tmp_path / "table", **whose)
    all_kept("P19", [not writing.exists()])


def test_claims_on_a_folder_that_is_gone_are_refused(tmp_path):
    path = tmp_path / "claims"
    claims = Claims(path, begin=True)
    assert not claims.gone
    path.unlink()
    all_kept("P19", [claims.enter()])
    claims.close()
    with pytest.raises(FileNotFoundError):
        Claims(path)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DiskError, match="claims: Too many levels of symbolic links"):
        Claims(path, begin=True)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(("teacher", "units"), [(TableTeacher, 1), (PairTeacher, 2)])
def test_one_alone_tells_its_share(tmp_path, teacher, units):
    """A tiny plan is one block of histories; at 600 bytes its 16 batches are two shards."""
    store = tiny_store(tmp_path / "store")
    alone = tiny_store(tmp_path / "alone")
    crew, heard = Crew(), []
    build(teacher(), store, shard_bytes=600, crew=crew, progress=lambda *told: heard.append(told))
    build(teacher(), alone, shard_bytes=600)
    assert (crew.did, crew.of) == (units, units)
    stages = {stage: (done, total) for stage, done, total in heard}
    assert all(done == total for done, total in stages.values())
    again = Crew()
    build(teacher(), store, shard_bytes=600, crew=again)
    assert (again.did, again.of) == (0, 0)
    all_kept("P19", [tree(store.path) != tree(alone.path)])


@pytest.mark.parametrize(("rank", "device"), [("3", 1), ("0", 0), ("", None)])
def test_processes_of_torchrun_take_a_gpu_each(monkeypatch, rank, device):
    """The fourth of four processes on a machine with two: the second one."""
    import torch

    taken: list[int] = []
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    take_own_gpu()
    assert taken == ([] if device is None else [device])
