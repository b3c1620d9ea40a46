"""Sharing stores: `push` to a place, `pull` from one, `merge` two on this disk.

Every file is checked by size, then sha256, before it counts. A push sends manifests last and the dataset's last of all, so
that what is half there is "unfinished" and never "small"; a pull stages beside the target and publishes by one rename.
Both may be killed at any instant: the same command goes on, and a file that is whole is not moved again. Nothing that is
published is ever replaced, but for a signature, which travels along and gives way to one that covers more.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cache.atomic import (
    DEBRIS,
    check_writable,
    disk_errors,
    put,
    sweep_dead,
    sync_folder,
    sync_tree,
)
from cache.dataset import VECTORS
from cache.digest import sha256_bytes
from cache.errors import StoreError
from cache.factors import FactorReader
from cache.home import SentLog
from cache.manifest import Entry, check_part
from cache.outline import (
    Outline,
    Part,
    bytes_of,
    check_pin,
    outline,
    outline_here,
    read_part,
    refuse_other_pair,
)
from cache.paths import check_folder
from cache.remote import FolderRemote, Found, Heard, Location, Remote, open_remote
from cache.scores import ScoreReader
from cache.signature import (
    SIGNATURE,
    Signature,
    check_signature,
    read_signature,
    read_signature_here,
    stale,
)
from cache.store import (
    DATASET,
    SCORES,
    Store,
    copy_factor_set,
    copy_score_set,
    refuse_other_teacher,
)
from cache.transfer import Job, Report, download, run_jobs
from pipeline.sets import locked

__all__ = ["Moved", "merge", "pull", "push", "stage_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What a push or pull has done."""

    digest: str  #: of the store, or of the chosen sets with their dataset and plan
    names: tuple[str, ...]  #: under which scores, factors or both travelled
    files: int  #: that were moved
    bytes: int
    kept: int  #: files that were whole before
    unfinished: tuple[str, ...] = ()  #: of which something was left out, as nobody has finished it


def push(path: Path, place: Location, teachers: Sequence[str], report: Report) -> Moved:
    """Copy a store, or what is kept of chosen teachers with its dataset and plan, to `place`.

    Raises:
        StoreError: the store is damaged; ``store.exists`` when another one lies there, with both digests;
            ``scores.exists`` when another teacher has a name there; ``signature.stale`` when what lies there then
            would be signed in part.
        RemoteError: the place refused or failed.
    """
    store = Store.open(path)
    remote = open_remote(place)
    found = outline_here(store, teachers)
    parts = found.parts
    for part in parts:
        _refuse_other(remote, part)
    refuse_other_pair(remote, found)
    signed = _to_send(path, remote, found)
    there, log = remote.list(), SentLog(remote.label)
    moved: list[Entry] = []

    def send(name: str, entry: Entry, heard: Heard) -> None:
        before = there.get(name)
        if before is not None and _same(remote, name, entry, before, log):
            heard(entry.size)
            return
        log.add(remote.write(name, path / name, entry, heard), entry)
        moved.append(entry)

    files = [file for part in parts for file in part.files]
    jobs: list[Job] = [functools.partial(send, name, entry) for name, entry in files]
    run_jobs(jobs, bytes_of(parts), report)
    if signed is not None:
        entry = Entry(path=SIGNATURE, size=len(signed.data), sha256=sha256_bytes(signed.data))
        remote.write(SIGNATURE, path / SIGNATURE, entry, _nobody)
    remote.publish([(part.sealed_by, part.manifest.to_bytes()) for part in parts])
    _check_sent(remote, files, log)
    return Moved(
        digest=found.digest,
        names=found.names,
        files=len(moved),
        bytes=sum(entry.size for entry in moved),
        kept=len(files) - len(moved),
        unfinished=found.unfinished,
    )


def pull(
    place: Location,
    target: Path,
    teachers: Sequence[str],
    report: Report,
    *,
    signed_by: Path | None = None,
) -> Moved:
    """Copy a store, or what is kept of chosen teachers with its dataset and plan, from `place` to `target`.

    Where `target` is a store over the same plan, the sets that it lacks are added to it.

    Args:
        signed_by: the public key of who must have signed what is taken; checked before a byte of data is fetched.

    Raises:
        StoreError: anything there that is not what it should be; ``share.wrong_pin``; ``signature.*``; ``store.lineage``,
            ``store.exists``, ``scores.exists`` when `target` holds something else.
        RemoteError: the place refused or failed.
    """
    remote = open_remote(place)
    found = outline(remote, teachers)
    if signed_by is None:
        signature = _hearsay(remote)
    else:
        signature = read_signature(remote)
        check_signature(found, signature, signed_by, whole=not teachers)
    check_pin(found, place.pin)
    check_writable(target.parent)
    stage = check_folder(stage_of(target))
    with _alone(stage, target):
        here = Store.open(target) if target.exists() else None
        if here is not None:
            _refuse_other_plan(here, found)
        sets = [part for part in found.sets if not _has(here, part)]
        parts = sets if here is not None else [*sets, found.plan, found.dataset]
        moved = []
        if parts:
            files = [file for part in parts for file in part.files]
            moved = download(remote, files, stage, report)
            for part in parts:
                put(stage / part.sealed_by, part.manifest.to_bytes())
                _check_staged(stage / part.folder, part)
        # before the sets are seen, so that a copy that was signed is signed at every instant
        there, held = (stage, ()) if here is None else (target, outline_here(here).parts)
        _adopt(there, signature, [*held, *parts], checked=signed_by is not None)
        if parts:
            _publish(stage, target, here, sets)
        elif stage.exists():  # of a pull that was killed when all was in its place
            with disk_errors(stage):
                shutil.rmtree(stage)
    return Moved(
        digest=found.digest,
        names=found.names,
        files=len(moved),
        bytes=sum(entry.size for entry in moved),
        kept=sum(len(part.files) for part in found.parts) - len(moved),
        unfinished=found.unfinished,
    )


def merge(into: Path, source: Path, report: Report) -> list[str]:
    """Copy into one store the score sets and factor sets of another over the same plan.

    Returns:
        The names under which something was new, sorted.

    Raises:
        StoreError: ``store.lineage`` with both digests; ``store.exists`` for a set of the same name with another digest;
            ``scores.exists`` for scores and factors of one name and two teachers. Then nothing was copied.
    """
    ours, theirs = Store.open(into), Store.open(source)
    if ours.plan.digest != theirs.plan.digest:
        raise StoreError(
            f"{into} is of plan {ours.plan.digest}, {source} of plan {theirs.plan.digest}; sets of "
            "different plans cannot stand in one store, run `kd-cache build` in the one you keep.",
            code="store.lineage",
        )
    new = [part for part in outline_here(theirs).sets if not _has(ours, part)]
    total, done = bytes_of(new), 0
    for part in new:
        copy = copy_score_set if part.manifest.kind == SCORES else copy_factor_set
        copy(theirs, part.name, ours)
        done += bytes_of([part])
        report(done, total)
    _adopt(into, _hearsay(FolderRemote(source)), outline_here(Store.open(into, deep=False)).parts)
    return sorted({part.name for part in new})


def stage_of(target: Path) -> Path:
    """Where a pull to `target` gathers its files until all are there."""
    return target.with_name(f".pull-{target.name}")


def _to_send(path: Path, remote: Remote, found: Outline) -> Signature | None:
    """The signature that goes along; refuses to leave a place signed in part, which its readers would refuse."""
    ours, theirs = read_signature_here(path), _hearsay(remote)
    if ours is None:
        if theirs is not None and (bare := theirs.uncovered(found.parts)):
            raise stale(theirs, bare)
        return None
    if bare := ours.uncovered(found.parts):
        raise stale(ours, bare)
    if theirs is not None and theirs.data == ours.data:
        return None
    if read_part(remote, DATASET, "dataset") is not None:
        there = outline(remote)
        if bare := ours.uncovered(there.parts):
            raise StoreError(
                f"{remote.label}: holds {', '.join(bare)} too, which {ours.label} does not cover; pull that, "
                "sign the whole with `kd-cache sign`, and push again.",
                code="signature.stale",
            )
    return ours


def _adopt(
    target: Path, signature: Signature | None, parts: Sequence[Part], *, checked: bool = False
) -> None:
    """Keep a signature in `target` that covers all its parts, unless one that does is there and this is hearsay."""
    if signature is None:
        return
    sweep_dead(target)  # of one who was killed here
    mine = _hearsay(FolderRemote(target))
    kept = mine is not None and not mine.uncovered(parts) and not checked
    if not kept and not signature.uncovered(parts):
        put(target / SIGNATURE, signature.data)


def _hearsay(remote: Remote) -> Signature | None:
    """A signature that nobody asked to be checked; one that cannot be read counts as none."""
    try:
        return read_signature(remote)
    except StoreError:
        return None


def _nobody(_count: int) -> None:
    """For bytes that nobody watches."""


def _check_staged(folder: Path, part: Part) -> None:
    skip = frozenset({VECTORS}) if part.manifest.kind == "dataset" else frozenset[str]()
    check_part(folder, part.manifest.kind, deep=False, skip=skip)


def _publish(stage: Path, target: Path, here: Store | None, sets: Sequence[Part]) -> None:
    """One rename for a new store; for sets that join one that is there, one rename each."""
    with disk_errors(target):
        for debris in stage.glob(f"{DEBRIS}*"):
            debris.unlink()
        (stage / SCORES).mkdir(exist_ok=True)
        sync_tree(stage)
    staged = here if here is not None else Store.open(stage, deep=False)
    for part in sets:
        if part.manifest.kind == SCORES:
            ScoreReader.open(stage / part.folder, staged.plan)
        else:
            FactorReader.open(stage / part.folder, staged.plan, staged.dataset.num_items)
    with disk_errors(target):
        if here is None:
            stage.rename(target)
            sync_folder(target.parent)
            return
        for part in sets:
            folder = target / part.folder
            folder.parent.mkdir(exist_ok=True)
            (stage / part.folder).rename(folder)
            sync_folder(folder.parent)
        sync_folder(target)
        shutil.rmtree(stage)


def _alone(stage: Path, target: Path) -> contextlib.AbstractContextManager[None]:
    """Only one pull to a target at a time."""
    path = stage.with_name(f".lock-{stage.name.removeprefix('.')}")
    return locked(
        path,
        f"{target}: another process is pulling it right now ({path.name} is locked); wait for that "
        "one, or run the same command later: it goes on from what is there.",
    )


def _has(store: Store | None, part: Part) -> bool:
    """Whether the store holds that very set; refuses another one of its name, of either kind."""
    if store is None:
        return False
    kind, name = part.manifest.kind, part.name
    refuse_other_teacher(store, name, kind, part.manifest.settings)
    if name not in (store.names if kind == SCORES else store.factor_names):
        return False
    there = store.scores(name) if kind == SCORES else store.factors(name)
    if there.digest != part.manifest.digest:
        raise StoreError(
            f"{there.folder}: is {there.digest}, the one to be added is {part.manifest.digest}; "
            "rename one of the two folders before it is shared, or remove one.",
            code="store.exists",
        )
    return True


def _refuse_other_plan(here: Store, found: Outline) -> None:
    theirs = found.plan.manifest.digest
    if here.plan.digest != theirs:
        raise StoreError(
            f"{here.path}: is of plan {here.plan.digest}, {found.label} of plan {theirs}; "
            "choose another --cache.",
            code="store.lineage",
        )


def _refuse_other(remote: Remote, part: Part) -> None:
    """A place that holds another part under the same name is left alone."""
    found = read_part(remote, part.folder, part.manifest.kind)
    if found is not None and found.manifest.digest != part.manifest.digest:
        raise StoreError(
            f"{remote.label}/{part.folder}: is {found.manifest.digest}, this one is "
            f"{part.manifest.digest}; what is published is never replaced, choose another place.",
            code="store.exists",
        )


def _same(remote: Remote, name: str, entry: Entry, found: Found, log: SentLog) -> bool:
    """Whether the object there holds those bytes: by the server's digest, by its tag, else read back and hashed."""
    if found.size != entry.size:
        return False
    if found.sha256:
        return found.sha256 == entry.sha256
    if log.knows(found.tag, entry):
        return True
    state = hashlib.sha256()
    for block in remote.read(name, entry.size):
        state.update(block)
    if f"sha256:{state.hexdigest()}" != entry.sha256:
        return False
    log.add(found.tag, entry)
    return True


def _check_sent(remote: Remote, files: Sequence[tuple[str, Entry]], log: SentLog) -> None:
    """Once everything is published, look again: another push to the same place may have come in between."""
    there = remote.list()
    for name, entry in files:
        found = there.get(name)
        # an object with a tag that we did not get for these bytes is read back; it may be a server that changes tags
        if (
            found is None
            or found.size != entry.size
            or (found.tag and not _same(remote, name, entry, found, log))
        ):
            raise StoreError(
                f"{remote.label}/{name}: was changed by someone else meanwhile; "
                "run the same command again, which mends it.",
                code="share.disturbed",
            )
