"""Several processes that build one set: whoever comes takes a unit that nobody has, and any of them may die.

    scores/.work-<name>/   claims   hands/.work-<id>/journal.jsonl ...   beside what a build alone keeps there

A unit is what costs: a block of histories, or a shard of scores where these are no products. One process leads: it holds the
set's lock. The others are hands: each writes into a folder of its own with a journal of its own, and what it has journalled
is moved over by the lead if it hashes right. When the lead dies, a hand that comes by finds the lock free and leads. Refuses
to help with work that was begun with other settings. Costs a hash of what others did, and a look every `POLL` seconds while
there is nothing to take.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cache.atomic import disk_errors, make_folder
from cache.claims import CLAIMS, Claims
from cache.errors import DiskError, StoreError
from cache.journal import JOURNAL, Journal
from cache.score_writer import ScoreWriter
from cache.unfinished import HANDS, Unfinished, refuse_other_work, work_folder
from pipeline.kept import Kept
from pipeline.sets import Progress, only_writer

__all__ = [
    "POLL",
    "Crew",
    "Unit",
    "block_units",
    "leading",
    "opened",
    "shard_units",
    "take_own_gpu",
]

POLL = 0.2  #: seconds between two looks, where others are at all that is left


class Unit(NamedTuple):
    """A file of a work folder that takes time to make."""

    name: str
    size: int  #: in what progress is told in: instances or batches
    do: Callable[[], None]  #: makes it and journals it, in the work folder of whoever asks


def block_units(kept: Kept) -> list[Unit]:
    """What costs of a teacher whose scores are products of vectors: blocks of histories."""
    return [
        Unit(name, block.stop - block.start, partial(kept.encode_block, name, block))
        for name, block in kept.blocks()
    ]


def shard_units(writer: ScoreWriter, put: Callable[[int], None]) -> list[Unit]:
    """What costs of any other teacher: shards, which `put` scores and writes by number."""
    layout = writer.layout
    return [
        Unit(
            writer.part.name(layout.shard_path(unit)),
            len(layout.shard_batches(unit)),
            partial(put, unit),
        )
        for unit in layout.shards
    ]


class Crew:
    """The part of one process in the build of one set."""

    def __init__(self) -> None:
        self.did = 0  #: units that this process did
        self.of = 0  #: units that there are; 0 where all was done before it came
        self._name = uuid.uuid4().hex
        self._claims: Claims | None = None
        self._read: dict[Path, tuple[object, Journal]] = {}
        self._joined: tuple[object, Sequence[Unit]] | None = None

    def lead(self, part: Unfinished, stage: str, units: Sequence[Unit], tell: Progress) -> None:
        """Have every unit lie in `part`, whole: do what nobody is at, take over what the others did, wait for the rest."""
        claims = self._claims
        if claims is None:  # the door is shut: done before, in this build
            return
        self.of = len(units)
        left = {k: unit for k, unit in enumerate(units) if not part.journal.whole(unit.name)}
        total = sum(unit.size for unit in units)

        def report() -> None:
            tell(stage, total - sum(unit.size for unit in left.values()), total)

        report()
        while left:
            before = len(left)
            for number, unit in list(left.items()):
                if not claims.take(number):
                    continue
                try:
                    if not self._adopt(part, unit.name):
                        unit.do()
                        self.did += 1
                finally:
                    claims.free(number)
                del left[number]
                report()
            if len(left) == before:
                time.sleep(POLL)
        self.shut()

    def shut(self) -> None:
        """Let no hand in any more: the folder is about to go, and nobody may be writing there."""
        if self._claims is not None:
            self._claims.shut()
            self._claims = None

    def help(
        self,
        folder: Path,
        parents: Mapping[str, str],
        settings: Mapping[str, Any],
        stage: str,
        units_of: Callable[[Unfinished, Path], Sequence[Unit]],
        tell: Progress,
    ) -> bool:
        """Do one unit of the set `folder` that another process leads; False where none is to be had now.

        Args:
            units_of: the units, as they are done into a part of this process, given the work folder of the lead;
                none while they cannot be begun.

        Raises:
            StoreError: ``scores.foreign_work`` where the lead builds something else under that name.
        """
        work = work_folder(folder)
        try:
            claims = Claims(work / CLAIMS)
        except FileNotFoundError:
            return False
        with contextlib.closing(claims):
            try:
                if not claims.enter() or not refuse_other_work(work, parents, settings):
                    return False
                units = self._units(work, parents, settings, units_of)
                return self._do_one(work, claims, stage, units, tell)
            except DiskError:
                if claims.gone or folder.exists():  # sealed without us: no lock was honoured
                    return False
                raise

    def _do_one(
        self, work: Path, claims: Claims, stage: str, units: Sequence[Unit], tell: Progress
    ) -> bool:
        known = self._known(work)
        total = sum(unit.size for unit in units)
        tell(stage, sum(unit.size for unit in units if unit.name in known), total)
        for number, unit in enumerate(units):
            if unit.name in known or not claims.take(number):
                continue
            try:
                known = self._known(work)
                if unit.name in known:  # done since
                    continue
                unit.do()
            finally:
                claims.free(number)
            self.did += 1
            known.add(unit.name)
            tell(stage, sum(one.size for one in units if one.name in known), total)
            return True
        return False

    def _units(
        self,
        work: Path,
        parents: Mapping[str, str],
        settings: Mapping[str, Any],
        units_of: Callable[[Unfinished, Path], Sequence[Unit]],
    ) -> Sequence[Unit]:
        """Those of this work folder, made once."""
        with disk_errors(work):
            which = (work, (work / CLAIMS).stat().st_ino)
        if self._joined is None or self._joined[0] != which or not self._joined[1]:
            part = Unfinished(work / HANDS / self._name, parents, settings)
            self._joined = (which, units_of(part, work))
            self.of = len(self._joined[1])
        return self._joined[1]

    def _adopt(self, part: Unfinished, name: str) -> bool:
        """Move over what a hand has journalled, if it is whole."""
        return any(part.journal.adopt(journal, name) for journal in self._hands(part.work))

    def _known(self, work: Path) -> set[str]:
        """What anybody has journalled; that it hashes right is for the lead to see."""
        return {
            name for journal in (self._journal(work), *self._hands(work)) for name in journal.names
        }

    def _hands(self, work: Path) -> Iterator[Journal]:
        with disk_errors(work):
            folders = sorted(path.parent for path in (work / HANDS).glob(f"*/{JOURNAL}"))
        return map(self._journal, folders)

    def _journal(self, folder: Path) -> Journal:
        """The journal of another process, read again if it has grown."""
        path = folder / JOURNAL
        with disk_errors(path):
            status = path.stat() if path.exists() else None
        now = status and (status.st_ino, status.st_size, status.st_mtime_ns)
        before = self._read.get(folder)
        if before is None or before[0] != now:
            before = self._read[folder] = (now, Journal(folder, mine=False))
        return before[1]

    @contextlib.contextmanager
    def _open(self, part: Unfinished) -> Iterator[None]:
        with disk_errors(part.work):
            make_folder(part.work / HANDS)
        claims = self._claims = Claims(part.work / CLAIMS, begin=True)
        try:
            yield
        finally:
            claims.close()


@contextlib.contextmanager
def leading(folder: Path, hand: Callable[[], bool] | None) -> Iterator[None]:
    """The lock of the set `folder`; while another process has it, `hand` is called over and over.

    Args:
        hand: does some of the work, False where there is none to be had; None to refuse at once.

    Raises:
        StoreError: ``store.busy``, without a hand.
    """
    while True:
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(only_writer(folder))
            except StoreError:
                if hand is None:
                    raise
            else:
                yield
                return
        if not hand():
            time.sleep(POLL)


@contextlib.contextmanager
def opened(part: Unfinished, crew: Crew | None) -> Iterator[Crew | None]:
    """Let hands in while the block runs: for a crew, or where hands have been, whose work counts for a build alone too."""
    if crew is None and (part.work / HANDS).is_dir():
        crew = Crew()
    with crew._open(part) if crew is not None else contextlib.nullcontext():
        yield crew


def take_own_gpu() -> None:
    """Mean by "cuda" the GPU of this process where `torchrun` has numbered several of one machine; nothing otherwise."""
    rank = os.environ.get("LOCAL_RANK", "")
    if rank.isdigit():
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_device(int(rank) % torch.cuda.device_count())
