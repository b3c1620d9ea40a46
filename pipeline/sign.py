"""Signing a store on this disk, and who must have signed what is trusted: what `--signed-by` means to each command.

The password of a private key comes from the environment (`KD_SIGN_PASSWORD`), never from a flag. Signing hashes every byte
first: nobody should put his name to a store that is damaged.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from cache.atomic import put, sweep_dead
from cache.errors import StoreError
from cache.outline import Outline, outline_here
from cache.signature import SIGNATURE, check_signature, read_signature_here, sign
from cache.store import Store
from cache.verify import verify

__all__ = ["PASSWORD", "SignedByOption", "check_signed_here", "sign_store"]

PASSWORD = "KD_SIGN_PASSWORD"

SignedByOption = Annotated[
    Path | None,
    typer.Option("--signed-by", help="Take only what the owner of this public key has signed."),
]


def sign_store(path: Path, key: Path, progress: Callable[[int, int], None]) -> Outline:
    """Sign all that is finished in a store; a signature that is there already is replaced.

    Raises:
        StoreError: the store is damaged; nothing was signed.
        UsageError: ``signature.bad_key``, ``signature.wrong_password``, ``signature.no_library``.
    """
    sweep_dead(path)  # of one who was killed while signing
    findings = [one for one in verify(path, progress=progress) if one.code != "signature.malformed"]
    if findings:
        raise StoreError(
            f"{path}: is not sound and was not signed, first finding: {findings[0]}",
            code="store.damaged",
        ) from findings[0]
    found = outline_here(Store.open(path, deep=False))
    put(path / SIGNATURE, sign(found, key, os.environ.get(PASSWORD, "")))
    return found


def check_signed_here(store: Store, key: Path, teachers: Sequence[str] = ()) -> list[str]:
    """Refuse a store on this disk, or what it keeps of some teachers, unless the owner of `key` has signed it.

    Returns:
        Sets that were signed and are not here: a choice of them was pulled.

    Raises:
        StoreError: as :func:`cache.signature.check_signature`.
    """
    found = outline_here(store, teachers)
    signature = read_signature_here(store.path)
    check_signature(found, signature, key)
    assert signature is not None
    return sorted(signature.parts.keys() - {part.folder for part in outline_here(store).parts})
