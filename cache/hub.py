"""Stores as dataset repositories of the Hugging Face hub, through huggingface_hub (extra `share`).

Files are uploaded as they come and become visible in one commit, with their manifests: a push is whole or not there.
Reading is from the one commit that was the newest when the store was opened. The token is the library's affair
(HF_TOKEN, `hf auth login`). A repository that is not there is made private.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

from cache.atomic import scratch
from cache.errors import RemoteError, UsageError
from cache.home import cache_home
from cache.manifest import Entry
from cache.paths import check_name
from cache.remote import (
    BLOCK,
    Found,
    Heard,
    Location,
    changed,
    missing,
    refuse_published,
    wrong_size,
)

__all__ = ["HubRemote"]

_KIND = "dataset"
_LIBRARIES = ("huggingface_hub", "httpx", "httpx2", "httpcore", "requests", "hf_xet")


class HubRemote:
    """A dataset repository, or a folder in one."""

    def __init__(self, location: Location, api: Any) -> None:
        """See :meth:`open`; `api` is an `HfApi` or what stands in for one."""
        owner, name, *below = location.path.split("/")
        self.label = location.label
        self._api = api
        self._repo = f"{owner}/{name}"
        self._below = "".join(f"{part}/" for part in below)
        self._revision: str | None = None
        self._tree: dict[str, Found] | None = None
        self._pending: list[CommitOperationAdd] = []
        self._lock = threading.Lock()
        with self._told():
            try:
                self._revision = api.repo_info(self._repo, repo_type=_KIND).sha
            except RepositoryNotFoundError:
                self._tree = {}

    @classmethod
    def open(cls, location: Location) -> HubRemote:
        """Ask for the newest commit."""
        disable_progress_bars()
        return cls(location, HfApi(library_name="ckd-mdsr"))

    def list(self, folder: str = "") -> dict[str, Found]:
        """Every file of the commit below."""
        start = f"{folder}/" if folder else ""
        return {name: one for name, one in self._files().items() if name.startswith(start)}

    def stat(self, name: str) -> Found | None:
        """One file, or None."""
        return self._files().get(check_name(name, where=self.label))

    def read(self, name: str, size: int, *, start: int = 0) -> Iterator[bytes]:
        """The bytes of a file, which the library brings whole to a folder of its own."""
        found = self.stat(name)
        if found is None:
            missing(f"{self.label}/{name}")
        if found.size != size:
            wrong_size(f"{self.label}/{name}", size, found.size)
        with scratch(cache_home(), name="hub") as folder:
            with self._told():
                path = self._api.hf_hub_download(
                    self._repo,
                    self._below + name,
                    repo_type=_KIND,
                    revision=self._revision,
                    local_dir=str(folder),
                )
            left = size - start
            with Path(path).open("rb", buffering=0) as file:
                file.seek(start)
                while left and (block := file.read(min(BLOCK, left))):
                    left -= len(block)
                    yield block

    def write(self, name: str, source: Path, entry: Entry, heard: Heard) -> str:
        """Upload a file; it is seen with the commit. Bytes that the hub has are not sent again."""
        check_name(name, where=self.label)
        with self._lock, self._told():
            if self._revision is None:
                self._api.create_repo(self._repo, repo_type=_KIND, private=True, exist_ok=True)
                self._revision = self._api.repo_info(self._repo, repo_type=_KIND).sha
        addition = CommitOperationAdd(self._below + name, str(source))
        if addition.upload_info.size != entry.size:
            wrong_size(str(source), entry.size, addition.upload_info.size)
        if f"sha256:{addition.upload_info.sha256.hex()}" != entry.sha256:
            changed(str(source))
        with self._told():
            self._api.preupload_lfs_files(self._repo, [addition], repo_type=_KIND)
        with self._lock:
            self._pending.append(addition)
        heard(entry.size)
        return ""

    def publish(self, manifests: Sequence[tuple[str, bytes]]) -> None:
        """One commit for all that was written, on top of the commit that was looked at."""
        fresh = []
        for name, data in manifests:
            found = self.stat(name)
            if found is None:
                fresh.append(CommitOperationAdd(self._below + name, data))
            elif found.size != len(data) or b"".join(self.read(name, len(data))) != data:
                refuse_published(f"{self.label}/{name}")
        if not self._pending and not fresh:
            return
        with self._told():
            made = self._api.create_commit(
                self._repo,
                [*self._pending, *fresh],
                commit_message="kd-cache push",
                repo_type=_KIND,
                parent_commit=self._revision,
            )
        self._revision, self._tree, self._pending = made.oid, None, []

    def _files(self) -> dict[str, Found]:
        with self._lock:
            if self._tree is None:
                with self._told():
                    self._tree = dict(self._listed())
            return self._tree

    def _listed(self) -> Iterator[tuple[str, Found]]:
        entries = self._api.list_repo_tree(
            self._repo, recursive=True, revision=self._revision, repo_type=_KIND
        )
        for entry in entries:
            size = getattr(entry, "size", None)  # folders have none
            if size is not None and entry.path.startswith(self._below):
                kept = f"sha256:{entry.lfs.sha256}" if entry.lfs else ""
                yield entry.path.removeprefix(self._below), Found(size, entry.blob_id, kept)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what the library raises into one sentence of our own; its text may quote a request and is dropped."""
        try:
            yield
        except HFValidationError:
            raise UsageError(
                f"{self.label}: the hub allows no repository of that name, hf://datasets/OWNER/NAME was expected; "
                "check the URL.",
                code="share.bad_url",
            ) from None
        except HfHubHTTPError as error:
            status = getattr(error.response, "status_code", 0)
            if status in {401, 403}:
                what = "the hub refused our token; log in with `hf auth login`, or set HF_TOKEN"
                code = "remote.denied"
            elif status in {409, 412}:
                what = "someone else has pushed meanwhile; run the same command again"
                code = "share.disturbed"
            else:
                what = f"the hub answered {status}; check the URL, or run the same command later"
                code = "remote.failed"
            raise RemoteError(f"{self.label}: {what}.", code=code) from None
        except Exception as error:
            library = type(error).__module__.partition(".")[0]
            if library not in _LIBRARIES and not isinstance(error, ConnectionError):
                raise
            raise RemoteError(
                f"{self.label}: the hub could not be reached ({type(error).__name__}); "
                "run the same command again, it goes on from there.",
                code="remote.failed",
            ) from None
