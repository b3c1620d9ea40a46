"""What a store elsewhere is, from its manifests alone: parts, lineage, digest. Read before a byte of data is asked for.

The manifests are hostile until they have been checked here: canonical, names plain, parents right, at most 64 MiB each. A
part without a manifest is unfinished and does not count; a store whose dataset or plan has none is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cache.errors import StoreError, UsageError
from cache.manifest import MANIFEST, MAX_BYTES, Entry, Manifest, parse_manifest
from cache.paths import check_name, check_names
from cache.remote import Remote
from cache.store import DATASET, PLAN, SCORES, store_digest

__all__ = ["Outline", "Part", "bytes_of", "check_pin", "outline", "read_part"]


@dataclass(frozen=True, slots=True)
class Part:
    """One sealed part of a store, by its manifest."""

    folder: str  #: dataset, plan or scores/<name>
    manifest: Manifest

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
    """A store, or chosen score sets of it."""

    label: str
    dataset: Part
    plan: Part
    scores: Mapping[str, Part]  #: by name
    unfinished: tuple[str, ...]  #: score sets without a manifest

    @property
    def digest(self) -> str:
        """Of the dataset, the plan and these score sets together."""
        return store_digest(
            self.dataset.manifest.digest,
            self.plan.manifest.digest,
            {name: part.manifest.digest for name, part in self.scores.items()},
        )

    @property
    def parts(self) -> list[Part]:
        """In the order in which they are published: a store is seen when its dataset is, which comes last."""
        return [*self.scores.values(), self.plan, self.dataset]


def outline(remote: Remote, teachers: Sequence[str] = ()) -> Outline:
    """Read what lies at `remote`.

    Args:
        teachers: the score sets to take; all that are finished by default.

    Raises:
        StoreError: nothing there, unfinished, malformed (``store.*``); ``scores.missing``.
    """
    dataset, plan = read_part(remote, DATASET, "dataset"), read_part(remote, PLAN, "plan")
    for part, kind in ((dataset, DATASET), (plan, PLAN)):
        if part is None:
            begun = any(name.partition("/")[0] in {DATASET, PLAN, SCORES} for name in remote.list())
            what = "is unfinished: nobody has finished pushing it" if begun else "holds no store"
            raise StoreError(
                f"{remote.label}: {what} (there is no {kind}/{MANIFEST}); check the URL, or run "
                "`kd-cache push` to it (again).",
                code="store.unfinished" if begun else "store.missing",
            )
    assert dataset is not None
    assert plan is not None
    _check_parent(remote, plan, "dataset", dataset)
    names = _score_names(remote)
    sets: dict[str, Part] = {}
    for name in sorted(set(teachers) or names):
        part = read_part(remote, f"{SCORES}/{_plain(remote, name)}", "scores")
        if part is not None:
            _check_parent(remote, part, "dataset", dataset)
            _check_parent(remote, part, "plan", plan)
            sets[name] = part
        elif teachers:
            there = ", ".join(n for n in names if remote.stat(f"{SCORES}/{n}/{MANIFEST}")) or "none"
            raise StoreError(
                f"{remote.label}: has no finished scores of {name!r} (there: {there}); "
                "choose among those, or push it again from where it is whole.",
                code="scores.missing",
            )
    unfinished = tuple(name for name in names if name not in sets and not teachers)
    return Outline(
        label=remote.label, dataset=dataset, plan=plan, scores=sets, unfinished=unfinished
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
    """Refuse anything but what the pin names: the digest of the store, or of the one score set that was chosen.

    Raises:
        StoreError: ``share.wrong_pin`` with both digests.
    """
    if not pin or pin == found.digest:
        return
    if len(found.scores) == 1:
        (only,) = found.scores.values()
        if pin == only.manifest.digest:
            return
    held = ", ".join(found.scores) or "none"
    raise StoreError(
        f"{found.label}: {pin} was asked for, {found.digest} is there (score sets: {held}); "
        "ask whoever published it for the digest, or choose with --teacher the sets it was made of.",
        code="share.wrong_pin",
    )


def _score_names(remote: Remote) -> list[str]:
    parts = (name.split("/") for name in remote.list(SCORES))
    names = sorted({part[1] for part in parts if len(part) > 2 and not part[1].startswith(".")})
    check_names(names, where=remote.label)
    return names


def _plain(remote: Remote, name: str) -> str:
    if "/" in name or name.startswith("."):
        raise UsageError(
            f"{name!r} cannot be the name of a score set; letters, digits and _ . @ + = - were "
            "expected, and no dot in front.",
            code="scores.bad_name",
        )
    return check_name(name, where=remote.label)


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
