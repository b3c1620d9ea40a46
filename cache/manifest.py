"""The seal of a part: `manifest.json`, written last, that names every file with size and sha256.

A part (dataset, plan, score set, factor set, item vectors) is a folder that is written once. Without a manifest it is
unfinished, never "small"; with one it holds exactly the files listed, no more and no fewer. The digest of the
manifest's canonical bytes is the part's identity. No clock, host, user or absolute path stands inside: the
same inputs give the same bytes. Reading refuses twin or unknown keys, NaN, endless nesting, wrong types, newer formats.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from cache.atomic import DEBRIS, disk_errors, put
from cache.digest import canonical_json, sha256_bytes, sha256_file
from cache.errors import DiskError, StoreError
from cache.paths import check_name, check_names

__all__ = [
    "FORMAT",
    "MANIFEST",
    "MAX_BYTES",
    "Entry",
    "Manifest",
    "check_numbers",
    "check_part",
    "is_digest",
    "parse_manifest",
    "read_manifest",
    "seal",
]

MANIFEST = "manifest.json"
FORMAT = (
    2  #: the newest that is read; only score sets of codec `u8` are of it, all else is of format 1
)

_MAKERS = {
    "dataset": "`kd-cache ingest`",
    "plan": "`kd-cache plan`",
    "scores": "`kd-cache build`",
    "factors": "`kd-cache build --keep factors`",
    "vectors": "`kd-teacher tune`",
}
MAX_BYTES = 16 << 20  #: entries of 120,000 files, of 32 MiB each where they are shards
_DENSEST = 24  # bytes a value at least: an entry has 113 and four commas or brackets
_FEW = 10_000  # values that settings may hold at any density
_KEYS = {"format", "kind", "parents", "settings", "counts", "files"}
_DIGEST_LENGTH = len("sha256:") + 64


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Entry:
    """One file of a part."""

    path: str  #: relative to the part's folder, forward slashes
    size: int  #: bytes
    sha256: str  #: ``sha256:<hex>``


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a sealed part says of itself."""

    format: int
    kind: str  #: dataset, plan, scores, factors or vectors
    parents: Mapping[str, str]  #: digests of the parts this one was made from
    settings: Mapping[str, Any]  #: everything that decided the content
    counts: Mapping[str, int]  #: sizes a person would ask for
    files: tuple[Entry, ...]  #: sorted by path

    def to_bytes(self) -> bytes:
        """Canonical JSON with a newline at the end."""
        value = {name: getattr(self, name) for name in sorted(_KEYS - {"files"})}
        value["files"] = [asdict(entry) for entry in self.files]
        return canonical_json(value) + b"\n"

    @property
    def digest(self) -> str:
        """The part's identity: covers settings, parents and every file's path, size and digest."""
        return sha256_bytes(self.to_bytes())


def seal(
    folder: Path,
    *,
    kind: str,
    parents: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    counts: Mapping[str, int] | None = None,
    skip: frozenset[str] = frozenset(),
    format: int = 1,
    aside: Path | None = None,
) -> Manifest:
    """Hash what lies in `folder`, then write its manifest last; returns it.

    Args:
        skip: top-level names that do not belong to the part (a journal, derived vectors).
        format: above 1 where readers of before must refuse the part.
        aside: as of :func:`cache.atomic.put`.
    """
    entries = []
    with disk_errors(folder):
        for path in _files(folder, skip=skip):
            name = check_name(path.relative_to(folder).as_posix(), where=str(folder))
            entries.append(Entry(path=name, size=path.stat().st_size, sha256=sha256_file(path)))
    manifest = Manifest(
        format=format,
        kind=kind,
        parents=dict(parents or {}),
        settings=dict(settings or {}),
        counts=dict(counts or {}),
        files=tuple(sorted(entries)),
    )
    put(folder / MANIFEST, manifest.to_bytes(), aside=aside)
    return manifest


def read_manifest(folder: Path, kind: str) -> Manifest:
    """Read and check `folder`'s manifest; the files it names are not looked at.

    Raises:
        StoreError: ``store.unfinished`` without one, ``store.bad_manifest``, ``store.newer_format``,
            ``store.wrong_kind``.
        DiskError: it cannot be read, or `folder` is none.
    """
    path = folder / MANIFEST
    data = _read(path)
    if data is None:
        what = "is not there" if not folder.exists() else "has no manifest.json, it is unfinished"
        raise StoreError(
            f"{folder}: the {kind} part {what}; check the path, or run {_MAKERS.get(kind, 'the command')} "
            "(again), which writes it.",
            code="store.unfinished",
        )
    return parse_manifest(data, path, kind)


def _read(path: Path) -> bytes | None:
    """The bytes of a manifest, or None where there is none."""
    with disk_errors(path):
        try:
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):
                _bad(path, "is not a regular file")
            if status.st_size > MAX_BYTES:
                _bad(path, f"has {status.st_size:,} bytes, at most {MAX_BYTES:,} expected")
            return path.read_bytes()
        except FileNotFoundError:
            return None


def parse_manifest(data: bytes, path: Path | str, kind: str) -> Manifest:
    """Check the bytes of a manifest; `path` says in errors where they came from.

    Raises:
        StoreError: ``store.bad_manifest``, ``store.unsafe_name``, ``store.newer_format``, ``store.wrong_kind``.
    """
    manifest = _parse(data, path)
    if manifest.kind != kind:
        raise StoreError(
            f"{path}: holds a {manifest.kind} part where a {kind} part was expected; check the path.",
            code="store.wrong_kind",
        )
    return manifest


def check_part(
    folder: Path,
    kind: str,
    *,
    deep: bool,
    skip: frozenset[str] = frozenset(),
    progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Refuse a part with a file missing, extra, of another size or (if `deep`) of other bytes.

    Raises:
        StoreError, DiskError: the first finding, naming the file.
    """
    manifest = read_manifest(folder, kind)
    for finding in findings(folder, manifest, deep=deep, skip=skip, progress=progress):
        raise finding
    return manifest


def findings(
    folder: Path,
    manifest: Manifest,
    *,
    deep: bool,
    skip: frozenset[str] = frozenset(),
    progress: Callable[[int], None] | None = None,
) -> Iterator[StoreError | DiskError]:
    """Every way in which `folder` differs from its manifest or cannot be read, one error a file."""
    advice = "restore it from where the store came from, or build that part again"
    with disk_errors(folder):
        present = {p.relative_to(folder).as_posix(): p for p in _files(folder, skip=skip)}
    for name in sorted(present.keys() - {entry.path for entry in manifest.files}):
        yield StoreError(
            f"{folder / name}: is not part of the sealed folder; remove it.",
            code="store.unexpected",
        )
    for entry in manifest.files:
        path = folder / entry.path
        if entry.path not in present:
            yield StoreError(f"{path}: is missing; {advice}.", code="store.missing")
            continue
        try:
            with disk_errors(path):
                status = path.lstat()
                whole = stat.S_ISREG(status.st_mode) and status.st_size == entry.size
                found = sha256_file(path, progress=progress) if whole and deep else entry.sha256
        except DiskError as error:
            yield error
            continue
        if not stat.S_ISREG(status.st_mode):
            yield StoreError(f"{path}: is not a regular file; {advice}.", code="store.not_a_file")
        elif not whole:
            yield StoreError(
                f"{path}: {entry.size:,} bytes expected, {status.st_size:,} found; {advice}.",
                code="store.wrong_size",
            )
        elif found != entry.sha256:
            yield StoreError(
                f"{path}: its bytes have changed ({entry.sha256[:19]} expected, "
                f"{found[:19]} found); {advice}.",
                code="store.wrong_digest",
            )


def check_numbers(
    folder: Path, manifest: Manifest, counts: Set[str], settings: Mapping[str, int]
) -> None:
    """Refuse a manifest that is well formed but lacks the numbers that its part is read by.

    Args:
        counts: the names of all its counts.
        settings: the least that each of these settings may be.

    Raises:
        StoreError: ``store.bad_settings``.
    """
    found = {key: manifest.settings.get(key) for key in settings}
    whole = all(type(n) is int and n >= settings[key] for key, n in found.items())
    if manifest.counts.keys() != counts or not whole:
        raise StoreError(
            f"{folder / MANIFEST}: the counts {sorted(counts)} and whole numbers for {tuple(settings)} were "
            "expected; it was damaged or not written by kd-cache, restore it.",
            code="store.bad_settings",
        )


def _files(folder: Path, *, skip: frozenset[str]) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name in skip or path.name == MANIFEST or path.name.startswith(DEBRIS):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _below(path)
        else:
            yield path


def _below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from _below(path)
        else:
            yield path


def _parse(data: bytes, path: Path | str) -> Manifest:
    value = _load(data, path)
    if not isinstance(value, dict):
        _bad(path, "is not a JSON object")
    version = value.get("format")
    if isinstance(version, int) and not isinstance(version, bool) and version > FORMAT:
        raise StoreError(
            f"{path}: is written in format {version}, this program reads up to {FORMAT}; "
            "upgrade with `pip install --upgrade ckd-mdsr`.",
            code="store.newer_format",
        )
    if value.keys() != _KEYS:
        odd = sorted(value.keys() ^ _KEYS)
        _bad(path, f"has missing or unknown keys {odd[:5]}")
    newest = 1 if value["kind"] != "scores" else FORMAT
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= newest:
        _bad(path, f"has format {version!r}")
    if not isinstance(value["kind"], str) or value["kind"] not in _MAKERS:
        _bad(path, f"has the unknown kind {value['kind']!r}"[:100])
    parents, settings, counts = value["parents"], value["settings"], value["counts"]
    if not isinstance(parents, dict) or not all(is_digest(d) for d in parents.values()):
        _bad(path, "has parents that are not digests")
    if not isinstance(settings, dict):
        _bad(path, "has settings that are not an object")
    if not isinstance(counts, dict) or not all(_is_count(c) for c in counts.values()):
        _bad(path, "has counts that are not non-negative integers")
    files = tuple(_entry(raw, path) for raw in _list(value["files"], path))
    check_names((entry.path for entry in files), where=str(path))
    if list(files) != sorted(files):
        _bad(path, "has files out of order")
    manifest = Manifest(
        format=version,
        kind=value["kind"],
        parents=parents,
        settings=settings,
        counts=counts,
        files=files,
    )
    try:
        canonical = manifest.to_bytes()
    except (ValueError, RecursionError):  # infinities, or nesting without end
        _bad(path, "holds values that are not canonical JSON")
    if canonical != data:
        _bad(path, "is not in canonical form")
    return manifest


def _load(data: bytes, path: Path | str) -> Any:
    if sum(map(data.count, (b",", b"[", b"{"))) > _FEW + len(data) // _DENSEST:
        # in memory each would take a hundred times its bytes
        _bad(path, "holds more values than a manifest of its size can")
    try:
        return json.loads(
            data.decode("ascii"), object_pairs_hook=_no_twins, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        _bad(path, f"is not canonical JSON ({error})")


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key appears twice")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not allowed")


def _list(value: Any, path: Path | str) -> list[Any]:
    if not isinstance(value, list):
        _bad(path, "has files that are not a list")
    return value


def _entry(raw: Any, path: Path | str) -> Entry:
    if not isinstance(raw, dict) or raw.keys() != {"path", "size", "sha256"}:
        _bad(path, "has a file entry with missing or unknown keys")
    if (
        not isinstance(raw["path"], str)
        or not _is_count(raw["size"])
        or not is_digest(raw["sha256"])
    ):
        _bad(path, "has a file entry of the wrong types")
    return Entry(**raw)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def is_digest(value: Any) -> TypeGuard[str]:
    return (
        isinstance(value, str)
        and len(value) == _DIGEST_LENGTH
        and value.startswith("sha256:")
        and all(c in "0123456789abcdef" for c in value[7:])
    )


def _bad(path: Path | str, what: str) -> NoReturn:
    raise StoreError(
        f"{path}: {what}; it was damaged or not written by kd-cache, "
        "restore it or build that part again.",
        code="store.bad_manifest",
    )
