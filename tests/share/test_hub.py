"""The Hugging Face hub, played by an object that keeps commits in memory: which calls are made, and what they amount to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from cache import hub
from cache.errors import RemoteError
from cache.hub import HubRemote
from cache.mirror import open_mirror
from cache.remote import locate, open_remote
from pipeline.share import pull, push
from pipeline.sign import sign_store
from tests.fakes import tree
from tests.keys import Keys
from tests.share.test_share import refused, silent

URL = "hf://datasets/team/toys/v1"


class FakeHub:
    """The calls of HfApi that are used, over commits in a list; files above 500 bytes are LFS."""

    def __init__(self) -> None:
        self.commits: list[dict[str, bytes]] = []
        self.calls: list[str] = []
        self.uploaded: list[str] = []
        self.fail: dict[str, int] = {}

    def _note(self, name: str, **given: Any) -> None:
        assert given["repo_type"] == "dataset"
        self.calls.append(name)
        if name in self.fail:
            response: Any = SimpleNamespace(
                status_code=self.fail[name],
                headers={},
                request=SimpleNamespace(url="?token=SECRET"),
            )
            raise HfHubHTTPError("quoted: token SECRET", response=response)

    def repo_info(self, repo: str, **given: Any) -> Any:
        self._note("repo_info", **given)
        assert repo == "team/toys"
        if not self.commits:
            response: Any = SimpleNamespace(status_code=404, headers={}, request=None)
            raise RepositoryNotFoundError("no such repository", response=response)
        return SimpleNamespace(sha=f"commit{len(self.commits)}")

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool, **given: Any) -> None:
        self._note("create_repo", **given)
        assert private
        assert exist_ok
        self.commits.append({".gitattributes": b"*.parquet filter=lfs"})

    def list_repo_tree(
        self, repo: str, *, recursive: bool, revision: str, **given: Any
    ) -> Iterator[Any]:
        self._note("list_repo_tree", **given)
        assert recursive
        yield SimpleNamespace(path="v1", tree_id="x")  # a folder
        for path, data in self._at(revision).items():
            sha256 = hashlib.sha256(data).hexdigest()
            lfs = SimpleNamespace(sha256=sha256) if len(data) > 500 else None
            yield SimpleNamespace(path=path, size=len(data), blob_id=f"git-{sha256[:9]}", lfs=lfs)

    def hf_hub_download(
        self, repo: str, name: str, *, revision: str, local_dir: str, **given: Any
    ) -> str:
        self._note("hf_hub_download", **given)
        path = Path(local_dir) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._at(revision)[name])
        return str(path)

    def preupload_lfs_files(self, repo: str, additions: list[Any], **given: Any) -> None:
        self._note("preupload_lfs_files", **given)
        self.uploaded += [addition.path_in_repo for addition in additions]

    def create_commit(
        self,
        repo: str,
        operations: list[Any],
        *,
        commit_message: str,
        parent_commit: str,
        **given: Any,
    ) -> Any:
        self._note("create_commit", **given)
        if parent_commit != f"commit{len(self.commits)}":
            response: Any = SimpleNamespace(status_code=412, headers={}, request=None)
            raise HfHubHTTPError("the parent has moved", response=response)
        files = dict(self.commits[-1])
        for operation in operations:
            with operation.as_file() as file:
                files[operation.path_in_repo] = file.read()
        self.commits.append(files)
        return SimpleNamespace(oid=f"commit{len(self.commits)}")

    def _at(self, revision: str) -> dict[str, bytes]:
        return self.commits[int(revision.removeprefix("commit")) - 1]


@pytest.fixture
def api(kept: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    api = FakeHub()
    monkeypatch.setattr(hub, "HfApi", lambda library_name: api)
    return api


def test_a_push_is_one_commit_to_a_private_repository(api, store, tmp_path):
    sent = push(store.path, locate(URL), (), silent)
    assert len(api.commits) == 2  # the one that made the repository, and ours
    assert api.calls.count("create_repo") == api.calls.count("create_commit") == 1
    assert len(api.uploaded) == len(set(api.uploaded)) == sent.files
    names = {p.relative_to(store.path).as_posix() for p in store.path.rglob("*") if p.is_file()}
    assert api.commits[1].keys() == {f"v1/{name}" for name in names} | {".gitattributes"}
    pull(locate(URL), tmp_path / "toys", (), silent)
    assert tree(tmp_path / "toys") == tree(store.path)


def test_doing_it_twice_makes_no_commit_and_uploads_nothing(api, store, tmp_path):
    push(store.path, locate(URL), (), silent)
    api.uploaded.clear()
    again = push(store.path, locate(URL), (), silent)
    assert (again.files, len(api.commits), api.uploaded) == (0, 2, [])


def test_one_more_set_is_one_more_commit(api, store, tmp_path):
    push(store.path, locate(URL), ["one"], silent)
    api.uploaded.clear()
    push(store.path, locate(URL), ["two"], silent)
    assert len(api.commits) == 3
    assert all(name.startswith("v1/scores/two/") for name in api.uploaded)
    pull(locate(URL), tmp_path / "toys", (), silent)
    assert tree(tmp_path / "toys") == tree(store.path)


def test_a_push_that_fails_before_its_commit_is_not_seen_at_all(api, store, tmp_path):
    api.fail = {"create_commit": 500}
    refused("remote.failed", lambda: push(store.path, locate(URL), (), silent))
    refused("store.missing", lambda: pull(locate(URL), tmp_path / "toys", (), silent))
    api.fail = {}
    push(store.path, locate(URL), (), silent)
    pull(locate(URL), tmp_path / "toys", (), silent)


def test_a_commit_that_came_in_between_refuses_ours(api, store):
    push(store.path, locate(URL), ["one"], silent)
    remote = HubRemote(locate(URL), api)
    api.commits.append({**api.commits[-1], "v1/notes.txt": b"hello"})
    with pytest.raises(RemoteError) as caught:
        remote.publish([("scores/two/manifest.json", b"{}")])
    assert caught.value.code == "share.disturbed"


def test_everything_is_read_from_one_commit(api, store, tmp_path):
    """What is committed after the store was opened is not mixed in."""
    push(store.path, locate(URL), (), silent)
    remote = HubRemote(locate(URL), api)
    api.commits.append(dict.fromkeys(api.commits[-1], b"gone"))
    name = "plan/plan.parquet"
    data = (store.path / name).read_bytes()
    assert b"".join(remote.read(name, len(data))) == data
    assert b"".join(remote.read(name, len(data), start=7)) == data[7:]


@pytest.mark.parametrize(
    ("harm", "code"),
    [(lambda d: d[::-1], "store.wrong_digest"), (lambda d: d[:-1], "store.wrong_size")],
)
def test_damage_is_refused(api, store, tmp_path, harm, code):
    push(store.path, locate(URL), (), silent)
    name = "v1/plan/plan.parquet"
    api.commits[-1][name] = harm(api.commits[-1][name])
    refused(code, lambda: pull(locate(URL), tmp_path / "toys", (), silent))
    assert not (tmp_path / "toys").exists()


@pytest.mark.parametrize(("status", "code"), [(401, "remote.denied"), (503, "remote.failed")])
def test_what_the_hub_says_is_told_in_our_words(api, store, status, code):
    api.commits.append({})
    api.fail = {"list_repo_tree": status}
    message = refused(code, lambda: push(store.path, locate(URL), (), silent))
    assert "SECRET" not in message
    assert URL in message


def test_a_student_reads_from_the_hub(api, store, kept):
    push(store.path, locate(URL), (), silent)
    mirror = open_mirror(locate(URL), limit=10**9, report=silent)
    assert (mirror.scores("one")[3] == store.scores("one")[3]).all()
    assert [p.name for p in kept.iterdir() if p.name.startswith("hub-")] == []


def test_a_signature_is_in_the_same_commit_and_a_new_one_makes_one_more(store, api, tmp_path):
    keys = Keys.make(tmp_path, "owner")
    sign_store(store.path, keys.private, silent)
    push(store.path, locate(URL), (), silent)
    assert len(api.commits) == 2  # the making of the repository, and the store with its signature
    pull(locate(URL), tmp_path / "toys", (), silent, signed_by=keys.public)
    assert tree(tmp_path / "toys") == tree(store.path)
    push(store.path, locate(URL), (), silent)
    assert len(api.commits) == 2
    sign_store(store.path, keys.private, silent)
    push(store.path, locate(URL), (), silent)
    assert len(api.commits) == 3
    changed = {name for name, data in api.commits[2].items() if api.commits[1][name] != data}
    assert changed == {"v1/signature.json"}


def test_a_name_that_the_hub_does_not_allow_is_told_before_it_is_asked(kept):
    message = refused("share.bad_url", lambda: open_remote(locate("hf://datasets/me/bad..name")))
    assert "OWNER/NAME was expected" in message


def test_what_a_killed_reader_left_goes_with_the_next_one(api, store, kept, tmp_path):
    push(store.path, locate(URL), (), silent)
    (kept / ".partial-hub-left").mkdir(parents=True)
    pull(locate(URL), tmp_path / "copy", (), silent)
    assert list(kept.glob(".partial-*")) == []
