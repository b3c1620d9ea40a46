"""What a store is, from its manifests alone: parts, lineage, digest. Elsewhere it is read before a byte of data is asked for.

The manifests there are hostile until they have been checked here: canonical, names plain, parents right, scores and factors
of one name of one teacher, at most 16 MiB each. A part without a manifest is unfinished and does not count; a store whose
dataset or plan has none is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cache.describe import store_statement
from cache.digest import sha256_bytes
from cache.errors import StoreError
from cache.lineage import refuse_other_settings
from cache.manifest import MANIFEST, MAX_BYTES, Entry, Manifest, parse_manifest
from cache.paths import check_names, check_set_name
from cache.remote import Remote
from cache.store import DATASET, FACTORS, PLAN, SCORES, Store

__all__ = [
    "Outline",
    "Part",
    "bytes_of",
    "check_pin",
    "outline",
    "outline_here",
    "read_part",
    "refuse_other_pair",
]


@dataclass(frozen=True, slots=True)
class Part:
    """One sealed part of a store, by its manifest."""

    folder: str  #: dataset, plan, scores/<name> or factors/<name>
    manifest: Manifest

    @property
    def name(self) -> str:
        """Of a score set or factor set, the name that its teacher has in the store."""
        return self.folder.rpartition("/")[2]

    @property
    def files(self) -> list[tuple[str, Entry]]:
        """(name in the store, entry) of every file but the manifest."""
        return [(f"{self.folder}/{entry.path}", entry) for entry in self.manifest.files]

    @property
    def sealed_by(self) -> str:
        """The name of its manifest in the store."""
        return f"{self.folder}/{MANIFEST}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """A store, or what is kept in it of chosen teachers."""

    label: str
    dataset: Part
    plan: Part
    scores: Mapping[str, Part]  #: by name
    factors: Mapping[str, Part]  #: by name
    unfinished: tuple[str, ...]  #: names under which something was begun that has no manifest

    @property
    def digest(self) -> str:
        """Of the dataset, the plan and these sets together."""
        return sha256_bytes(self.statement)

    @property
    def statement(self) -> bytes:
        """What that is the sha256 of, which is also what a signature signs."""
        return store_statement(
            self.dataset.manifest.digest,
            self.plan.manifest.digest,
            {name: part.manifest.digest for name, part in self.scores.items()},
            {name: part.manifest.digest for name, part in self.factors.items()},
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Under which scores or factors are kept, sorted."""
        return tuple(sorted({*self.scores, *self.factors}))

    @property
    def sets(self) -> list[Part]:
        """Scores, then factors."""
        return [*self.scores.values(), *self.factors.values()]

    @property
    def parts(self) -> list[Part]:
        """In the order in which they are published: a store is seen when its dataset is, which comes last."""
        return [*self.sets, self.plan, self.dataset]


def outline(remote: Remote, teachers: Sequence[str] = ()) -> Outline:
    """Read what lies at `remote`.

    Args:
        teachers: names of which to take what is kept, scores, factors or both; all that is finished by default.

    Raises:
        StoreError: nothing there, unfinished, malformed (``store.*``); ``scores.missing``; ``scores.exists`` where
            one name stands for two teachers.
    """
    dataset, plan = read_part(remote, DATASET, "dataset"), read_part(remote, PLAN, "plan")
    for part, kind in ((dataset, DATASET), (plan, PLAN)):
        if part is None:
            begun = any(
                name.partition("/")[0] in {DATASET, PLAN, SCORES, FACTORS} for name in remote.list()
            )
            what = "is unfinished: nobody has finished pushing it" if begun else "holds no store"
            raise StoreError(
                f"{remote.label}: {what} (there is no {kind}/{MANIFEST}); check the URL, or run "
                "`kd-cache push` to it (again).",
                code="store.unfinished" if begun else "store.missing",
            )
    assert dataset is not None
    assert plan is not None
    _check_parent(remote, plan, "dataset", dataset)
    there = {kind: _names(remote, kind) for kind in (SCORES, FACTORS)}
    wanted = [check_set_name(name, where=remote.label) for name in teachers]
    sets: dict[str, dict[str, Part]] = {SCORES: {}, FACTORS: {}}
    unfinished = set()
    for kind, names in there.items():
        for name in sorted(set(wanted) or names):
            part = read_part(remote, f"{kind}/{name}", kind)
            if part is not None:
                _check_parent(remote, part, "dataset", dataset)
                _check_parent(remote, part, "plan", plan)
                sets[kind][name] = part
            elif name in names:
                unfinished.add(name)
    for name in wanted:
        if name not in sets[SCORES] and name not in sets[FACTORS]:
            raise _not_there(remote, name, there)
    found = Outline(
        label=remote.label,
        dataset=dataset,
        plan=plan,
        scores=sets[SCORES],
        factors=sets[FACTORS],
        unfinished=tuple(sorted(unfinished)),
    )
    _refuse_two_teachers(found)
    return found


def outline_here(store: Store, teachers: Sequence[str] = ()) -> Outline:
    """The same of an opened store.

    Args:
        teachers: as of :func:`outline`.

    Raises:
        StoreError: ``scores.missing``; a set is damaged or foreign; ``scores.exists``.
    """
    names = sorted(set(teachers)) or store.teachers
    kept, factors = store.names, store.factor_names
    for name in names:
        if name not in kept and name not in factors:
            store.scores(name)  # which says that it is not there, and what is
    found = Outline(
        label=store.label,
        dataset=Part(DATASET, store.dataset.manifest),
        plan=Part(PLAN, store.plan.manifest),
        scores={
            name: Part(f"{SCORES}/{name}", store.scores(name).manifest)
            for name in names
            if name in kept
        },
        factors={
            name: Part(f"{FACTORS}/{name}", store.factors(name).manifest)
            for name in names
            if name in factors
        },
        unfinished=tuple(name for name in store.unfinished if name in names or not teachers),
    )
    _refuse_two_teachers(found)
    return found


def refuse_other_pair(remote: Remote, found: Outline) -> None:
    """Refuse to send scores to where another teacher's factors have their name, or the reverse.

    Raises:
        StoreError: ``scores.exists``.
    """
    for kind, sets, others in (
        (FACTORS, found.factors, found.scores),
        (SCORES, found.scores, found.factors),
    ):
        for name, part in others.items():
            there = None if name in sets else read_part(remote, f"{kind}/{name}", kind)
            if there is not None:
                refuse_other_settings(
                    f"{remote.label}/{there.folder}",
                    there.manifest,
                    part.manifest.kind,
                    part.manifest.settings,
                    "what is published is never replaced, choose another place or rename the folder here",
                )


def read_part(remote: Remote, folder: str, kind: str) -> Part | None:
    """A part's manifest, or None where it has none.

    Raises:
        StoreError: ``store.bad_manifest`` and its like.
    """
    name = f"{folder}/{MANIFEST}"
    where = f"{remote.label}/{name}"
    found = remote.stat(name)
    if found is None:
        return None
    if found.size > MAX_BYTES:
        raise StoreError(
            f"{where}: has {found.size:,} bytes, at most {MAX_BYTES:,} expected; "
            "this store was not written by kd-cache, do not use it.",
            code="store.bad_manifest",
        )
    data = b"".join(remote.read(name, found.size))
    return Part(folder, parse_manifest(data, where, kind))


def check_pin(found: Outline, pin: str) -> None:
    """Refuse anything but what the pin names: the digest of the store, or of the one set that was chosen.

    Raises:
        StoreError: ``share.wrong_pin`` with both digests.
    """
    if not pin or pin == found.digest:
        return
    if len(found.sets) == 1 and pin == found.sets[0].manifest.digest:
        return
    held = ", ".join(part.folder for part in found.sets) or "none"
    raise StoreError(
        f"{found.label}: {pin} was asked for, {found.digest} is there (sets: {held}); "
        "ask whoever published it for the digest, or choose with --teacher the sets it was made of.",
        code="share.wrong_pin",
    )


def _names(remote: Remote, kind: str) -> list[str]:
    parts = (name.split("/") for name in remote.list(kind))
    names = sorted({part[1] for part in parts if len(part) > 2 and not part[1].startswith(".")})
    check_names(names, where=remote.label)
    return names


def _not_there(remote: Remote, name: str, there: Mapping[str, Sequence[str]]) -> StoreError:
    finished = {
        one
        for kind, names in there.items()
        for one in names
        if remote.stat(f"{kind}/{one}/{MANIFEST}")
    }
    return StoreError(
        f"{remote.label}: has no finished scores or factors of {name!r} "
        f"(there: {', '.join(sorted(finished)) or 'none'}); "
        "choose among those, or push it again from where it is whole.",
        code="scores.missing",
    )


def _refuse_two_teachers(found: Outline) -> None:
    for name in found.scores.keys() & found.factors.keys():
        scores, factors = found.scores[name], found.factors[name]
        refuse_other_settings(
            f"{found.label}/{scores.folder}",
            scores.manifest,
            FACTORS,
            factors.manifest.settings,
            "one of the two was put there under a wrong name, rename or remove it",
        )


def _check_parent(remote: Remote, part: Part, kind: str, parent: Part) -> None:
    found = part.manifest.parents.get(kind, "none")
    if found != parent.manifest.digest:
        raise StoreError(
            f"{remote.label}/{part.folder}: was made over the {kind} {found}, but {kind}/ there is "
            f"{parent.manifest.digest}; the two come from different stores, push one of them elsewhere.",
            code="store.lineage",
        )


def bytes_of(parts: Iterable[Part]) -> int:
    """What the files of the parts take."""
    return sum(entry.size for part in parts for entry in part.manifest.files)
