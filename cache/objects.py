"""Stores in object storage, S3, Google or Azure, through obstore (extra `share`).

Keys come from the environment and from the cloud's own files, never from us; no error text of the library is handed on, as
it may quote a request. Large files travel in parts of 8 MiB, so that about 100 MiB are in memory at most. Failed requests
are tried again for up to a minute; a server that knows no byte ranges is read from the beginning.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import from_url

from cache.errors import RemoteError, UsageError
from cache.manifest import Entry
from cache.paths import check_name
from cache.remote import (
    BLOCK,
    Found,
    Heard,
    Location,
    hashed,
    missing,
    refuse_published,
    wrong_size,
)

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

__all__ = ["ObjectRemote"]

_PART = 8 << 20
_MOST_PARTS = 9000  # S3 allows 10,000
_AT_ONCE = 3

RETRIES: RetryConfig = {
    "max_retries": 6,
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=8),
        "base": 2,
    },
    "retry_timeout": timedelta(seconds=60),
}
# a request that sends has 8 MiB to go; one that reads may take its time as long as something comes
_SENDING: ClientConfig = {
    "timeout": timedelta(minutes=10),
    "connect_timeout": timedelta(seconds=10),
}
_READING: ClientConfig = {
    "timeout": timedelta(days=2),
    "read_timeout": timedelta(seconds=60),
    "connect_timeout": timedelta(seconds=10),
}
_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AZURE_ENDPOINT")
_STATUS = re.compile(r"status code: (\d{3})")
_KEYS = "check the keys in the environment or in the cloud's own files"


class ObjectRemote:
    """A prefix of a bucket or container."""

    def __init__(self, label: str, reading: ObjectStore, sending: ObjectStore) -> None:
        self.label = label
        self._reading = reading
        self._sending = sending

    @classmethod
    def open(cls, location: Location) -> ObjectRemote:
        """Connect to nothing yet; read keys and settings."""
        named = {name: os.environ[name] for name in _ENDPOINTS if name in os.environ}
        for name, address in named.items():
            if not address.startswith(("http://", "https://")):
                raise UsageError(
                    f"{name}: {address!r} is no address, http:// or https:// was expected in front; "
                    "set it so, or unset it.",
                    code="share.bad_endpoint",
                )
        more = _settings(location.label) if location.scheme == "s3" else {}
        plain = os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true" or any(
            address.startswith("http://") for address in named.values()
        )
        http: ClientConfig = {"allow_http": True} if plain else {}
        with _told(location.label):
            reading, sending = (
                from_url(
                    location.label, retry_config=RETRIES, client_options={**options, **http}, **more
                )
                for options in (_READING, _SENDING)
            )
        return cls(location.label, reading, sending)

    def list(self, folder: str = "") -> dict[str, Found]:
        """Every object below."""
        with _told(self.label):
            return {
                meta["path"]: Found(meta["size"], _tag(meta["e_tag"]))
                for page in obstore.list(self._reading, folder or None)
                for meta in page
            }

    def stat(self, name: str) -> Found | None:
        """One object, or None."""
        check_name(name, where=self.label)
        with _told(self._where(name)):
            try:
                meta = obstore.head(self._reading, name)
            except FileNotFoundError:
                return None
        return Found(meta["size"], _tag(meta["e_tag"]))

    def read(self, name: str, size: int, *, start: int = 0) -> Iterator[bytes]:
        """The bytes of an object, as they come."""
        check_name(name, where=self.label)
        where, skip = self._where(name), 0
        with _told(where):
            try:
                got = obstore.get(self._reading, name, options=_from(start))
            except GenericError as error:
                if not start or "non-partial" not in str(error):
                    raise
                skip = start  # a server that knows no ranges
                got = obstore.get(self._reading, name)
            except FileNotFoundError:
                missing(where)
            if got.meta["size"] != size:
                wrong_size(where, size, got.meta["size"])
            left = size - start + skip
            for block in got.stream(BLOCK):
                if len(block) > left:
                    wrong_size(where, size, size - left + len(block))
                left -= len(block)
                fresh, skip = bytes(block)[skip:], max(0, skip - len(block))
                if fresh:
                    yield fresh
        if left:
            raise RemoteError(
                f"{where}: the connection ended {left:,} bytes too early; run the same command again, "
                "it goes on from there.",
                code="remote.cut",
            )

    def write(self, name: str, source: Path, entry: Entry, heard: Heard) -> str:
        """In one request, or in parts that become an object only when the last one is right."""
        check_name(name, where=self.label)
        blocks = hashed(source, entry, heard)
        part = max(_PART, -(-entry.size // _MOST_PARTS))
        with _told(self._where(name)):
            if entry.size <= _PART:
                made = obstore.put(self._sending, name, b"".join(blocks), use_multipart=False)
            else:
                made = obstore.put(
                    self._sending, name, blocks, chunk_size=part, max_concurrency=_AT_ONCE
                )
        return _tag(made["e_tag"])

    def publish(self, manifests: Sequence[tuple[str, bytes]]) -> None:
        """Create-only where the server knows how; a lost answer is settled by reading back."""
        for name, data in manifests:
            if self._published(name, data):
                continue
            with _told(self._where(name)), contextlib.suppress(AlreadyExistsError):
                obstore.put(self._sending, name, data, mode="create", use_multipart=False)
            if not self._published(name, data):
                missing(self._where(name))

    def _published(self, name: str, data: bytes) -> bool:
        found = self.stat(name)
        if found is None:
            return False
        if found.size != len(data) or b"".join(self.read(name, len(data))) != data:
            refuse_published(self._where(name))
        return True

    def _where(self, name: str) -> str:
        return f"{self.label}/{name}"


@contextlib.contextmanager
def _told(where: str) -> Iterator[None]:
    """Turn what the library raises into one sentence of our own; its text may quote keys and is dropped."""
    try:
        yield
    except (PermissionDeniedError, UnauthenticatedError):
        raise _denied(where) from None
    except FileNotFoundError:
        raise RemoteError(
            f"{where}: there is no such bucket or container; check the URL.", code="remote.missing"
        ) from None
    except BaseError as error:
        status = found[1] if (found := _STATUS.search(str(error))) else ""
        if status in {"401", "403"}:
            raise _denied(where) from None
        what = f"the server answered {status}" if status else "the server could not be reached"
        if not status and "credential" in str(error).lower():
            what = "no keys were found"
        raise RemoteError(
            f"{where}: {what}; {_KEYS} and the address, then run the same command again: "
            "it goes on from there.",
            code="remote.failed",
        ) from None


def _denied(where: str) -> RemoteError:
    return RemoteError(f"{where}: the server refused our keys; {_KEYS}.", code="remote.denied")


def _from(start: int) -> GetOptions:
    return {"range": {"offset": start}} if start else {}


def _tag(e_tag: str | None) -> str:
    return (e_tag or "").strip('"')


def _settings(where: str) -> dict[str, Any]:
    """What obstore does not read by itself: the files in ~/.aws, through boto3 where it is installed."""
    if any(name in os.environ for name in ("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE")):
        return {}
    keys = _ini("AWS_SHARED_CREDENTIALS_FILE", "credentials", "{}")
    more = _ini("AWS_CONFIG_FILE", "config", "profile {}")
    if "aws_access_key_id" not in keys:
        if not more:
            return {}
        try:  # a profile of roles or single sign-on
            from obstore.auth.boto3 import Boto3CredentialProvider

            return {"credential_provider": Boto3CredentialProvider()}
        except ModuleNotFoundError:
            return {}
        except Exception as error:  # whatever boto3 says of files that lack keys, or are wrong
            raise RemoteError(
                f"{where}: no keys were found in ~/.aws ({type(error).__name__}); {_KEYS}.",
                code="remote.denied",
            ) from None
    names = {
        "access_key_id": keys.get("aws_access_key_id"),
        "secret_access_key": keys.get("aws_secret_access_key"),
        "token": keys.get("aws_session_token"),
        "region": os.environ.get("AWS_REGION") or more.get("region"),
    }
    return {name: value for name, value in names.items() if value}


def _ini(variable: str, name: str, section: str) -> dict[str, str]:
    profile = os.environ.get("AWS_PROFILE", "default")
    parser = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(OSError, configparser.Error, UnicodeDecodeError):
        path = os.environ.get(variable) or Path.home() / ".aws" / name
        parser.read_string(Path(path).read_text(encoding="utf-8"))
    title = profile if profile == "default" else section.format(profile)
    return dict(parser[title]) if title in parser else {}
