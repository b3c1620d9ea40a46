"""Who published a store: one file in its root, `signature.json`, that signs the digests of its parts.

    {"bundle": {...}, "format": 1, "signed": {"dataset": ..., "factors": {...}, "plan": ..., "scores": {...}}}

`signed` is what the store's digest is the sha256 of, so one signature covers the dataset, the plan and each set by its own
digest, and a choice of sets can be checked against it. `bundle` is a Sigstore bundle over it, made and checked by the
library model-signing (extra `sign`) with an elliptic curve key, offline. What the file says is hearsay until
:func:`check_signature` has passed. Only that needs the library, half a second to import: files travel without.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

from cache.atomic import disk_errors
from cache.digest import canonical_json
from cache.errors import CkdError, StoreError, UsageError
from cache.outline import Outline, Part
from cache.paths import check_names
from cache.remote import FolderRemote, Remote
from cache.store import DATASET, FACTORS, PLAN, SCORES

__all__ = [
    "SIGNATURE",
    "Signature",
    "check_signature",
    "parse_signature",
    "read_signature",
    "read_signature_here",
    "sign",
    "stale",
]

SIGNATURE = "signature.json"
FORMAT = 1
MAX_BYTES = 1 << 20  #: thousands of sets

_SIGNED = "ckd-mdsr-store.json"  # the name of the statement inside the bundle; tells it from other things the key signs
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_INSTALL = "run `pip install 'ckd-mdsr[sign]'`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """A signature file that is well formed; who made it is not known before it is checked."""

    label: str  #: where it lies
    data: bytes  #: the file
    parts: Mapping[str, str]  #: digest by folder: dataset, plan, scores/<name>, factors/<name>
    statement: bytes  #: what the bundle signs
    bundle: bytes

    def uncovered(self, parts: Sequence[Part]) -> list[str]:
        """Folders of the parts that it does not name with their digest."""
        return [one.folder for one in parts if self.parts.get(one.folder) != one.manifest.digest]


def read_signature(remote: Remote) -> Signature | None:
    """What lies at a place, or None.

    Raises:
        StoreError: ``signature.malformed``, ``store.not_a_file``, ``store.newer_format``.
    """
    found = remote.stat(SIGNATURE)
    if found is None:
        return None
    label = f"{remote.label}/{SIGNATURE}"
    if found.size > MAX_BYTES:
        _malformed(label, f"has {found.size:,} bytes, at most {MAX_BYTES:,} expected")
    return parse_signature(b"".join(remote.read(SIGNATURE, found.size)), label)


def read_signature_here(store: Path) -> Signature | None:
    """The same of a store on this disk."""
    return read_signature(FolderRemote(store))


def parse_signature(data: bytes, label: str) -> Signature:
    """Check the form of a signature file, not the signature.

    Raises:
        StoreError: ``signature.malformed``, ``store.newer_format``.
    """
    try:
        value = json.loads(data.decode("ascii"))
        canonical = canonical_json(value) + b"\n" == data
    except (ValueError, RecursionError):
        _malformed(label, "is not JSON")
    version = value.get("format") if isinstance(value, dict) else None
    if type(version) is int and version > FORMAT:
        raise StoreError(
            f"{label}: is written in format {version}, this program reads up to {FORMAT}; "
            "upgrade with `pip install --upgrade ckd-mdsr`.",
            code="store.newer_format",
        )
    if not canonical or type(version) is not int or version != FORMAT:
        _malformed(label, "is not in canonical form or not of format 1")
    if value.keys() != {"bundle", "format", "signed"} or not isinstance(value["bundle"], dict):
        _malformed(label, "has missing or unknown keys")
    return Signature(
        label=label,
        data=data,
        parts=_parts(value["signed"], label),
        statement=canonical_json(value["signed"]),
        bundle=canonical_json(value["bundle"]),
    )


def sign(found: Outline, key: Path, password: str) -> bytes:
    """The signature file of a store, or of a choice of its sets.

    Args:
        key: an elliptic curve private key (P-256, P-384 or P-521), PEM.
        password: of the key; empty where it has none.

    Raises:
        UsageError: ``signature.no_library``, ``signature.bad_key``, ``signature.wrong_password``.
    """
    with _library(UsageError, f"{found.label}: signing it needs"):
        from model_signing import signing
    # the library declares str but hands it to one that takes bytes only
    secret = cast("Any", password.encode()) if password else None
    try:
        signer = signing.Config().use_elliptic_key_signer(  # type: ignore[no-untyped-call]
            private_key=key, password=secret
        )
    except Exception as error:
        _bad_private_key(key, error, password)
    with _scratch(found.statement) as (folder, file):
        signer.sign(folder, file)
        bundle = json.loads(file.read_bytes())
    value = {"bundle": bundle, "format": FORMAT, "signed": json.loads(found.statement)}
    return canonical_json(value) + b"\n"


def check_signature(
    found: Outline, signature: Signature | None, key: Path, *, whole: bool = False
) -> None:
    """Refuse a store whose parts the owner of `key` has not signed, every one with its very digest.

    Args:
        key: the public key of whom is trusted, PEM.
        whole: refuse it too where a set was signed and is not in `found`.

    Raises:
        StoreError: ``signature.missing``, ``signature.invalid`` (another key, or changed), ``signature.foreign``
            (another store's), ``signature.stale``, ``signature.no_library``.
        UsageError: ``signature.bad_key``.
    """
    if signature is None:
        raise StoreError(
            f"{found.label}: is not signed, a signature that {key} fits was asked for; have whoever "
            "published it run `kd-cache sign`, or leave --signed-by out to trust the place.",
            code="signature.missing",
        )
    _check_bundle(signature, key)
    missing = signature.uncovered(found.parts)
    if DATASET in missing or PLAN in missing:
        raise StoreError(
            f"{signature.label}: is the signature of another store, it names other digests than "
            f"{found.label} has for {' and '.join(one for one in missing if '/' not in one)}; ask whoever "
            "published it for the right one.",
            code="signature.foreign",
        )
    if missing:
        raise stale(signature, missing)
    gone = sorted(signature.parts.keys() - {one.folder for one in found.parts})
    if whole and gone:
        raise StoreError(
            f"{signature.label}: covers {', '.join(gone)} too, which {found.label} lacks; ask whoever "
            "published it, or choose with --teacher what you want of it.",
            code="signature.stale",
        )


def stale(signature: Signature, missing: Sequence[str]) -> StoreError:
    """That a store has grown or changed since it was signed."""
    return StoreError(
        f"{signature.label}: does not cover {', '.join(missing)}, which came or changed after it was "
        "signed; have its owner run `kd-cache sign` again.",
        code="signature.stale",
    )


def _check_bundle(signature: Signature, key: Path) -> None:
    with _library(StoreError, f"{signature.label}: checking it needs"):
        from model_signing import hashing, verifying
    try:
        verifier = verifying.Config().use_elliptic_key_verifier(  # type: ignore[no-untyped-call]
            public_key=key
        )
    except Exception as error:
        what = error.strerror if isinstance(error, OSError) else "is no such key"
        raise UsageError(
            f"{key}: {what}; the public key of who signed was expected, PEM of an elliptic curve "
            "(P-256, P-384 or P-521).",
            code="signature.bad_key",
        ) from error
    exactly = hashing.Config().use_file_serialization(  # type: ignore[no-untyped-call]
        hashing_algorithm="sha256", allow_symlinks=False
    )
    # a bundle may list names to be left out when it is checked: nothing is left out here
    exactly.add_ignored_paths = lambda **_: None  # type: ignore[method-assign]
    with _scratch(signature.statement) as (folder, file), disk_errors(file):
        file.write_bytes(signature.bundle)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints advice
                verifier.set_hashing_config(exactly).verify(folder, file)
        except OSError:
            raise
        except Exception as error:  # of hostile bytes in four libraries
            raise StoreError(
                f"{signature.label}: {key} does not fit it, it was made with another key or has been "
                "changed; ask whoever published the store, and do not use it until then.",
                code="signature.invalid",
            ) from error


@contextlib.contextmanager
def _scratch(statement: bytes) -> Iterator[tuple[Path, Path]]:
    """(a folder that holds the statement alone, where its bundle goes): the library signs folders."""
    with tempfile.TemporaryDirectory(prefix="ckd-sign-") as name:
        folder = Path(name) / "store"
        with disk_errors(folder):
            folder.mkdir()
            (folder / _SIGNED).write_bytes(statement)
        yield folder, Path(name) / "bundle.json"


@contextlib.contextmanager
def _library(kind: type[CkdError], what: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise kind(
            f"{what} {error.name}, which is not installed; {_INSTALL}.", code="signature.no_library"
        ) from error


def _parts(signed: Any, label: str) -> dict[str, str]:
    """Digest by folder."""
    kinds = {DATASET, PLAN, SCORES}
    if not isinstance(signed, dict) or signed.keys() not in (kinds, kinds | {FACTORS}):
        _malformed(label, "does not name a dataset, a plan and sets")
    parts = {kind: signed[kind] for kind in (DATASET, PLAN)}
    for kind in (SCORES, FACTORS):
        sets = signed.get(kind, {})
        if not isinstance(sets, dict):
            _malformed(label, "does not name sets by name")
        parts |= {f"{kind}/{name}": digest for name, digest in sets.items()}
    if not all(isinstance(one, str) and _DIGEST.fullmatch(one) for one in parts.values()):
        _malformed(label, "names parts without their digests")
    check_names(parts, where=label)
    return parts


def _malformed(label: str, what: str) -> NoReturn:
    raise StoreError(
        f"{label}: {what}; it was damaged or not written by `kd-cache sign`, sign again or remove it.",
        code="signature.malformed",
    )


def _bad_private_key(key: Path, error: Exception, password: str) -> NoReturn:
    # never the library's own words: they might quote the key
    said = str(error).lower()
    if isinstance(error, OSError):
        code, what = "signature.bad_key", f"{error.strerror}; check the path"
    elif "password" in said and not password:
        code, what = "signature.wrong_password", "has a password; set KD_SIGN_PASSWORD to it"
    elif "password" in said and "not encrypted" in said:
        code, what = "signature.wrong_password", "has no password; unset KD_SIGN_PASSWORD"
    elif "password" in said or (password and "deserialize" in said and _encrypted(key)):
        # one wrong password in two hundred decrypts to something, which is then no key
        code, what = "signature.wrong_password", "has another password than KD_SIGN_PASSWORD says"
    else:
        code = "signature.bad_key"
        what = "is no private key that can sign; PEM of an elliptic curve (P-256, P-384 or P-521) was expected"
    raise UsageError(f"{key}: {what}.", code=code) from error


def _encrypted(key: Path) -> bool:
    with contextlib.suppress(OSError):
        return b"ENCRYPTED" in key.read_bytes()
    return False
